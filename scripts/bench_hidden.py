r"""Hidden anchors on a real pair: what ``method: auto`` saves of plain OMP's loss, in both directions.

For each seed a share of the shared tokens is hidden. ``auto`` chooses its method on what is left (it hides
some of that again, and reads text that the base wrote); then its rows, and those of OMP with k = 64 and other
methods, are put back for the hidden tokens, as embedding and as lm_head, and the base scores texts under its
own tokenizer. Reported are the bits per byte that the rows cost, and the share of OMP's cost that is saved.
Seconds are of processor time, for the rows alone: once calibrated, auto's rows take those of what it chose.
Rows follow their fit all the way; how far is best is chosen on whole transplants only::

    python scripts/bench_hidden.py build/models/gemma3 build/models/smollm2 \
        --text english.txt --text math.txt --text rus.txt --text code.txt --cache build/bench/hidden.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from tokensurgeon import console
from tokensurgeon.adjust import scale_heads
from tokensurgeon.batches import Batches
from tokensurgeon.choice import HEAD_FIT, choose_method, settle
from tokensurgeon.evaluation.bits_per_byte import score_texts
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.hidden_anchors import Hidden, hide_anchors, make_hidden, put_back, row_errors
from tokensurgeon.lessons import lesson_texts
from tokensurgeon.methods.params import (
    AffknnParams,
    AffmixParams,
    AffompParams,
    AnyMethod,
    OmpParams,
    PiecesParams,
)
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources
from tokensurgeon.plan import make_plan
from tokensurgeon.reading import fit_rows, group_by_limit, read_examples, trace_written
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.recipe.schema import Auto, NewRowRules, PerEnd
from tokensurgeon.resources import FileResources
from tokensurgeon.rows import NewTensor, spread_root

FIXED: dict[str, tuple[AnyMethod, float]] = {
    "omp": (OmpParams(mode="exact"), 1.0),
    "pieces": (PiecesParams(), 1.0),
    "affknn": (AffknnParams(), 1.0),
    "affomp": (AffompParams(), 1.0),
    "affmix": (AffmixParams(), 1.0),
}


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2, metavar="MODEL", type=Path)
    parser.add_argument("--text", action="append", required=True, type=Path, metavar="FILE")
    parser.add_argument("--max-bytes", type=int, default=4096)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, action="append", help="default: 0, 1 and 2")
    texts = NewRowRules().head_texts
    parser.add_argument("--head-texts", type=int, default=texts, help="texts of the base to fit rows to")
    parser.add_argument("--only", action="append", metavar="NAME", help="beside auto and omp; default: all")
    parser.add_argument("--untie", action="store_true", help="auto's rows read and write apart")
    parser.add_argument("--direction", type=int, choices=(1, 2), action="append")
    parser.add_argument("--cache", type=Path, default=Path("bench_hidden.json"))
    return parser.parse_args(arguments)


class Bench:
    """One direction: the base, loaded once, and its texts."""

    def __init__(self, base: Path, donor: Path, options: argparse.Namespace) -> None:
        self.options = options
        self.kept = options.cache.with_name(f"{base.name}-{donor.name}-{options.head_texts}-texts.json")
        pair = {"base": str(base), "donor": str(donor), "output": "nowhere"}
        document = {
            **pair,
            "method": "auto",
            "untie": options.untie,
            "new_rows": {"head_texts": options.head_texts},
        }
        self.plan = make_plan(build_recipe(document))
        self.resources: FileResources = find_resources(self.plan)
        self.texts = read_texts(options.text, options.max_bytes)

    @cached_property
    def lessons(self) -> dict[str, str]:
        """What rows are fitted to, whatever is hidden: written once, and kept beside the cache."""
        if not self.kept.is_file():
            texts = lesson_texts(self.plan, self.resources)
            write_json(self.kept, texts)
        kept: dict[str, str] = json.loads(self.kept.read_text(encoding="utf-8"))
        return kept

    def score(self) -> dict[str, float]:
        """Bits per byte of each text under the base as it is now."""
        model, tokenizer = self.resources.load_body(), self.resources.load_base_tokenizer()
        return {score.text: score.bits_per_byte for score in score_texts(model, tokenizer, self.texts).scores}

    def try_method(
        self, hidden: Hidden, method: AnyMethod | PerEnd, scale: float, fitted: bool = False
    ) -> dict[str, Any]:
        """Make and score the hidden rows."""
        started = time.process_time()
        made = make_hidden(hidden, method, self.resources, Batches(Processes()))
        seconds = time.process_time() - started
        error = row_errors(hidden, made[0]).weighted
        made = scale_heads(hidden.plan, made, scale)
        if fitted:
            made = self.fit(hidden, made)
        with put_back(self.resources.load_body(), hidden, made, "both"):
            bits = self.score()
        parameters = method.model_dump(mode="json")
        return {
            "method": parameters,
            "scale": scale,
            "seconds": seconds,
            "row_error": error,
            "bits": bits,
        }

    def fit(self, hidden: Hidden, made: list[NewTensor]) -> list[NewTensor]:
        """What auto does last: rows are fitted to more of what the base writes."""
        tokenizer = self.resources.load_base_tokenizer()
        writes = made[-1]  # the lm_head, or the one table of a tied base
        # Written before the body gets other rows, which may be the one that writes.
        written = group_by_limit(tokenizer, self.lessons, self.plan.match.base.tokens)
        model = self.resources.load_fast_body()  # as a run reads them
        with put_back(model, hidden, made, "both"):
            examples = read_examples(model, tokenizer, written)
            reads = trace_written(model, tokenizer, written) if writes.tied else None
        table = self.resources.load_body().get_output_embeddings().weight.detach().clone()
        table[hidden.twins] = writes.data[torch.tensor(hidden.ids)].to(table)
        left = torch.tensor([i for i in hidden.plan.match.base.tokens if i < len(table)])
        root = HEAD_FIT * spread_root(table.cpu(), left)
        tokens = [self.plan.match.target.tokens[index] for index in hidden.ids]
        rows = fit_rows(examples, table, hidden.twins, tokens, root, reads=reads)
        data = writes.data.clone()
        data[torch.tensor(hidden.ids)] = rows.to(data)
        return [*made[:-1], replace(writes, data=data)]

    def choose(self, hidden: Hidden, seed: int) -> dict[str, Any]:
        """What auto takes, and what finding it took."""
        started = time.process_time()
        recipe = self.plan.recipe
        runtime = recipe.runtime.model_copy(update={"seed": seed})
        inner = replace(hidden.plan, recipe=recipe.model_copy(update={"runtime": runtime}))
        choice = choose_method(inner, self.resources)
        method = settle(recipe, choice).method
        assert not isinstance(method, tuple | Auto), "one method is chosen for each end"
        writes = choice.chosen("lm_head") or choice.chosen("both")
        assert writes is not None, "something was chosen"
        seconds = time.process_time() - started
        return {"method": method.model_dump(mode="json"), "scale": writes.best, "seconds": seconds}

    def run(self, seed: int, found: dict[str, Any], keep: Callable[[], None]) -> None:
        """Fill in what is not there yet about the tokens that one seed hides."""
        hidden = hide_anchors(self.plan, self.options.share, seed)
        if "choice" not in found:
            found["choice"] = self.choose(hidden, seed)
            keep()
        choice = found["choice"]
        method: AnyMethod | PerEnd = TypeAdapter(AnyMethod | PerEnd).validate_python(choice["method"])
        entries = {"auto": (method, choice["scale"]), "auto, head_fit 0": (method, choice["scale"])}
        only = self.options.only
        for name, (some, scale) in (entries | FIXED).items():
            if name not in found and (only is None or name in {"auto", "omp", *only}):
                found[name] = self.try_method(hidden, some, scale, fitted=name == "auto")
                console.logger.info("seed %d, %s: %s", seed, name, found[name]["bits"])
                keep()


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write a file whole or not at all: hours of work may be in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(path)


def make_table(direction: str, cache: dict[str, Any]) -> str:
    """Markdown: bits per byte lost, by method and text, the mean of all seeds; then auto against OMP."""
    base = cache[f"{direction}:base"]
    runs = [run for key, run in cache.items() if key.startswith(f"{direction}:seed")]
    texts = list(base)
    lines = [
        f"| {direction}, {len(runs)} seeds | {' | '.join(texts)} | saved of omp's loss | CPU seconds |",
        f"|---|{'---:|' * (len(texts) + 2)}",
    ]
    for name in (name for name in runs[0] if name != "choice"):
        lost = {text: sum(run[name]["bits"][text] - base[text] for run in runs) / len(runs) for text in texts}
        cells = [
            1 - (run[name]["bits"][text] - base[text]) / (run["omp"]["bits"][text] - base[text])
            for run in runs
            for text in texts
        ]
        seconds = sum(run[name]["seconds"] for run in runs) / len(runs)
        shown = " | ".join(f"{lost[text]:.4f}" for text in texts)
        lines.append(f"| `{name}` | {shown} | {sum(cells) / len(cells):.0%} | {seconds:.0f} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Measure both directions and print the tables."""
    options = parse_arguments(arguments)
    console.setup_logging()
    cache = json.loads(options.cache.read_text(encoding="utf-8")) if options.cache.is_file() else {}

    def keep() -> None:
        write_json(options.cache, cache)

    for number in options.direction or (1, 2):
        base, donor = options.models if number == 1 else options.models[::-1]
        setting = f"{'untied, ' if options.untie else ''}{options.head_texts} texts"
        direction = f"{base.name} from {donor.name}, {setting}"
        bench = Bench(base, donor, options)
        cache.setdefault(f"{direction}:base", bench.score())
        for seed in options.seed or (0, 1, 2):
            bench.run(seed, cache.setdefault(f"{direction}:seed {seed}", {}), keep)
        print(make_table(direction, cache), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
