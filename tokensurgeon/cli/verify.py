"""``tokensurgeon verify``: check any checkpoint directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokensurgeon import console
from tokensurgeon.errors import VerificationError


def verify(
    directory: Annotated[Path, typer.Argument(help="A checkpoint directory.")],
    forward: Annotated[bool, typer.Option(help="Load the model in a fresh process and run it.")] = True,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    allow_reader_mismatch: Annotated[
        bool, typer.Option("--allow-reader-mismatch", help="Only warn when AutoTokenizer reads other ids.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
) -> None:
    """Check a checkpoint: headers, rows, ids, tokenizer as read back, forward pass.

    An output of tokensurgeon is also compared with its provenance.json: body bytes, copied rows,
    tokenizer files and probe ids. Exits 5 when a check fails.

    \b
    Examples:
      tokensurgeon verify out/
      tokensurgeon verify out/ --no-forward --json
    """  # noqa: D301 - click wants the character, not its name
    from tokensurgeon.checkpoint.verify import verify_checkpoint

    result = verify_checkpoint(
        directory,
        forward=forward,
        trust_remote_code=trust_remote_code,
        allow_reader_mismatch=allow_reader_mismatch,
    )
    failed = [check for check in result.checks if not check.passed]
    if as_json:
        console.print_json(
            {
                "schema_version": 1,
                "ok": result.passed,
                "exit_code": 0 if result.passed else VerificationError.exit_code,
                "error": None,
                "checks": [vars(check) for check in result.checks],
                "warnings": [{"code": n.code, "text": n.text} for n in result.notices],
            }
        )
        if failed:
            raise typer.Exit(VerificationError.exit_code)
        return
    console.print_table(
        f"{directory}",
        ["check", "", "seen"],
        [[check.name, "passed" if check.passed else "FAILED", check.detail] for check in result.checks],
    )
    for notice in result.notices:
        console.print_result(f"warning {notice.code}: {notice.text}")
    if failed:
        raise VerificationError(
            f"{directory}: {len(failed)} of {len(result.checks)} checks failed", "all checks to hold"
        )
