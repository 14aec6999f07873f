"""``tokensurgeon push``: a verified output to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokensurgeon import console
from tokensurgeon.cli.run import DONE, Json
from tokensurgeon.errors import VerificationError


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An output of tokensurgeon.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="owner/name on the hub; made if there is none.")
    ],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    as_json: Json = False,
) -> None:
    """Upload an output to the Hugging Face hub, private unless told otherwise.

    Its report must say that verification passed, and the files are checked against provenance.json once
    more first; the model is not loaded again. Needs a login that may write: `hf auth login`, or HF_TOKEN.

    \b
    Examples:
      tokensurgeon push out/ me/gemma-3-270m-smollm2-tokens
      tokensurgeon push out/ me/gemma-3-270m-smollm2-tokens --public
    """  # noqa: D301 - click wants the character, not its name
    from tokensurgeon.checkpoint.hub import push_directory
    from tokensurgeon.checkpoint.verify import verify_checkpoint
    from tokensurgeon.report.model import load_report
    from tokensurgeon.report.summary import checks_sentence

    report = load_report(directory)
    if not (report.checks and report.passed):
        raise VerificationError(
            f"{directory}: {checks_sentence(report)}", "a verified output", f"tokensurgeon verify {directory}"
        )
    again = verify_checkpoint(
        directory,
        forward=False,
        trust_remote_code=trust_remote_code,
        allow_reader_mismatch=bool(report.recipe.get("verify", {}).get("allow_reader_mismatch")),
    )
    failed = [check for check in again.checks if not check.passed]
    if failed:
        raise VerificationError(
            "\n".join(f"{directory}: {check.name}: {check.detail}" for check in failed),
            "files as they were written",
            "make the output again; nothing was uploaded",
        )
    paths = [model.source for model in report.inputs if model.source.startswith(("/", "~"))]
    if paths:
        console.logger.warning(
            "The model card and the report name paths of this machine, such as %s", paths[0]
        )
    message = message or f"Output of tokensurgeon {report.tool_version}"
    address = push_directory(directory, repository, public=public, message=message)
    if as_json:
        console.print_json({**DONE, "url": address, "public": public})
    else:
        console.print_result(address)
