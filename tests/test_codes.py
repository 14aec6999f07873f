"""Every code that a warning or an error can have is explained, and no other."""

from __future__ import annotations

import ast
import difflib
import re
from pathlib import Path

import pytest

import tokensurgeon
from tokensurgeon import errors
from tokensurgeon.codes import CODES, find_code
from tokensurgeon.errors import RecipeError, TokensurgeonError

PACKAGE = Path(tokensurgeon.__file__).parent


def emitted_warnings() -> set[str]:
    """First arguments of every ``Notice(...)`` in the package that makes a warning."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "report":
            continue  # its Notice is what the report holds, not what is found
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Notice":
                code = node.args[0]
                assert isinstance(code, ast.Constant), f"{path}: a code that is no constant"
                found.add(code.value)
    return found


def test_every_warning_is_explained_and_every_explained_warning_is_emitted():
    assert emitted_warnings() == {code for code in CODES if code.startswith("TS")}


def test_every_error_has_a_code_of_its_own_that_is_explained():
    classes = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, TokensurgeonError)
    ]
    assert len(classes) >= 7
    assert {kind.code for kind in classes} == {code for code in CODES if code.startswith("TE")}
    assert all(kind.code == f"TE{kind.exit_code}" for kind in classes)


@pytest.mark.parametrize("code", CODES)
def test_an_explanation_has_a_title_a_meaning_and_a_remedy(code):
    told = CODES[code]
    assert re.fullmatch(r"TS\d{3}|TE\d+", code)
    assert not told.title.endswith(".")
    assert told.meaning.endswith(".") and told.remedy.endswith(".")
    assert len({told.title, told.meaning, told.remedy}) == 3


def test_options_and_keys_that_remedies_name_exist():
    from tokensurgeon.recipe.schema import Recipe

    keys = set(Recipe.model_fields)
    dotted = {name for told in CODES.values() for name in re.findall(r"\b([a-z_]+)\.[a-z_]+\b", told.remedy)}
    assert dotted
    assert dotted - {"tokenizer"} <= keys


def test_explain_tells_a_code_in_any_case_and_lists_all(call):
    code, out, _ = call("--explain", "ts017")
    assert code == 0
    assert out.startswith(f"TS017: {CODES['TS017'].title}\n")
    assert CODES["TS017"].remedy in out
    code, out, _ = call("--explain", "all")
    assert code == 0
    assert all(code in out for code in CODES)


def test_an_unknown_code_is_met_with_the_nearest(call):
    code, _, err = call("--explain", "TS17")
    assert code == 2
    near = difflib.get_close_matches("TS17", CODES, n=1)[0]
    assert f"did you mean {near!r}?" in err
    with pytest.raises(RecipeError, match="explain all"):
        find_code("nonsense")


def test_an_error_is_printed_with_its_code(call):
    code, _, err = call("report", "/nowhere/at/all")
    assert (code, err.split(":")[0]) == (3, "error TE3")
