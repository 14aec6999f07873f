"""The ``tokensurgeon`` command: verbs, exit codes, and the one place where errors become text."""

from __future__ import annotations

import sys
from typing import Annotated

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
from tokensurgeon.errors import RecipeError, TokensurgeonError

_INTERRUPTED = 130

app = typer.Typer(
    name="tokensurgeon",
    no_args_is_help=True,
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


@app.callback()
def _options(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Give a Hugging Face checkpoint another tokenizer, and prove what it cost.

    Exit codes: 0 done and verified, 1 bug, 2 usage or recipe, 3 bad input, 4 refused by policy,
    5 verification failed, 6 resources, 130 interrupted.
    """
    console.setup_logging(quiet)


def main() -> None:
    """Run the command line and exit with the documented code."""
    try:
        code = typer.main.get_command(app).main(standalone_mode=False)
    except TokensurgeonError as error:
        code = _fail(error)
    except TyperException as error:
        code = _fail(RecipeError(error.format_message(), next_step="see `tokensurgeon --help`"))
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # also what typer makes of Ctrl-C inside a verb
        console.print_error("interrupted; nothing was written")
    sys.exit(code or 0)


def _fail(error: TokensurgeonError) -> int:
    console.print_error(str(error))
    if "--json" in sys.argv:
        console.print_json(
            {
                "schema_version": 1,
                "ok": False,
                "exit_code": error.exit_code,
                "error": {
                    "type": type(error).__name__,
                    "found": error.found,
                    "expected": error.expected,
                    "next_step": error.next_step,
                },
            }
        )
    return error.exit_code
