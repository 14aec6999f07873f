"""``tokensurgeon inspect``: what two tokenizers share, and where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console

if TYPE_CHECKING:
    from tokensurgeon.vocab.match import VocabMatch


def inspect(
    target: Annotated[Path, typer.Argument(help="Directory of the tokenizer a model would be given.")],
    base: Annotated[Path, typer.Argument(help="Directory of the tokenizer it has.")],
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="Cut this file with both, line by line; repeatable."),
    ] = None,
    unreachable: Annotated[
        bool, typer.Option("--unreachable", help="List the target's tokens that plain text never leads to.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
) -> None:
    """Compare two tokenizers: overlap by script, special tokens, digit splitting, how they cut a text.

    \b
    Examples:
      tokensurgeon inspect SmolLM2-135M/ gemma-3-270m/
      tokensurgeon inspect new/ old/ --text corpus.txt --unreachable --json
    """  # noqa: D301 - click wants the character, not its name
    from tokensurgeon.vocab.match import match_vocabularies
    from tokensurgeon.vocab.vocabulary import load_vocabulary

    match = match_vocabularies(load_vocabulary(target), load_vocabulary(base))
    facts = _facts(match)
    if text:
        facts["texts"] = _cut_texts(match, text)
    if unreachable:
        facts["unreachable"] = _find_unreachable(match)
    if as_json:
        console.print_json({"schema_version": 1, **facts})
        return
    console.print_table(
        "Tokenizers",
        ["", "target", "base"],
        [[key, str(facts["target"][key]), str(facts["base"][key])] for key in facts["target"]],
    )
    console.print_result(
        f"\n{facts['byte_equal']} of {facts['target']['tokens']} target tokens are in the base by bytes, "
        f"{facts['missing']} are not\n"
    )
    console.print_table(
        "Overlap by script",
        ["script", "target tokens", "in the base", "share"],
        [
            [row["script"], str(row["tokens"]), str(row["shared"]), f"{row['shared'] / row['tokens']:.1%}"]
            for row in facts["scripts"]
        ],
    )
    if text:
        console.print_result("")
        console.print_table(
            "Texts", ["", ""], [[key.replace("_", " "), str(value)] for key, value in facts["texts"].items()]
        )
    if unreachable:
        console.print_result("")
        console.print_table(
            "Tokens that plain text never leads to",
            ["id", "token"],
            [[str(row["id"]), row["token"]] for row in facts["unreachable"]],
        )
    console.print_result("")
    console.print_table(
        "Special tokens of the target",
        ["id", "token", "base tokens", "decided by"],
        [
            [str(row["id"]), row["token"], " ".join(row["base_tokens"]), row["decided_by"]]
            for row in facts["special_tokens"]
        ],
    )


def _cut_texts(match: VocabMatch, paths: list[Path]) -> dict[str, Any]:
    from tokensurgeon.edits.lossless import compare
    from tokensurgeon.evaluation.texts import read_texts

    origins = {
        index: source.embedding[0] for index, source in match.sources.items() if len(source.embedding) == 1
    }
    cut = compare(match.base, match.target, origins, read_texts(paths))
    return {
        "lines": cut.lines,
        "share_of_lines_cut_otherwise": cut.changed_lines,
        "share_of_bytes_in_other_tokens": cut.changed_bytes,
        "lines_cut_otherwise_though_all_their_tokens_are_shared": cut.broken,
        "bytes_per_token_base": cut.bytes_per_token[0],
        "bytes_per_token_target": cut.bytes_per_token[1],
    }


def _find_unreachable(match: VocabMatch) -> list[dict[str, Any]]:
    from tokensurgeon.edits.lossless import unreachable

    return [{"id": index, "token": match.target.tokens[index].content} for index in unreachable(match.target)]


def _facts(match: VocabMatch) -> dict[str, Any]:
    from tokensurgeon.vocab.canonical import Kind
    from tokensurgeon.vocab.digits import digit_scheme
    from tokensurgeon.vocab.scripts import count_scripts

    sides = {
        side: {
            "path": str(vocabulary.path),
            "kind": str(vocabulary.family),
            "tokens": len(vocabulary),
            "highest id": vocabulary.bound - 1,
            "digits": digit_scheme(vocabulary),
            "chat template": vocabulary.chat_template is not None,
        }
        for side, vocabulary in (("target", match.target), ("base", match.base))
    }
    shared = count_scripts(match.target.tokens[index] for index in match.sources)
    return {
        **sides,
        "byte_equal": len(match.byte_equal),
        "missing": len(match.missing),
        "scripts": [
            {"script": script, "tokens": count, "shared": shared.get(script, 0)}
            for script, count in count_scripts(match.target).items()
        ],
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
