r"""Measure what a user gets: whole outputs of tokensurgeon and of mergekit, on texts, in both directions.

Each output is made by the tool's own command line, in a folder that is kept, so that a long run can be
stopped and continued; scores are kept beside them::

    python scripts/bench_quality.py build/models/gemma3 build/models/smollm2 --text english.txt \
        --text math.txt --mergekit build/mergekit/bin --work build/bench/quality \
        --json scripts/results/quality.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokensurgeon import console
from tokensurgeon.evaluation.bits_per_byte import load_model, read_texts, score_texts

RECIPES: dict[str, dict[str, Any]] = {
    "auto": {"method": "auto"},
    "auto, untied": {"method": "auto", "untie": True},
    "affknn": {"method": "affknn"},
    "omp": {"method": {"name": "omp", "k": 64}},
    "pieces": {"method": "pieces"},
    "pieces, last and first, untied": {
        "method": {"name": "pieces", "weighting": "last_first"},
        "untie": True,
    },
}
MERGEKIT = "mergekit 0.1.5, omp"


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2, metavar="MODEL", type=Path)
    parser.add_argument("--text", action="append", required=True, type=Path, metavar="FILE")
    parser.add_argument("--max-bytes", type=int, default=16_384)
    parser.add_argument("--mergekit", type=Path, help="folder of mergekit's commands; without it, no peer")
    parser.add_argument("--direction", type=int, choices=(1, 2), action="append", help="default: both")
    parser.add_argument("--only", action="append", help="make and score these only")
    parser.add_argument("--work", type=Path, default=Path("build/bench/quality"))
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    return parser.parse_args(arguments)


def make(name: str, base: Path, donor: Path, output: Path, mergekit: Path | None) -> None:
    """Have an output written, and remember what it took."""
    note = output.with_suffix(".json")
    if note.is_file():
        return
    shutil.rmtree(output, ignore_errors=True)
    if name == MERGEKIT:
        assert mergekit is not None, "left out without it"
        command = [str(mergekit / "mergekit-tokensurgeon"), str(base), str(donor), str(output)]
        command += ["--approximation-method", "omp", "--k", "64"]
    else:
        recipe = output.with_suffix(".recipe.json")
        facts = {"base": str(base), "donor": str(donor), "output": str(output), **RECIPES[name]}
        recipe.write_text(json.dumps(facts), encoding="utf-8")
        command = [sys.executable, "-m", "tokensurgeon", "run", str(recipe)]
    console.logger.info("%s", " ".join(command))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    replace_file(note, json.dumps({"seconds": seconds}))


def score(directory: Path, texts: dict[str, str]) -> dict[str, float]:
    """Bits per byte of each text; a model is loaded only for texts it has not scored."""
    cache = directory.parent / f"{directory.name}.scores.json"
    known: dict[str, float] = json.loads(cache.read_text(encoding="utf-8")) if cache.is_file() else {}
    keys = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    wanted = {name: text for name, text in texts.items() if keys[name] not in known}
    if wanted:
        model, tokenizer = load_model(str(directory), device="cpu", dtype="float32")
        for found in score_texts(model, tokenizer, wanted).scores:
            known[keys[found.text]] = found.bits_per_byte
        replace_file(cache, json.dumps(known, indent=1))
    return {name: known[key] for name, key in keys.items()}


def measure(base: Path, donor: Path, options: argparse.Namespace, texts: dict[str, str]) -> dict[str, Any]:
    """All figures of one direction."""
    work = options.work / f"{base.name}-{donor.name}"
    work.mkdir(parents=True, exist_ok=True)
    own = work / "base"
    if not own.exists():
        own.symlink_to(base.resolve())
    models: dict[str, Any] = {"base": {"bits": score(own, texts)}}
    for name in [*RECIPES, *([MERGEKIT] if options.mergekit else [])]:
        output = work / "".join(char if char.isalnum() else "-" for char in name)
        if not options.only or name in options.only:
            make(name, base, donor, output, options.mergekit)
        if output.with_suffix(".json").is_file():
            cost = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
            models[name] = {"bits": score(output, texts), **cost}
    return {"base": base.name, "target": donor.name, "models": models}


def replace_file(path: Path, text: str) -> None:
    """Write a file whole: a kill leaves the old one or the new one."""
    part = path.with_name(path.name + ".tmp")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main(arguments: list[str]) -> None:
    """Make, score, write."""
    options = parse_arguments(arguments)
    console.setup_logging()
    texts = read_texts(options.text, options.max_bytes)
    pairs = [options.models, options.models[::-1]]
    wanted = options.direction or [1, 2]
    document = {
        "texts": {name: len(text.encode()) for name, text in texts.items()},
        "directions": [measure(*pairs[number - 1], options, texts) for number in wanted],
    }
    replace_file(options.json, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main(sys.argv[1:])
