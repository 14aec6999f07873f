"""The recipes that come with the tool are valid and say how to run them."""

import pytest

from tokensurgeon.errors import RecipeError
from tokensurgeon.inputs import refuse_unready
from tokensurgeon.methods.registry import METHODS, find_method
from tokensurgeon.recipe.load import load_recipe
from tokensurgeon.recipe.schema import Recipe
from tokensurgeon.recipe.shipped import describe, find_shipped, recipe_folder, shipped_recipes

FILES = sorted(path for path in recipe_folder().rglob("*.yaml") if path.parent.name != "eval")
NAMES = [path.relative_to(recipe_folder()).as_posix() for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_shipped_recipe_is_valid(path):
    assert isinstance(load_recipe(path), Recipe)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_shipped_recipe_begins_with_what_it_is_for(path):
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert len(describe(path).split()) > 3


@pytest.mark.parametrize(("path", "name"), list(zip(FILES, NAMES, strict=True)), ids=NAMES)
def test_a_shipped_recipe_names_the_command_that_runs_it(path, name):
    assert f"#   tokensurgeon run configs/{name}\n" in path.read_text(encoding="utf-8")


def test_every_method_is_reached_from_a_shipped_recipe():
    used = {params.name for path in FILES for params in load_recipe(path).all_methods}
    assert used == set(METHODS)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_shipped_recipe_brings_what_its_methods_need(path):
    recipe = load_recipe(path)
    for params in recipe.all_methods:
        refuse_unready(find_method(params.name), recipe)


def test_every_file_has_a_name_of_its_own():
    assert len(FILES) > 0
    assert sorted(shipped_recipes().values()) == FILES


def test_a_recipe_is_found_by_name():
    assert find_shipped("demo") == recipe_folder() / "demo.yaml"


def test_a_name_that_is_nearly_right_gets_a_suggestion():
    with pytest.raises(RecipeError, match=r"no shipped recipe 'demmo'[\s\S]*did you mean 'demo'\?"):
        find_shipped("demmo")


def test_any_other_name_gets_the_list():
    with pytest.raises(RecipeError, match=r"no shipped recipe 'xyzzy'\nexpected: one of .*demo") as caught:
        find_shipped("xyzzy")
    assert "did you mean" not in str(caught.value)
