r"""Edit the vocabularies of the two real models, and tell what each edit costs.

Every edit is made by the tool's own command line. The text to learn from and the texts to judge by are the
caller's; the figures in the README are of French from Debian's documentation (``debian-reference-fr``,
``debian-faq-fr``, ``maint-guide-fr``) and the first part of the Declaration of Human Rights, whose last part
judges::

    python scripts/bench_edits.py build/models/gemma3 build/models/smollm2 --english english.txt \
        --math math.txt --code code.txt --learn french.txt --held-out declaration.txt \
        --json scripts/results/edits.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_BYTES = 8192
# Two texts are compared logit by logit, so much of each.
COMPARED_CHARACTERS = 3000


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2, metavar="MODEL", type=Path, help="the larger vocabulary first")
    for name in ("english", "math", "code", "learn", "held-out"):
        parser.add_argument(f"--{name}", required=True, type=Path, metavar="FILE")
    parser.add_argument("--work", type=Path, default=Path("build/bench/edits"))
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    return parser.parse_args()


def edit(name: str, words: list[str | Path], output: Path, judged: list[Path]) -> dict[str, Any]:
    """Make an edit and keep what its report says.

    Args:
        name: The verb.
        words: Its other arguments.
        output: The directory it writes.
        judged: Texts to score and cut.

    Returns:
        Tokens before and after, sizes, what the verb counted, and each text before and after.
    """
    shutil.rmtree(output, ignore_errors=True)
    texts = [word for text in judged for word in ("--text", text)]
    command = [sys.executable, "-m", "tokensurgeon", name, *words, *texts]
    command += ["--set", f"report.max_bytes={MAX_BYTES}"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    vocabulary, first = report["vocabulary"], report["edits"]["steps"][0]
    return {
        "tokens": [vocabulary["base_tokens"], vocabulary["target_tokens"]],
        "bytes": [_weights(Path(report["recipe"]["base"]["path"])), _weights(output)],
        "edit": first,
        "checks": [check["passed"] for check in report["checks"]],
        "scores": [_without_anatomy(score) for score in report["scores"]],
    }


def _without_anatomy(score: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in score.items() if key != "anatomy"}


def _weights(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


@torch.inference_mode()
def compare_logits(base: Path, output: Path, texts: list[Path]) -> float:
    """Largest difference between the logits of kept tokens before and after.

    Args:
        base: The model.
        output: The same, trimmed.
        texts: Whose tokens are all kept.

    Returns:
        The difference, of logits in float32.
    """
    kept = json.loads((output / "id_map.json").read_text(encoding="utf-8"))["new_to_old"]
    text = "".join(path.read_text(encoding="utf-8")[:COMPARED_CHARACTERS] for path in texts)
    logits = []
    for place in (base, output):
        ids = AutoTokenizer.from_pretrained(place)(text, return_tensors="pt")["input_ids"]
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        logits.append(model(ids).logits[0])
    return float((logits[0][:, kept] - logits[1]).abs().max())


def main() -> None:
    """Edit, judge, write."""
    options = parse_arguments()
    large, small = options.models
    options.work.mkdir(parents=True, exist_ok=True)
    trimmed, extended, merged = (options.work / name for name in ("trimmed", "extended", "merged"))
    own = [options.english, options.math]
    corpus = [word for text in own for word in ("--corpus", text)]
    found = {
        "trim": edit("trim", [large, trimmed, *corpus, "--drop-reserved"], trimmed, own),
        "extend": edit(
            "extend",
            [small, extended, "--corpus", options.learn, "--count", "2000"],
            extended,
            [options.held_out, options.english],
        ),
        "merge": edit(
            "merge", [small, large, merged, "--method", "affknn"], merged, [options.english, options.code]
        ),
    }
    found["trim"]["largest_difference_of_logits"] = compare_logits(large, trimmed, own)
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
