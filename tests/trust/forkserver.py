"""Processes that are as good as fresh: forked from one that has imported the libraries and done nothing else.

A job a line on stdin, an answer a line on stdout. A job with ``probe`` is what tokensurgeon asks its own process;
one with ``compare`` loads base and output as a user would, without tokensurgeon, and compares them.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

TEXTS = (
    "It was 1987, and the children's 12 kettles cost $3.50 each.",
    "\tdef f(x):\n        return x ** 2\n\n\n",
    "déjà vu, Ελλάδα, Привет, 日本語, 한국어, हिन्दी, 👩‍👩‍👧‍👦",
    "  two  spaces   and three <|im_start|>user\nhi<|im_end|> <start_of_turn> [SEP]",
    "x" * 40,
)


def _load(directory: str) -> tuple[Any, dict[str, list[str]]]:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    return model.eval(), {key: sorted(map(str, names)) for key, names in dict(info).items() if names}


def _logits(model: Any, ids: list[int]) -> Any:
    import torch

    batch = torch.tensor([ids])
    inputs = {"input_ids": batch}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = batch[:, :4]
    with torch.inference_mode():
        out = model(**inputs)
    return (out["logits"] if "logits" in out else out[0])[0]


def compare(job: dict[str, Any]) -> dict[str, Any]:
    """Read a tokenizer through AutoTokenizer and raw, and run base and output on the same copied tokens."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    output = Path(job["output"])
    read, raw = AutoTokenizer.from_pretrained(output), Tokenizer.from_file(str(output / "tokenizer.json"))
    ids = [
        [read(text, add_special_tokens=False)["input_ids"], raw.encode(text, add_special_tokens=False).ids]
        for text in TEXTS
    ]
    vocab = json.loads((output / "provenance.json").read_text(encoding="utf-8"))["vocab"]
    sources = [entry["source"] for entry in vocab.values() if entry["axis"] == 0 and len(entry["shape"]) == 2]
    kept = [i for i, old in enumerate(sources[0]) if old >= 0 and all(s[i] == old for s in sources)]
    kept = [i for i in kept if i >= job["past_specials"] and sources[0][i] >= job["past_specials"]]
    new, found = _load(job["output"])
    old, known = _load(job["base"])
    after, before = (
        _logits(new, kept[:20])[:, kept],
        _logits(old, [sources[0][i] for i in kept[:20]])[:, [sources[0][i] for i in kept]],
    )
    return {
        "reader": type(read).__name__,
        "ids_equal": all(one == other for one, other in ids),
        "kept": len(kept),
        "new_problems": {key: names for key, names in found.items() if names != known.get(key)},
        "bits_equal": torch.equal(after, before),
        "logits_close": torch.allclose(after, before, atol=1e-3, rtol=1e-3),
        "largest": float((after - before).abs().max()),
        "finite": bool(torch.isfinite(after).all()),
    }


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    code = 0
    sys.stdout, sys.stderr = out, err
    try:
        if "probe" in job:
            from tokensurgeon.checkpoint import probe

            sys.stdin = io.StringIO(job["probe"])
            probe.main()
        else:
            json.dump(compare(job["compare"]), out)
    except BaseException:  # what ends a process ends this one with its traceback, too
        traceback.print_exc()
        code = 1
    return {"returncode": code, "stdout": out.getvalue(), "stderr": err.getvalue()}


def main() -> None:
    """Serve until stdin ends."""
    import torch
    import transformers  # noqa: F401
    from transformers.models.auto import modeling_auto, tokenization_auto  # noqa: F401
    import transformers.modeling_utils  # noqa: F401
    import tokensurgeon.checkpoint.probe  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump(_answer(job), pipe)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        lost = {"returncode": 1, "stdout": "", "stderr": "the process died"}
        sys.__stdout__.write((text or json.dumps(lost)) + "\n")
        sys.__stdout__.flush()


if __name__ == "__main__":
    main()
