r"""Measure every method on a real pair, in both directions.

A method makes the missing rows of one model given the other's tokenizer. Reported are bits per byte of texts
under the model with those rows; the hidden-anchor error, ``|made - true|^2 / |true - mean|^2`` summed over a
seeded sample of shared tokens that are treated as missing; processor seconds; and peak memory. Every method
works in a process of its own. Finished figures are kept in a cache file, so that a long run can be stopped
and continued; scripts/fill_readme.py makes a table of it. ``method: auto`` also fits rows to the transplant,
so its whole outputs are scored, where scripts/bench_quality.py left them::

    python scripts/bench_methods.py build/models/gemma3 build/models/smollm2 \
        --text english.txt --text math.txt --corpus build/texts/corpus.txt --encoder build/models/minilm \
        --quality build/bench/quality --cache scripts/results/methods.json
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokensurgeon import console
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.methods.registry import METHODS
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources
from tokensurgeon.plan import Plan, make_plan
from tokensurgeon.recipe.load import build_recipe

SEED = 0

# Takes over rows of another version of the base; the donors of this pair are none.
_OTHER_VERSION = {"carry"}

# What is measured besides every method with its defaults, by label.
VARIANTS: dict[str, dict[str, Any]] = {
    "mp_rope, k = 8": {"method": {"name": "mp_rope", "k": 8}},
    "omp, k = 8": {"method": {"name": "omp", "k": 8}},
    "omp, head_scale 1.1": {"method": "omp", "new_rows": {"head_scale": 1.1}},
    "omp, norm: match": {"method": "omp", "new_rows": {"norm": "match"}},
    "omp, anchors: all": {"method": "omp", "anchors": "all"},
    "affknn, head_scale 1.1": {"method": "affknn", "new_rows": {"head_scale": 1.1}},
    "affknn, head_scale auto": {"method": "affknn", "new_rows": {"head_scale": "auto"}},
    "affknn, norm: match": {"method": "affknn", "new_rows": {"norm": "match"}},
    "nearest, cosine, k = 16": {"method": {"name": "nearest", "k": 16, "metric": "cosine"}},
    "affine, SAVA": {"method": {"name": "affine", "fit": "orthogonal", "scaling": "standard"}},
    "clp, sparsemax": {"method": {"name": "clp", "weighting": "sparsemax"}},
    "pieces, merges": {"method": {"name": "pieces", "weighting": "merges"}},
    "pieces, similarity": {"method": {"name": "pieces", "weighting": "similarity"}},
    "piece_regression, head_scale 1.1": {"method": "piece_regression", "new_rows": {"head_scale": 1.1}},
}


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2, metavar="MODEL", type=Path)
    parser.add_argument("--text", action="append", required=True, type=Path, metavar="FILE")
    parser.add_argument("--max-bytes", type=int, default=8192)
    parser.add_argument("--corpus", action="append", required=True, metavar="FILE")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--hidden", type=int, default=1000, help="shared tokens treated as missing")
    parser.add_argument(
        "--direction", type=int, choices=(1, 2), action="append", help="measure this one only"
    )
    parser.add_argument("--label", action="append", help="measure these only; the others come from the cache")
    parser.add_argument("--skip", action="append", default=[], help="LABEL, or DIRECTION:LABEL with 1 or 2")
    parser.add_argument("--quality", type=Path, help="folder of bench_quality.py's outputs")
    parser.add_argument("--cache", type=Path, default=Path("bench_methods.json"))
    parser.add_argument("--plot", type=Path, help="PNG: bits per byte by processor seconds")
    return parser.parse_args(arguments)


def make_plan_of(base: Path, donor: Path, changes: dict[str, Any], options: argparse.Namespace) -> Plan:
    """The plan of one transplant that brings everything any method needs."""
    document = {
        "base": str(base),
        "donor": str(donor),
        "output": str(options.cache.parent / "none"),
        "resources": {"corpus": options.corpus, "encoder": options.encoder},
        "method": "omp",
        **changes,
    }
    return make_plan(build_recipe(document))


def hide(plan: Plan, count: int) -> Plan:
    """The same transplant with some of the shared tokens as the only missing ones."""
    import torch

    from tokensurgeon.hidden_anchors import treat_as_missing
    from tokensurgeon.lexicon import make_lexicon

    parts = make_lexicon(plan.match, plan.inputs.layout.rows).base_parts
    able = [index for index, twin in plan.anchors.items() if twin in parts]
    order = torch.randperm(len(able), generator=torch.Generator().manual_seed(SEED))
    return treat_as_missing(plan, {able[place] for place in order[:count].tolist()})


def operate_on(plan: Plan) -> Any:  # noqa: ANN401 - a NewTensor, whose module imports torch
    """New contents of the embedding; both real models are tied."""
    from tokensurgeon.batches import Batches
    from tokensurgeon.surgery import operate

    return operate(plan, Batches(Processes()), find_resources(plan))[0]


def make_rows(plan: Plan, path: Path) -> dict[str, Any]:
    """Make all rows, write them to a file, and tell what it took: time on all cores, and peak memory."""
    from safetensors.torch import save_file

    new = operate_on(plan)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    save_file({"rows": new.data}, path)
    counts: dict[str, int] = {}
    for name in new.made.methods:
        counts[name] = counts.get(name, 0) + 1
    return {
        "seconds": spent.ru_utime + spent.ru_stime,
        "gigabytes": spent.ru_maxrss * 1024 / 1e9,
        "made": counts,
    }


def find_hidden_error(plan: Plan, count: int) -> dict[str, Any]:
    """Error of hidden rows, and how many of them the method itself made."""
    import torch

    from tokensurgeon.checkpoint.reader import map_tensor

    hidden = hide(plan, count)
    new = operate_on(hidden)
    base = map_tensor(plan.inputs.layout.embedding.ref)
    mean = base[torch.tensor(sorted(plan.match.base.tokens))].float().mean(dim=0)
    true = base[torch.tensor([plan.match.sources[i].embedding[0] for i in new.made.ids])].float()
    wrong = (new.data[new.made.ids].float() - true).square().sum()
    chosen = {params.name for params in plan.recipe.methods("embedding")}
    served = sum(name in chosen for name in new.made.methods) / len(new.made.methods)
    return {"hidden_error": float(wrong / (true - mean).square().sum()), "hidden_served": served}


def score(plan: Plan, path: Path | None, texts: dict[str, str]) -> dict[str, Any]:
    """Bits per byte under the base, or under the base with other rows and the target's tokenizer."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from tokensurgeon.evaluation.bits_per_byte import load_model, score_texts

    model, tokenizer = load_model(str(plan.inputs.base), device="cpu")
    if path is not None:
        rows = torch.nn.Parameter(load_file(path)["rows"].float(), requires_grad=False)
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight = rows
        model.config.get_text_config().vocab_size = len(rows)
        tokenizer = AutoTokenizer.from_pretrained(plan.inputs.target)
    result = score_texts(model, tokenizer, texts)
    return {text.text: text.bits_per_byte for text in result.scores}


