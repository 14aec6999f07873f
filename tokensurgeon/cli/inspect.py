"""``tokensurgeon inspect``: what two tokenizers share, where they differ, and where a row came from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.errors import RecipeError

if TYPE_CHECKING:
    from tokensurgeon.evaluation.overlap import Band
    from tokensurgeon.evaluation.trace import RowTrace
    from tokensurgeon.vocab.match import VocabMatch
    from tokensurgeon.vocab.vocabulary import Token, Vocabulary


def inspect(
    target: Annotated[
        Path, typer.Argument(help="Directory of the tokenizer a model would be given; or a finished output.")
    ],
    base: Annotated[
        Path | None, typer.Argument(help="Directory of the tokenizer it has; none with --token or --id.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Show where this token's rows came from.")
    ] = None,
    token_id: Annotated[int | None, typer.Option("--id", metavar="N", help="The same, by id.")] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Cut this file with both, line by line; repeatable."),
    ] = None,
    unreachable: Annotated[
        bool, typer.Option("--unreachable", help="List the target's tokens that plain text never leads to.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
) -> None:
    """Compare two tokenizers, or show where a row of a finished output came from.

    Of two tokenizers: overlap by script, and with --text by frequency; special tokens and chat markers side
    by side; how numbers and white space are cut; what a swap would change.

    Of an output, with --token or --id: whether the token's rows are copies or made, by what method and of
    what, and the rows that are nearest to them. The model's body is not read.

    \b
    Examples:
      tokensurgeon inspect SmolLM2-135M/ gemma-3-270m/
      tokensurgeon inspect new/ old/ --text corpus.txt --unreachable --json
      tokensurgeon inspect out/ --token " language"
    """  # noqa: D301 - click wants the character, not its name
    row = token is not None or token_id is not None
    if row and (base or text or unreachable or (token is not None and token_id is not None)):
        raise RecipeError(
            "--token or --id with another tokenizer, --text, --unreachable, or each other",
            "one finished output and one token",
        )
    if not row and base is None:
        raise RecipeError(
            "one directory",
            "two, to compare their tokenizers; or --token TEXT or --id N of a finished output",
        )
    document = _row(target, token, token_id) if base is None else _comparison(target, base, text, unreachable)
    if as_json:
        console.print_json({"schema_version": 1, **document})
        return
    tables = _row_tables(document) if row else _comparison_tables(document)
    for place, (title, heads, rows) in enumerate(table for table in tables if table[2]):
        if place:
            console.print_result("")
        console.print_table(title, heads, rows)


_Table = tuple[str, list[str], list[list[str]]]


def _comparison(target: Path, base: Path, text: list[Path] | None, unreachable: bool) -> dict[str, Any]:
    from tokensurgeon.vocab.match import match_vocabularies
    from tokensurgeon.vocab.vocabulary import load_vocabulary

    match = match_vocabularies(load_vocabulary(target), load_vocabulary(base))
    facts = _facts(match)
    if text:
        facts |= _cut_texts(match, text)
    facts["swap"] = _swap(facts)
    if unreachable:
        facts["unreachable"] = _find_unreachable(match)
    return facts


def _comparison_tables(facts: dict[str, Any]) -> list[_Table]:
    names = ["path", "kind", "tokens", "highest id"]
    found: list[_Table] = [
        (
            "Tokenizers",
            ["", "target", "base"],
            [[key, _cell(facts["target"][key]), _cell(facts["base"][key])] for key in names],
        ),
        (
            "What a swap changes",
            ["", "base", "target", ""],
            [
                [row["what"], _cell(row["base"]), _cell(row["target"]), "changes" if row["changes"] else ""]
                for row in facts["swap"]
            ],
        ),
        (
            f"{facts['byte_equal']:,} of {facts['target']['tokens']:,} target tokens are in the base by "
            f"bytes, {facts['missing']:,} have no counterpart",
            ["script", "target tokens", "in the base", "share"],
            [
                [row["script"], str(row["tokens"]), str(row["shared"]), f"{row['share']:.1%}"]
                for row in facts["scripts"]
            ],
        ),
    ]
    if "texts" in facts:
        found += _text_tables(facts)
    found += [
        (
            "Tokens that plain text never leads to",
            ["id", "token"],
            [[str(row["id"]), row["token"]] for row in facts.get("unreachable", [])],
        ),
        (
            "Roles and chat markers",
            ["", "base", "target"],
            [
                [row["what"], " ".join(row["base"]) or "-", " ".join(row["target"]) or "-"]
                for row in facts["markers"]
            ],
        ),
        (
            "Special tokens of the target",
            ["id", "token", "base tokens", "decided by"],
            [
                [str(row["id"]), row["token"], " ".join(row["base_tokens"]), row["decided_by"]]
                for row in facts["special_tokens"]
            ],
        ),
    ]
    return found


def _text_tables(facts: dict[str, Any]) -> list[_Table]:
    frequency = facts["frequency"]
    rows = [
        *((f"{band['tokens']:,} most frequent", band) for band in frequency["bands"]),
        *((part["script"], part) for part in frequency["by_script"]),
    ]
    return [
        (
            "Texts, line by line",
            ["", ""],
            [[key.replace("_", " "), _cell(value)] for key, value in facts["texts"].items()],
        ),
        (
            "Overlap by frequency in the texts",
            ["target tokens", "of them in the base", "share of tokens", "share of the texts' tokens"],
            [
                [head, f"{band['shared']:,}", f"{band['share']:.1%}", f"{band['occurrence_share']:.1%}"]
                for head, band in rows
            ],
        ),
        (
            "Most frequent tokens that the base lacks",
            ["id", "token", "times"],
            [[str(row["id"]), repr(row["token"]), f"{row['times']:,}"] for row in frequency["missing"]],
        ),
    ]


def _cut_texts(match: VocabMatch, paths: list[Path]) -> dict[str, Any]:
    from tokensurgeon.edits.lossless import compare
    from tokensurgeon.evaluation.overlap import cut_with, measure_overlap
    from tokensurgeon.evaluation.texts import read_texts

    texts = read_texts(paths)
    origins = {
        index: source.embedding[0] for index, source in match.sources.items() if len(source.embedding) == 1
    }
    cut = compare(match.base, match.target, origins, texts)
    overlap = measure_overlap(match, texts)
    whole = "".join(texts.values())
    sides = {"target": cut_with(match.target, whole), "base": cut_with(match.base, whole)}
    return {
        "texts": {
            "lines": cut.lines,
            "share_of_lines_cut_otherwise": cut.changed_lines,
            "share_of_bytes_in_other_tokens": cut.changed_bytes,
            "lines_cut_otherwise_though_all_their_tokens_are_shared": cut.broken,
            "bytes_per_token_base": cut.bytes_per_token[0],
            "bytes_per_token_target": cut.bytes_per_token[1],
        },
        "cuts": {
            side: None
            if found is None
            else {**asdict(found), "fertility": found.fertility, "bytes_per_token": found.bytes_per_token}
            for side, found in sides.items()
        },
        "frequency": {
            "bands": [_band(band) for band in overlap.bands],
            "by_script": [{"script": name, **_band(band)} for name, band in overlap.by_script.items()],
            "missing": [
                {"id": index, "token": match.target.tokens[index].text, "times": times}
                for index, times in overlap.missing
            ],
        },
    }


def _band(band: Band) -> dict[str, Any]:
    share = band.shared_occurrences / band.occurrences if band.occurrences else 0.0
    return {
        **asdict(band),
        "share": band.shared / band.tokens if band.tokens else 0.0,
        "occurrence_share": share,
    }


def _find_unreachable(match: VocabMatch) -> list[dict[str, Any]]:
    from tokensurgeon.edits.lossless import unreachable

    return [{"id": index, "token": match.target.tokens[index].content} for index in unreachable(match.target)]


def _swap(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What would be otherwise with the target's tokenizer, fact by fact."""
    names = ["tokens", "digits", "white space", "normalizer", "BOS before a prompt", "BOS before a chat"]
    pairs = [(name, facts["base"][name], facts["target"][name]) for name in [*names, "chat template"]]
    cuts = facts.get("cuts", {})
    if cuts.get("base") and cuts.get("target"):
        for name in ("tokens", "fertility", "bytes_per_token", "renyi_efficiency"):
            label = f"{name.replace('_', ' ')} of the texts"
            pairs.append((label, cuts["base"][name], cuts["target"][name]))
    return [
        {"what": what, "base": before, "target": after, "changes": before != after}
        for what, before, after in pairs
    ]


