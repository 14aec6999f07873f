"""The ``tokensurgeon`` command: verbs, exit codes, and the one place where errors become text."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from tokensurgeon import __version__, console
from tokensurgeon.cli import (
    apply_to_finetune as apply_to_finetune_verb,
)
from tokensurgeon.cli import (
    calibrate as calibrate_verb,
)
from tokensurgeon.cli import (
    check_draft as check_draft_verb,
)
from tokensurgeon.cli import (
    eval as eval_verb,
)
from tokensurgeon.cli import (
    extend as extend_verb,
)
from tokensurgeon.cli import (
    heal as heal_verb,
)
from tokensurgeon.cli import (
    inspect as inspect_verb,
)
from tokensurgeon.cli import (
    merge as merge_verb,
)
from tokensurgeon.cli import (
    methods as methods_verb,
)
from tokensurgeon.cli import (
    plan as plan_verb,
)
from tokensurgeon.cli import (
    push as push_verb,
)
from tokensurgeon.cli import (
    recipes as recipes_verb,
)
from tokensurgeon.cli import (
    remap_ids as remap_ids_verb,
)
from tokensurgeon.cli import (
    report as report_verb,
)
from tokensurgeon.cli import (
    run as run_verb,
)
from tokensurgeon.cli import (
    supertokens as supertokens_verb,
)
from tokensurgeon.cli import (
    train_tokenizer as train_tokenizer_verb,
)
from tokensurgeon.cli import (
    transplant as transplant_verb,
)
from tokensurgeon.cli import (
    trim as trim_verb,
)
from tokensurgeon.cli import (
    verify as verify_verb,
)
from tokensurgeon.cli.complete import complete_code
from tokensurgeon.codes import CODES, find_code
from tokensurgeon.errors import InterruptError, RecipeError, TokensurgeonError

app = typer.Typer(
    name="tokensurgeon",
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("run")(run_verb.run_recipe)
app.command("transplant")(transplant_verb.transplant)
app.command("heal")(heal_verb.heal)
app.command("apply-to-finetune")(apply_to_finetune_verb.apply_to_finetune)
app.command("trim")(trim_verb.trim)
app.command("extend")(extend_verb.extend)
app.command("supertokens")(supertokens_verb.supertokens)
app.command("merge")(merge_verb.merge)
app.command("train-tokenizer")(train_tokenizer_verb.train_tokenizer)
app.command("remap-ids")(remap_ids_verb.remap_ids)
app.command("plan")(plan_verb.show_plan)
app.command("verify")(verify_verb.verify)
app.command("calibrate")(calibrate_verb.calibrate)
app.command("check-draft")(check_draft_verb.check_draft)
app.command("eval")(eval_verb.eval_models)
app.command("inspect")(inspect_verb.inspect)
app.command("methods")(methods_verb.list_methods)
app.command("recipes")(recipes_verb.recipes)
app.command("report")(report_verb.show_report)
app.command("push")(push_verb.push)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print_result(f"tokensurgeon {__version__}")
        raise typer.Exit


def _explain(name: str | None) -> None:
    if name is None:
        return
    if name == "all":
        console.print_table("Codes", ["code", "title"], [[code, told.title] for code, told in CODES.items()])
    else:
        code = find_code(name)
        told = CODES[code]
        console.print_result(f"{code}: {told.title}\n\n{told.meaning}\n\nWhat to do: {told.remedy}")
    raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="CODE",
            callback=_explain,
            is_eager=True,
            autocompletion=complete_code,
            help="Tell what a code such as TS017 means and what to do; `all` lists them.",
        ),
    ] = None,
) -> None:
    """Give a Hugging Face checkpoint another tokenizer, and prove what it cost.

    Exit codes: 0 done and verified, 1 bug, 2 usage or recipe, 3 bad input, 4 refused by policy,
    5 verification failed, 6 resources, 130 interrupted.
    """
    console.setup_logging(quiet)
    if context.invoked_subcommand is None:
        console.print_result(context.get_help())


def main() -> None:
    """Run the command line and exit with the documented code.

    Raises:
        Exception: A bug; its traceback is for the report of it.
    """
    console.claim_stdout()
    try:
        code = typer.main.get_command(app).main(standalone_mode=False)
    except TokensurgeonError as error:
        code = _fail(error)
    except TyperException as error:
        code = _fail(_usage_error(error))
    except (KeyboardInterrupt, typer.Abort):
        code = InterruptError.exit_code
    except Exception as error:
        _print_failure(TokensurgeonError(f"{type(error).__name__}: {error}"), type(error).__name__)
        raise
    if code == InterruptError.exit_code:  # also what typer makes of Ctrl-C inside a verb
        code = _fail(InterruptError("interrupted; nothing was written"))
    sys.exit(code or 0)


def _usage_error(error: TyperException) -> RecipeError:
    """What typer says of a command line, with the nearest option and the help of the right verb."""
    near = getattr(error, "possibilities", None)
    context = getattr(error, "ctx", None)
    verb = f" {context.info_name}" if context is not None and context.parent is not None else ""
    hint = f"did you mean {near[0]}? " if near else ""
    found = error.message if near else error.format_message()
    return RecipeError(found, next_step=f"{hint}see `tokensurgeon{verb} --help`")


def _fail(error: TokensurgeonError) -> int:
    console.print_error(error.code, str(error))
    _print_failure(error, type(error).__name__)
    return error.exit_code


def _print_failure(error: TokensurgeonError, kind: str) -> None:
    """The one document of a command that failed, where one was asked for."""
    if "--json" not in sys.argv:
        return
    told: dict[str, Any] = {"code": error.code, "type": kind, "found": error.found}
    told |= {"expected": error.expected, "next_step": error.next_step}
    console.print_json({"schema_version": 1, "ok": False, "exit_code": error.exit_code, "error": told})