def score_output(output: Path, texts: dict[str, str]) -> dict[str, float]:
    """Bits per byte of a written checkpoint."""
    from tokensurgeon.evaluation.bits_per_byte import load_model, score_texts

    result = score_texts(*load_model(str(output), device="cpu"), texts)
    return {text.text: text.bits_per_byte for text in result.scores}


def apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """Run a function in a process of its own; what fails is told and left out."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)

    def child() -> None:
        try:
            theirs.send(work(*arguments))
        except BaseException as error:
            theirs.send({"failed": f"{type(error).__name__}: {error}"[:300]})
            raise

    process = fork.Process(target=child)
    process.start()
    theirs.close()
    try:
        result: dict[str, Any] = ours.recv()
    except EOFError:
        result = {"failed": "the process was killed"}
    process.join()
    return result


def measure(direction: int, options: argparse.Namespace, cache: dict[str, Any]) -> None:
    """Fill the cache with the figures of one direction."""
    base, donor = options.models if direction == 1 else options.models[::-1]
    texts = read_texts(options.text, options.max_bytes)
    plan = make_plan_of(base, donor, {}, options)
    entries: dict[str, dict[str, Any]] = {
        name: {"method": name} for name in METHODS if name not in _OTHER_VERSION
    } | VARIANTS
    if f"{direction}:base" not in cache:
        cache[f"{direction}:base"] = {"bits": apart(score, plan, None, texts)}
    for label, changes in entries.items():
        key = f"{direction}:{label}"
        chosen = label in options.label if options.label else key not in cache
        if not chosen or {label, key} & set(options.skip):
            continue
        document = plan.recipe.model_dump() | changes
        mine = replace(plan, recipe=build_recipe(document))
        if "anchors" in changes:
            mine = make_plan_of(base, donor, changes, options)
        with tempfile.TemporaryDirectory(dir=options.cache.parent) as folder:
            rows = Path(folder) / "rows.safetensors"
            found = apart(make_rows, mine, rows)
            if "failed" not in found:
                found |= apart(find_hidden_error, mine, options.hidden)
                found["bits"] = apart(score, mine, rows, texts)
        cache[key] = found
        console.logger.info("%s", json.dumps({key: found}))
        replace_file(options.cache, json.dumps(cache, indent=1) + "\n")
    output = options.quality and options.quality / f"{base.name}-{donor.name}" / "auto"
    if output and output.is_dir():
        cost = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        cache[f"{direction}:auto"] = {**cost, "bits": apart(score_output, output, texts)}
        replace_file(options.cache, json.dumps(cache, indent=1) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write a file whole: a kill leaves the old one or the new one."""
    part = path.with_name(path.name + ".tmp")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def draw(directions: list[int], options: argparse.Namespace, cache: dict[str, Any]) -> None:
    """Plot every method's mean of bits per byte by its processor seconds, a panel for each direction.

    What is worse than the mean row is left out; the best four and well-known ones are named.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    texts = list(read_texts(options.text, options.max_bytes))
    figure, axes = plt.subplots(
        1, len(directions), figsize=(5.4 * len(directions), 4.2), layout="constrained", squeeze=False
    )
    for direction, axis in zip(directions, axes[0], strict=True):
        base, donor = options.models if direction == 1 else options.models[::-1]
        means = {
            key.removeprefix(f"{direction}:"): sum(entry["bits"][text] for text in texts) / len(texts)
            for key, entry in cache.items()
            if key.startswith(f"{direction}:") and "failed" not in entry and "," not in key
        }
        own = means.pop("base")
        named = {*sorted(means, key=lambda label: means[label])[:4], "omp", "pieces", "mean"}
        written: list[tuple[float, float]] = []
        for label, bits in sorted(means.items(), key=lambda item: item[1]):
            seconds = cache[f"{direction}:{label}"]["seconds"]
            best = label == "auto"
            axis.plot(seconds, bits, "o", color="tab:red" if best else "tab:blue", ms=7 if best else 4)
            # Where names would lie on one another, the best is told.
            crowded = any(abs(math.log(seconds / x)) < 1 and abs(bits - y) < 0.03 for x, y in written)
            if label in named and not crowded:
                written.append((seconds, bits))
                place, side = ((-6, 4), "right") if best else ((4, 3), "left")
                axis.annotate(
                    label, (seconds, bits), xytext=place, ha=side, textcoords="offset points", fontsize=8
                )
        axis.axhline(own, color="grey", lw=0.8)
        axis.set(xscale="log", xlabel="processor seconds", ylabel="bits per byte, mean of the texts")
        axis.set_ylim(own - 0.05, means["mean"] + 0.08)
        axis.set_title(f"{base.name} with the tokenizer of {donor.name}; grey: the base", fontsize=9)
    figure.savefig(options.plot, dpi=110)


def main(arguments: list[str]) -> None:
    """Measure both directions and draw them."""
    options = parse_arguments(arguments)
    console.setup_logging()
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    cache = json.loads(options.cache.read_text(encoding="utf-8")) if options.cache.is_file() else {}
    for direction in options.direction or (1, 2):
        measure(direction, options, cache)
    if options.plot:
        draw([direction for direction in (1, 2) if f"{direction}:base" in cache], options, cache)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(sys.argv[1:])
