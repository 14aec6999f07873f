"""The model card, ``README.md`` of an output directory."""

from __future__ import annotations

import re

import yaml

from tokensurgeon.report.model import Report, TensorQuality
from tokensurgeon.report.summary import (
    change,
    count,
    decimal,
    input_of,
    percent,
    recipe_yaml,
    shape,
    show_token,
    source_of,
    summary_sentence,
    tokenizer_of,
)

# An underscore inside a word is only an underscore.
_MARKUP = re.compile(r"[&<>\[\]|`*\\$~#]|(?<![^\W_])_|_(?![^\W_])")

_HUB_NAME = r"\w[\w.-]*/\w[\w.-]*"

_LOAD = """\
## Load it

```python
from transformers import {model}, AutoTokenizer

directory = "path/to/this/directory"
model = {model}.from_pretrained(directory)
tokenizer = AutoTokenizer.from_pretrained(directory)
```

Use the tokenizer of this directory; the one of the base model no longer fits the rows."""

# End of an architecture's name -> the class that loads any of the kind, and the hub's name of what it does.
_KINDS = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
}

_LIMITS = """\
## Adapters

Adapters such as LoRA that leave the vocabulary alone attach as before, though they were trained on other
token boundaries. Adapters that were saved with embeddings or lm_head of the base (`modules_to_save`,
`trainable_token_indices`) no longer fit: their rows belong to the old vocabulary."""

_VERIFY = """\
## Check it again

```
tokensurgeon verify path/to/this/directory
```

Every number above is in `report.json`; `report.html` shows them with plots."""


def render_card(report: Report) -> str:
    """The text of ``README.md`` for an output directory.

    Args:
        report: A finished run.

    Returns:
        Markdown with YAML front matter.
    """
    title = f"# {_text(_short_name(report, 'base'))} with {_text(_short_tokenizer(report))}"
    sections = [
        _front_matter(report),
        title,
        _text(summary_sentence(report)),
        _warnings(report),
        _LOAD.format(model=_loader(report)),
        _numbers(report),
        _scores(report),
        _draft(report),
        _worst(report),
        _LIMITS,
        _VERIFY,
        _recipe(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(report: Report) -> str:
    head: dict[str, object] = {}
    base = input_of(report, "base")
    told = base.card if base is not None else {}
    head |= {key: told[key] for key in ("license", "license_name", "license_link", "language") if key in told}
    head["library_name"] = "transformers"
    task = told.get("pipeline_tag") or _kind(report)[1]
    if task:
        head["pipeline_tag"] = task
    # The hub refuses a card whose base_model is a file path; a folder may look like a name of the hub.
    if base is not None and base.from_hub is not False and re.fullmatch(_HUB_NAME, base.source):
        # Of adapter, merge, quantized and finetune, the hub's kinds, the one whose weights are changed.
        head |= {"base_model": base.source, "base_model_relation": "finetune"}
    head["tags"] = _tags(report)
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _tags(report: Report) -> list[str]:
    tags = ["tokensurgeon", "tokenizer-transplantation"]
    if report.draft is not None and report.draft.asked:
        tags.append("speculative-decoding")
    return tags


def _kind(report: Report) -> tuple[str, str]:
    """The class that loads the output, and the hub's name of what it does; empty if not known."""
    name = next(iter(report.architectures), "ForCausalLM")
    for ending, kind in _KINDS.items():
        if name.endswith(ending):
            return kind
    return (name if name.isidentifier() else "AutoModel"), ""


def _loader(report: Report) -> str:
    return _kind(report)[0]


def _short_name(report: Report, role: str) -> str:
    return source_of(report, role).rstrip("/").rpartition("/")[2] or source_of(report, role)


def _short_tokenizer(report: Report) -> str:
    return tokenizer_of(report).replace(source_of(report, "target"), _short_name(report, "target"))


def _warnings(report: Report) -> str:
    if not report.warnings:
        return ""
    lines = [f"- **{_text(notice.code)}** {_text(notice.text)}" for notice in report.warnings]
    return "\n".join(["## Before you use it", "", *lines])


def _numbers(report: Report) -> str:
    sizes = report.vocabulary
    rows = [
        ["tokens", count(sizes.base_tokens), count(sizes.target_tokens)],
        ["rows", count(sizes.base_rows), count(sizes.rows)],
        ["parameters", count(sizes.parameters_before), count(sizes.parameters_after)],
        *(
            [_code(tensor.name), shape(tensor.old_shape), shape(tensor.new_shape)]
            for tensor in report.tensors
        ),
    ]
    origins = [[_text(part.origin), count(part.tokens), percent(part.share)] for part in report.origins]
    return "\n\n".join(
        (
            "## Numbers",
            _table(["", "before", "after"], rows),
            "Where the rows of the target's tokens came from:",
            _table(["origin", "tokens", "share"], origins),
        )
    )


def _scores(report: Report) -> str:
    if not report.scores:
        return ""
    rows = [
        [_code(score.text), f"{score.base:.3f}", f"{score.output:.3f}", change(score.base, score.output)]
        for score in report.scores
    ]
    note = "Each model with its own tokenizer; lower is better."
    return "\n\n".join(("## Bits per byte", note, _table(["text", "base", "this model", "change"], rows)))


def _draft(report: Report) -> str:
    if report.draft is None or not report.draft.asked:
        return ""
    rows = [[_text(part.rule), part.result, _text(part.reason)] for part in report.draft.verdicts]
    said = f"As a draft of {_code(report.draft.model)}, by the rule of each engine:"
    table = _table(["engine", "verdict", "because"], rows, left=("verdict", "because"))
    return "\n\n".join(("## Draft model", said, table))


def _worst(report: Report) -> str:
    parts = [_worst_of(tensor) for tensor in report.tensors if tensor.worst and tensor.equal_to is None]
    return "\n\n".join(("## New rows to look at first", *parts)) if parts else ""


def _worst_of(tensor: TensorQuality) -> str:
    rows = [
        [
            str(row.id),
            _code(row.token),
            "" if row.residual is None else decimal(row.residual),
            decimal(row.norm),
            ", ".join(f"{_code(part.token)} {decimal(part.weight)}" for part in row.made_of[:4]),
        ]
        for row in tensor.worst[:8]
    ]
    table = _table(["id", "token", "residual", "norm", "made of"], rows, left=("token", "made of"))
    return f"{_code(tensor.name)}\n\n{table}"


def _recipe(report: Report) -> str:
    text = recipe_yaml(report.recipe)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"## Recipe\n\nMade by tokensurgeon {_text(report.tool_version)}.\n\n{fence}yaml\n{text}{fence}"


def _table(heads: list[str], rows: list[list[str]], left: tuple[str, ...] = ()) -> str:
    rule = [":--" if index == 0 or head in left else "--:" for index, head in enumerate(heads)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _text(text: str) -> str:
    """One line of prose; character references, because Markdown never reads those as markup."""
    return re.sub(_MARKUP, lambda found: f"&#{ord(found[0])};", show_token(text))


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>"
