"""Write the measured tables of the README from the figures in ``scripts/results``.

Every file there is what one command printed or wrote (``make help`` names them); a table stands between
``<!-- NAME:start -->`` and ``<!-- NAME:end -->``, so no figure in it is typed by hand::

    python scripts/fill_readme.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"


def read(name: str) -> Any:  # noqa: ANN401 - as the command wrote it
    """Parse a file of results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def table(heads: list[str], rows: Iterable[list[str]], left: int = 1) -> str:
    """Markdown; the first columns are text, the others figures."""
    ruler = "|" + "---|" * left + "---:|" * (len(heads) - left)
    return "\n".join([f"| {' | '.join(heads)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)])


def details(summary: str, content: str) -> str:
    """What is shown on a click."""
    return f"<details><summary><b>{summary}</b></summary>\n\n{content}\n\n</details>"


def demo() -> str:
    """What ``make demo`` prints."""
    lines = (RESULTS / "demo.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(["```text", *(line.rstrip() for line in lines), "```"])


def quality() -> str:
    """Bits per byte of whole outputs, the best of each text in bold."""
    document = read("quality.json")
    texts = document["texts"]
    parts = []
    for direction in document["directions"]:
        models = dict(direction["models"])
        base = models.pop("base")
        best = {text: min(round(model["bits"][text], 3) for model in models.values()) for text in texts}
        rows = [["base with its own tokenizer", *(f"{base['bits'][text]:.3f}" for text in texts)]]
        rows += [
            [_code(name, outside=("mergekit",)), *(_best(model["bits"][text], best[text]) for text in texts)]
            for name, model in models.items()
        ]
        title = f"{direction['base']} with the tokenizer of {direction['target']}"
        parts.append(table([f"**{title}**", *texts], rows))
    sizes = ", ".join(f"`{name}` {size:,}" for name, size in texts.items())
    return "\n\n".join([*parts, f"Bits per byte, lower is better; best in bold. Bytes of text: {sizes}."])


def methods() -> str:
    """Every method, both ways, the lowest mean of bits per byte first."""
    return "\n".join(_methods_of(direction) for direction in (1, 2))


def _methods_of(direction: int) -> str:
    found = {
        key.partition(":")[2]: entry
        for key, entry in read("methods.json").items()
        if key.startswith(f"{direction}:") and "failed" not in entry
    }
    base = found.pop("base")["bits"]
    best = {text: min(round(entry["bits"][text], 3) for entry in found.values()) for text in base}
    rows = [["(base, own tokenizer)", *(f"{bits:.3f}" for bits in base.values()), "", "", "", ""]]
    for label in sorted(found, key=lambda name: sum(found[name]["bits"].values())):
        entry = found[label]
        told = ["", "", f"{entry['seconds']:.0f}", ""]
        # Of auto there are only whole outputs.
        if label != "auto":
            made = entry["made"].get(label.partition(",")[0], 0) / sum(entry["made"].values())
            told[:2] = f"{entry['hidden_error']:.3f}", f"{made:.0%}"
            told[3] = f"{entry['gigabytes']:.1f}"
        rows.append([_code(label), *(_best(entry["bits"][text], best[text]) for text in base), *told])
    models = ("gemma3", "smollm2")[:: 3 - 2 * direction]
    heads = ["method", *base, "hidden-anchor error", "made", "CPU seconds", "GB"]
    return details(f"{models[0]} with the tokenizer of {models[1]}", table(heads, rows))


def _code(label: str, outside: tuple[str, ...] = ()) -> str:
    """A method's name as code, what is said of it as text."""
    name, comma, rest = label.partition(",")
    return label if name.startswith(outside) and outside else f"`{name}`{comma}{rest}"


def _best(bits: float, best: float) -> str:
    # Compared as printed, so equal figures are all bold.
    cell = f"{bits:.3f}"
    return f"**{cell}**" if float(cell) == best else cell


PAIRS = {
    "gemma3 from smollm2": "Gemma 3, rows from SmolLM2",
    "smollm2 from gemma3": "SmolLM2, rows from Gemma 3",
}


def hidden() -> str:
    """What plain OMP and auto lose on tokens that were hidden, on each text, and what that saves."""
    found = read("hidden.json")
    rows: list[list[str]] = []
    for direction, pair in PAIRS.items():
        setting = f"{direction}, 600 texts"
        base = found[f"{setting}:base"]
        seeds = [run for key, run in found.items() if key.startswith(f"{setting}:seed")]
        lost = {
            name: [{text: run[name]["bits"][text] - base[text] for text in base} for run in seeds]
            for name in ("omp", "auto")
        }
        means = {
            name: [f"{sum(run[text] for run in runs) / len(runs):.4f}" for text in base]
            for name, runs in lost.items()
        }
        shares = [
            sum(1 - auto[text] / omp[text] for text in base) / len(base)
            for auto, omp in zip(lost["auto"], lost["omp"], strict=True)
        ]
        told = f"{sum(shares) / len(shares):.0%} ({', '.join(f'{share:.0%}' for share in shares)})"
        rows.append([f"{pair}: `omp`, k = 64", *means["omp"], ""])
        rows.append([f"{pair}: `auto`", *means["auto"], told])
    return table(["", *base, "of `omp`'s loss saved (by seed)"], rows)


SOLVERS = {
    "product torch.float32": "float32 product with all anchors at every step, and nothing else",
    "mergekit": "mergekit 0.1.5 `batch_omp`",
    "ours exact, atoms as mergekit": "`mode: exact`, anchors compared as mergekit does",
    "ours exact, unit atoms": "`mode: exact`",
    "ours screened, unit atoms": "`mode: screened`",
}


def solvers(name: str) -> str:
    """Solvers of OMP by their speed and their residual."""
    found = read(name)["solvers"]
    peer = found["mergekit"]["tokens_per_second"]
    rows = []
    for key, words in SOLVERS.items():
        speed, residual = found[key]["tokens_per_second"], found[key]["mean_residual"]
        # A product leaves no residual: not a number.
        told = f"{residual:.6f}" if residual == residual else ""
        rows.append([words, f"{speed:,.0f}", f"{speed / peer:.1f}", told])
    return table(["solver", "tokens a second", "against mergekit", "mean residual"], rows)


def edits() -> str:
    """What edits of the real models cost."""
    found = read("edits.json")
    trim, extend, merge = (found[name] for name in ("trim", "extend", "merge"))
    difference = trim["largest_difference_of_logits"]
    unequal = f"logits differ by {difference:.1g} at most"
    logits = unequal if difference else "logits equal to the last bit"
    held_out = extend["scores"][0]
    learnt = read("supertokens.json")["texts"][0]["sizes"][-1]
    share = next(one for one in learnt["with"] if one["share"] == 0.2)
    rows = [
        [
            f"Gemma 3 270M trimmed to two English texts, {_megabytes(trim)}",
            _tokens(trim),
            "as before on them",
            f"{_scores(trim, 'english', 'math')}; {logits}",
        ],
        [
            f"SmolLM2 extended by {extend['tokens'][1] - extend['tokens'][0]:,} tokens from French",
            _tokens(extend),
            f"held-out French {held_out['base_bytes_per_token']:.2f} -> "
            f"{held_out['output_bytes_per_token']:.2f}",
            f"{_scores(extend, 'French', 'English')}, rows untrained",
        ],
        [
            f"SmolLM2 merged with Gemma 3, {merge['tokens'][1] - merge['tokens'][0]:,} new rows by `affknn`",
            _tokens(merge),
            f"two texts {_cut(merge, 'base'):.2f} -> {_cut(merge, 'output'):.2f}",
            _scores(merge, "english", "code"),
        ],
        [
            f"plain BPE of {learnt['size']:,} tokens with a fifth of them supertokens",
            f"{learnt['size']:,}",
            f"held-out English {learnt['plain']:.2f} -> {share['bytes_per_token']:.2f}",
            "",
        ],
    ]
    return table(["edit", "tokens", "bytes a token", "bits per byte"], rows, left=4)


def _megabytes(edit: dict[str, Any]) -> str:
    return " -> ".join(f"{size / 1e6:,.0f} MB" for size in edit["bytes"])


def _tokens(edit: dict[str, Any]) -> str:
    return " -> ".join(f"{count:,}" for count in edit["tokens"])


def _scores(edit: dict[str, Any], *names: str) -> str:
    scores = zip(names, edit["scores"], strict=True)
    return ", ".join(f"{name} {score['base']:.3f} -> {score['output']:.3f}" for name, score in scores)


def _cut(edit: dict[str, Any], which: str) -> float:
    """Bytes a token of all texts together."""
    tokens = sum(score["bytes"] / score[f"{which}_bytes_per_token"] for score in edit["scores"])
    return float(sum(score["bytes"] for score in edit["scores"]) / tokens)


CUTS = {
    "same token": "same token in both",
    "after a re-segmented one": "same token, after a re-segmented one",
    "split": "split: one base token, several of the target",
    "merged": "merged: several base tokens, one of the target",
    "cut differently": "cut differently: several in both",
    "missing": "missing: a token with a made row is in it",
}


def anatomy() -> str:
    """Where the demo's model loses, on each of its texts."""
    scores = read("anatomy.json")["models"][1]["texts"]
    largest = [max(one["excess"] for one in score["anatomy"]["by_cut"]) for score in scores]
    rows = []
    for place, (name, words) in enumerate(CUTS.items()):
        parts = [score["anatomy"]["by_cut"][place] for score in scores]
        assert all(part["name"] == name for part in parts)
        if not any(part["chunks"] for part in parts):
            continue
        cells = [words]
        for part, most in zip(parts, largest, strict=True):
            excess = f"{part['excess']:+.3f}"
            cells += [f"{part['byte_share']:.1%}", f"**{excess}**" if part["excess"] == most else excess]
        rows.append(cells)
    rows.append(["all", *(cell for score in scores for cell in ("", f"{score['anatomy']['excess']:+.3f}"))])
    heads = ["chunk", *(cell for score in scores for cell in (f"{score['text']}: bytes", "excess"))]
    return table(heads, rows)


def draft() -> str:
    """How many tokens of a draft its target takes."""
    rows = [
        [
            "drawn at temperature one" if run["sampled"] else "the likeliest",
            f"{run['accepted']:,} of {run['proposed']:,}",
            f"{run['accepted_share']:.0%}",
            f"{run['tokens_per_target_pass']:.1f}",
        ]
        for run in read("draft.json")["acceptance"]
    ]
    return table(["tokens are", "accepted", "", "tokens a pass of the target"], rows)


HEALED = {
    "english_long": "English, 64 kB",
    "english": "its first 8 kB",
    "math": "math",
    "fra": "French",
    "rus": "Russian",
    "code": "code",
}


def heal() -> str:
    """What minutes of training gain, on a transplant and on the new tokens of a domain."""
    found = read("heal.json")
    known = found["transplant"]
    rows = [
        ["base with its own tokenizer", *(f"{known['base'][text]:.3f}" for text in HEALED), ""],
        ["transplant", *(f"{known['transplant'][text]:.3f}" for text in HEALED), ""],
    ]
    excess = known["transplant"]["english_long"] - known["base"]["english_long"]
    runs = {name: run for name, run in known.items() if isinstance(run, dict) and "bits" in run}
    for name, run in runs.items():
        saved = (known["transplant"]["english_long"] - run["bits"]["english_long"]) / excess
        told = f"{run['tokens_read']:,} tokens, {run['cpu_minutes']:.0f} CPU minutes"
        cells = (f"{run['bits'][text]:.3f}" for text in HEALED)
        rows.append([f"healed: {_code(name)} ({told})", *cells, f"{saved:.0%}"])
    heads = ["Gemma 3, SmolLM2's tokens by `auto`", *HEALED.values(), "of English's excess gone"]
    domain = found["domain"]
    learnt = domain["learn"]
    others = {name: run for name, run in domain.items() if isinstance(run, dict) and "bits" in run}
    (text,) = domain["pieces"]
    new = [["mean of their pieces, untrained", f"{domain['pieces'][text]:.4f}", "", ""]]
    for name, run in others.items():
        told = [f"{run['bits'][text]:.4f}", f"{run['tokens_read']:,}", f"{run['cpu_minutes']:.1f}"]
        new.append([f"`{name}`", *told])
    title = f"SmolLM2, {domain['count']} new tokens of `{learnt['file']}`"
    second = table([title, "bits per byte", "tokens", "CPU minutes"], new)
    return "\n\n".join([table(heads, rows), second])


OUTCOMES = {
    "equal": "read back equal, with three kinds of tokenizer",
    "positions": "refused where the padding id would change, from which the class counts positions",
    "reader": "refused: `AutoTokenizer` reads another tokenizer than the one that was written",
    "class": "refused: the class cannot run the base either",
    "layout": "refused by name: vocabulary tensors of other rows, quantised, or with names that say nothing",
    "not made tiny": "not tried: no tiny model could be made",
}


def trust() -> str:
    """What the trust suite counted, and what became of every model type."""
    found = read("trust.json")
    rows = [[words, f"{number:,}"] for words, number in [*found["tests"].items(), *found["counts"].items()]]
    types: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for name, by_kind in found["model_types"].items():
        seen = {told.partition(":")[0] for told in by_kind.values()}
        types[next(outcome for outcome in reversed(OUTCOMES) if outcome in seen)].append(name)
    names = [
        [words, str(len(types[outcome])), ", ".join(f"`{name}`" for name in types[outcome])]
        for outcome, words in OUTCOMES.items()
        if types[outcome]
    ]
    listed = table(["what became of them", "types", "model types of transformers"], names, left=3)
    counted = table([f"with transformers {found['transformers']}", "count"], rows)
    return f"{counted}\n\n{details('All model types', listed)}"


BLOCKS: dict[str, Callable[[], str]] = {
    "demo": demo,
    "quality": quality,
    "omp": lambda: solvers("omp.json"),
    "omp-gpu": lambda: solvers("omp-gpu.json"),
    "hidden": hidden,
    "methods-bench": methods,
    "edits": edits,
    "anatomy": anatomy,
    "draft": draft,
    "heal": heal,
    "trust": trust,
}


def fill(text: str) -> str:
    """A page with every block written anew.

    Args:
        text: The page.

    Returns:
        The page, what stands outside the blocks as it was.

    Raises:
        ValueError: A block's marks are not there, once each and in order.
    """
    for name, render in BLOCKS.items():
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise ValueError(f"{name}: {start.strip()} and {end} are expected once each, in this order")
        before, _, rest = text.partition(start)
        text = f"{before}{start}{render()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