def _facts(match: VocabMatch) -> dict[str, Any]:
    from tokensurgeon.vocab.canonical import Kind
    from tokensurgeon.vocab.scripts import count_scripts

    shared = count_scripts(match.target.tokens[index] for index in match.sources)
    return {
        "target": _side(match.target),
        "base": _side(match.base),
        "byte_equal": len(match.byte_equal),
        "missing": len(match.missing),
        "scripts": [
            {
                "script": script,
                "tokens": count,
                "shared": shared.get(script, 0),
                "share": shared.get(script, 0) / count,
            }
            for script, count in count_scripts(match.target).items()
        ],
        "markers": _markers(match),
        "special_tokens": [
            {
                "id": token.id,
                "token": token.content,
                "base_tokens": [match.base.tokens[i].text for i in source.embedding] if source else [],
                "decided_by": source.reason if source else "none",
            }
            for token in match.target
            if token.kind is Kind.SPECIAL
            for source in [match.sources.get(token.id)]
        ],
    }


def _side(vocabulary: Vocabulary) -> dict[str, Any]:
    from tokensurgeon.vocab.traits import read_traits

    traits = read_traits(vocabulary)
    return {
        "path": str(vocabulary.path),
        "kind": str(vocabulary.family),
        "tokens": len(vocabulary),
        "highest id": vocabulary.bound - 1,
        "digits": traits.digits,
        "white space": str(traits.whitespace),
        "normalizer": traits.normalizer,
        "BOS before a prompt": traits.bos,
        "BOS before a chat": traits.bos_chat,
        "chat template": vocabulary.chat_template is not None,
    }


def _markers(match: VocabMatch) -> list[dict[str, Any]]:
    """Tokens with a role, and control tokens between the turns of a chat, side by side."""
    from tokensurgeon.vocab.special import chat_markers
    from tokensurgeon.vocab.vocabulary import ROLES

    sides = {"base": match.base, "target": match.target}
    roles: list[dict[str, Any]] = [
        {
            "what": role,
            **{
                side: [v.tokens[v.roles[role]].content] if role in v.roles else []
                for side, v in sides.items()
            },
        }
        for role in ROLES
    ]
    chats = {side: chat_markers(vocabulary) for side, vocabulary in sides.items()}
    for place in dict.fromkeys([*chats["base"], *chats["target"]]):
        found = {
            side: [sides[side].tokens[index].content for index in chats[side].get(place, [])]
            for side in sides
        }
        roles.append({"what": f"chat, {place}", **found})
    return [row for row in roles if row["base"] or row["target"]]


def _row(directory: Path, text: str | None, index: int | None) -> dict[str, Any]:
    from tokensurgeon.evaluation.trace import trace_row
    from tokensurgeon.vocab.lookup import find_token, token_at
    from tokensurgeon.vocab.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(directory)
    token = find_token(vocabulary, text) if text is not None else token_at(vocabulary, index or 0)
    traces = trace_row(directory, token.id)
    return {"output": str(directory), "token": _token(token), "rows": [_trace(t, vocabulary) for t in traces]}


def _token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": token.text,
        "printed": token.content,
        "bytes": token.data.hex(" "),
        "kind": str(token.kind),
        "word_start": token.word_start,
    }


def _trace(trace: RowTrace, vocabulary: Vocabulary) -> dict[str, Any]:
    from tokensurgeon.methods.registry import METHODS

    tokens = vocabulary.tokens
    return {
        **asdict(trace),
        "method_makes": METHODS[trace.method].title if trace.method in METHODS else None,
        "nearest": [
            {"id": index, "token": tokens[index].text if index in tokens else None, "cosine": cosine}
            for index, cosine in trace.nearest
        ],
    }


def _row_tables(document: dict[str, Any]) -> list[_Table]:
    token = document["token"]
    shown = {**token, "id": str(token["id"]), "text": repr(token["text"])}
    found: list[_Table] = [("Token", ["", ""], [[key.replace("_", " "), _cell(shown[key])] for key in shown])]
    for row in document["rows"]:
        name = row["tensor"]
        facts = [[key, value] for key, value in _row_facts(row).items() if value is not None]
        found += [
            (name, ["", ""], [[key, _cell(value)] for key, value in facts]),
            (
                f"{name}: largest coefficients",
                ["base id", "base token", "coefficient"],
                [[str(part["id"]), repr(part["token"]), f"{part['weight']:+.4g}"] for part in row["made_of"]],
            ),
            (
                f"{name}: nearest rows",
                ["id", "token", "cosine"],
                [
                    [
                        str(near["id"]),
                        "no token" if near["token"] is None else repr(near["token"]),
                        f"{near['cosine']:.4f}",
                    ]
                    for near in row["nearest"]
                ],
            ),
        ]
    return found


def _row_facts(row: dict[str, Any]) -> dict[str, Any]:
    method = row["method"] or ("not in the report" if row["origin"] == "made" else None)
    if row["method_makes"]:
        method = f"{method}: {row['method_makes']}"
    decided = f" ({row['decided_by']})" if row["decided_by"] else ""
    origin = "a base row, moved since: see the note" if row["origin"] == "moved" else row["origin"]
    return {
        "role": row["role"],
        "origin": origin if row["base_id"] is None else f"copy of base row {row['base_id']}{decided}",
        "method": "spelt out by the user" if method == "map" else method,
        "residual": row["residual"],
        "norm": row["norm"],
        "same rows as": row["equal_to"],
        "note": row["note"] or None,
    }


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
