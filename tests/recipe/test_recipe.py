"""A recipe is validated before anything is read, and every mistake in it is named at once."""

import pytest
from pydantic import ValidationError

from tokensurgeon.errors import RecipeError
from tokensurgeon.methods.params import GaussianParams, MeanParams, OmpParams, PiecesParams, ZeroParams
from tokensurgeon.recipe.load import build_recipe, load_recipe
from tokensurgeon.recipe.schema import AnchorRules, Auto, ModelRef, Recipe, RowMultiple

LEAST = {"base": "base-dir", "target": "target-dir", "output": "out"}


def load(tmp_path, text, *overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def errors(document, *overrides):
    """The lines of the error of a wrong document, without the heading."""
    with pytest.raises(RecipeError, match=r"recipe: \d errors?\n") as caught:
        build_recipe(document, overrides)
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"recipe: {len(lines)} error{'s' * (len(lines) > 1)}"
    return [line.strip() for line in lines]


class TestReading:
    def test_base_target_and_output_are_enough(self):
        recipe = build_recipe(LEAST)
        assert recipe.base == ModelRef(path="base-dir", revision=None)
        assert recipe.method == Auto()
        assert recipe.fallback == PiecesParams()
        assert recipe.rows == "target"
        assert recipe.runtime.seed == 0
        assert not recipe.trust_remote_code

    def test_by_default_unk_is_no_role_and_poor_anchors_are_left_out(self):
        anchors = build_recipe(LEAST).anchors
        assert "unk" not in anchors.roles
        assert set(anchors.exclude) == {
            "special",
            "reserved",
            "unreachable",
            "near_zero",
            "near_copy",
            "untrained",
        }

    def test_all_anchors_may_be_asked_for(self):
        assert build_recipe({**LEAST, "anchors": "all"}).anchors == AnchorRules(exclude=())

    def test_a_file_says_the_same_as_a_document(self, tmp_path):
        text = "base: base-dir\ntarget: target-dir\noutput: out\nmethod: {name: omp, k: 8}\n"
        assert load(tmp_path, text) == build_recipe({**LEAST, "method": {"name": "omp", "k": 8}})

    def test_a_string_is_short_for_a_path_and_for_a_methods_name(self):
        short = build_recipe({**LEAST, "method": "gaussian", "fallback": "mean"})
        long = build_recipe(
            {
                **LEAST,
                "base": {"path": "base-dir"},
                "method": {"name": "gaussian"},
                "fallback": {"name": "mean"},
            }
        )
        assert short == long
        assert (short.method, short.fallback) == (GaussianParams(), MeanParams())

    def test_parameters_without_a_name_are_those_of_the_default_method(self):
        recipe = build_recipe({**LEAST, "method": {"k": 3}, "fallback": {"decay": 0.25}})
        assert (recipe.method, recipe.fallback) == (OmpParams(k=3), PiecesParams(decay=0.25))

    @pytest.mark.parametrize(
        ("written", "read"),
        [("exact", "exact"), (49408, 49408), ({"multiple": 64}, RowMultiple(multiple=64))],
    )
    def test_rows_may_be_a_word_a_number_or_a_multiple(self, written, read):
        assert build_recipe({**LEAST, "rows": written}).rows == read

    def test_the_donor_defaults_to_the_target(self):
        reference = {"path": "org/model", "revision": "abc"}
        recipe = build_recipe({"base": "b", "output": "o", "target": reference})
        assert recipe.donor == recipe.target == ModelRef(path="org/model", revision="abc")

    def test_the_target_defaults_to_the_donor(self):
        assert build_recipe({"base": "b", "output": "o", "donor": "d"}).target == ModelRef(path="d")

    def test_donor_and_target_may_differ(self):
        recipe = build_recipe({**LEAST, "donor": "donor-dir"})
        assert (recipe.target.path, recipe.donor.path) == ("target-dir", "donor-dir")

    def test_a_recipe_cannot_be_changed(self):
        recipe = build_recipe(LEAST)
        with pytest.raises(ValidationError, match="frozen"):
            recipe.output = "elsewhere"
        with pytest.raises(ValidationError, match="frozen"):
            recipe.method.k = 1

    @pytest.mark.parametrize(
        "method", ["pieces", ["nearest", "pieces"], {"embedding": "omp", "lm_head": ["clp", {"k": 4}]}]
    )
    def test_a_recipe_survives_its_own_json(self, method):
        recipe = build_recipe({**LEAST, "rows": {"multiple": 8}, "method": method})
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


class TestMethods:
    def test_one_method_serves_both_ends(self):
        recipe = build_recipe({**LEAST, "method": "gaussian"})
        assert recipe.methods("embedding") == recipe.methods("lm_head") == (GaussianParams(),)
        assert recipe.all_methods == (GaussianParams(), PiecesParams())

    def test_a_list_is_kept_in_its_order_and_names_are_short_for_methods(self):
        recipe = build_recipe({**LEAST, "method": ["gaussian", {"name": "omp", "k": 3}, {"k": 2}]})
        assert recipe.methods("lm_head") == (GaussianParams(), OmpParams(k=3), OmpParams(k=2))

    def test_each_end_may_have_its_own(self):
        ends = {"embedding": "pieces", "lm_head": ["omp", "mean"]}
        recipe = build_recipe({**LEAST, "method": ends, "fallback": "zero"})
        assert recipe.methods("embedding") == (PiecesParams(),)
        assert recipe.methods("lm_head") == (OmpParams(), MeanParams())
        assert recipe.all_methods == (PiecesParams(), OmpParams(), MeanParams(), ZeroParams())

    def test_one_end_may_be_set_on_the_command_line(self):
        ends = {"embedding": "pieces", "lm_head": "omp"}
        recipe = build_recipe({**LEAST, "method": ends}, ["method.lm_head.k=3"])
        assert recipe.methods("lm_head") == (OmpParams(k=3),)

    @pytest.mark.parametrize(
        ("method", "line"),
        [
            (
                ["nearst"],
                "method.0.name: 'nearst'; did you mean 'nearest'? `tokensurgeon methods` lists all 31",
            ),
            ([], "method: []; expected at least one method"),
            ({"embedding": "omp"}, "method.lm_head: missing"),
            (
                {"embedding": "omp", "lm_head": "omp", "x": 1},
                "method.x: unknown key; known: embedding, lm_head",
            ),
            (
                {"embedding": {"name": "omp", "kk": 3}, "lm_head": "omp"},
                "method.embedding.kk: unknown key; did you mean 'k'?",
            ),
            (
                {"embedding": "omp", "lm_head": ["omp", {"k": 0}]},
                "method.lm_head.1.k: 0; input should be greater than or equal to 1",
            ),
        ],
    )
    def test_a_mistake_is_told_where_it_stands(self, method, line):
        assert errors({**LEAST, "method": method}) == [line]


class TestSet:
    def test_it_sets_nested_values_as_yaml(self):
        recipe = build_recipe(
            LEAST,
            [
                "method.k=32",
                "anchors.exclude=[special]",
                "anchors.map={<a>: <b>}",
                "base.revision=main",
                "verify.forward=false",
                "output=a=b",
            ],
        )
        assert recipe.method == OmpParams(k=32)
        assert recipe.anchors.exclude == ("special",)
        assert recipe.anchors.map == {"<a>": "<b>"}
        assert recipe.base == ModelRef(path="base-dir", revision="main")
        assert recipe.verify.forward is False
        assert recipe.output == "a=b"

    def test_it_leaves_the_document_and_other_values_alone(self):
        document = {**LEAST, "method": {"name": "omp", "k": 8}, "runtime": {"seed": 3}}
        recipe = build_recipe(document, ["method.tolerance=0.5", "runtime.batch_size=7"])
        assert recipe.method == OmpParams(k=8, tolerance=0.5)
        assert (recipe.runtime.seed, recipe.runtime.batch_size) == (3, 7)
        assert document == {**LEAST, "method": {"name": "omp", "k": 8}, "runtime": {"seed": 3}}

    def test_the_last_one_wins(self):
        assert build_recipe(LEAST, ["method.k=1", "method.k=2"]).method == OmpParams(k=2)

    def test_a_shorthand_opens_up(self):
        recipe = build_recipe({**LEAST, "method": "gaussian"}, ["method.scale=0.5"])
        assert recipe.method == GaussianParams(scale=0.5)

    def test_a_word_gives_way_to_a_multiple(self):
        assert build_recipe({**LEAST, "rows": "exact"}, ["rows.multiple=64"]).rows == RowMultiple(multiple=64)

    def test_a_method_may_be_exchanged(self):
        document = {**LEAST, "method": {"name": "omp", "k": 8}}
        assert build_recipe(document, ["method=mean"]).method == MeanParams()

    def test_it_is_applied_to_a_file(self, tmp_path):
        text = "base: b\ntarget: t\noutput: o\n"
        assert load(tmp_path, text, "method.k=5").method == OmpParams(k=5)

    @pytest.mark.parametrize("override", ["method.k", "=3"])
    def test_without_key_or_value_it_is_refused(self, override):
        with pytest.raises(RecipeError, match=rf"--set {override}\nexpected: dotted\.key=value"):
            build_recipe(LEAST, [override])

    def test_a_broken_value_is_refused(self):
        with pytest.raises(RecipeError, match=r"--set anchors\.exclude=\[special: while parsing"):
            build_recipe(LEAST, ["anchors.exclude=[special"])

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("anchors.exclude.0=special", r"anchors\.exclude is \['special'\]"),
            ("runtime.seed.x=1", r"runtime\.seed is 4"),
        ],
    )
    def test_a_path_through_a_plain_value_is_refused(self, override, said):
        document = {**LEAST, "anchors": {"exclude": ["special"]}, "runtime": {"seed": 4}}
        with pytest.raises(RecipeError, match=rf"--set .*: {said}"):
            build_recipe(document, [override])

    def test_an_unknown_key_is_refused_like_in_a_file(self):
        assert errors(LEAST, "metod.k=3") == ["metod: unknown key; did you mean 'method'?"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("extra", "line"),
        [
            ({"trust_remote_cod": True}, "trust_remote_cod: unknown key; did you mean 'trust_remote_code'?"),
            ({"anchors": {"exclud": []}}, "anchors.exclud: unknown key; did you mean 'exclude'?"),
            (
                {"method": {"name": "omp", "tolerence": 0}},
                "method.tolerence: unknown key; did you mean 'tolerance'?",
            ),
            ({"base": {"path": "x", "revison": "y"}}, "base.revison: unknown key; did you mean 'revision'?"),
            ({"report": {"zzz": 1}}, "report.zzz: unknown key; known: texts, max_bytes, hidden"),
            (
                {"method": {"name": "gaussian", "k": 3}},
                "method.k: unknown key; known: name, covariance, scale",
            ),
            (
                {"method": {"name": "omp", "omp": 3}},
                "method.omp: unknown key; known: name, k, tolerance, normalize_atoms, mode",
            ),
        ],
    )
    def test_an_unknown_key_is_named_with_the_nearest_known_one(self, extra, line):
        assert errors({**LEAST, **extra}) == [line]

    def test_an_unknown_method_is_named_with_the_nearest_known_one(self):
        (line,) = errors({**LEAST, "method": "gausian"})
        assert line == (
            "method.name: 'gausian'; did you mean 'gaussian'? `tokensurgeon methods` lists all 31"
        )
        (line,) = errors({**LEAST, "fallback": {"name": "nothing-like-it"}})
        assert line == "fallback.name: 'nothing-like-it'; `tokensurgeon methods` lists all 31"

    def test_all_mistakes_are_told_at_once(self):
        lines = errors(
            {
                "bas": "b",
                "target": "t",
                "output": "",
                "method": {"k": 0, "tolerance": 1},
                "runtime": {"seed": -1, "batch_size": "many"},
                "anchors": {"roles": ["boss"], "map": {"<a>": 7}},
            }
        )
        assert sorted(line.partition(":")[0] for line in lines) == [
            "anchors.map.<a>",
            "anchors.roles.0",
            "bas",
            "base",
            "method.k",
            "method.tolerance",
            "output",
            "runtime.batch_size",
            "runtime.seed",
        ]
        assert "base: missing" in lines
        assert "runtime.seed: -1; input should be greater than or equal to 0" in lines

    @pytest.mark.parametrize("given", ["target", "donor"])
    def test_a_wrong_reference_is_told_once_under_the_name_that_was_used(self, given):
        (line,) = errors({"base": "b", "output": "o", given: 5})
        assert line.startswith(f"{given}: 5; ")

    def test_without_donor_and_target_the_target_is_missing(self):
        assert errors({"base": "b", "output": "o"}) == ["target: missing"]

    @pytest.mark.parametrize("rows", ["all", {"multipl": 64}, {"multiple": 0}, 1.5, [64]])
    def test_wrong_rows_are_one_line_that_tells_what_is_possible(self, rows):
        assert errors({**LEAST, "rows": rows}) == [
            f"rows: {rows!r}; expected target, exact, a number, or multiple: N"
        ]

    def test_another_schema_version_is_refused(self):
        (line,) = errors({**LEAST, "schema_version": 2})
        assert line == "schema_version: 2; input should be 1"


class TestFiles:
    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(RecipeError, match=r"nowhere\.yaml: .*No such file[\s\S]*a recipe file"):
            load_recipe(tmp_path / "nowhere.yaml")

    def test_a_directory_is_no_recipe(self, tmp_path):
        with pytest.raises(RecipeError, match="Is a directory"):
            load_recipe(tmp_path)

    def test_a_file_that_is_no_text_is_no_recipe(self, tmp_path):
        (tmp_path / "model.bin").write_bytes(b"\x80\x02}q\x00")
        with pytest.raises(RecipeError, match=r"model\.bin: 'utf-8' codec"):
            load_recipe(tmp_path / "model.bin")

    @pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("word", "str"), ("", "NoneType")])
    def test_a_root_that_is_no_mapping_is_refused(self, tmp_path, text, kind):
        with pytest.raises(RecipeError, match=rf"recipe\.yaml: {kind}\nexpected: a mapping with base"):
            load(tmp_path, text)

    def test_broken_yaml_is_named_with_its_line(self, tmp_path):
        with pytest.raises(RecipeError, match=r"recipe\.yaml: [\s\S]*line 2, column"):
            load(tmp_path, "base: b\ntarget: [t\noutput: o\n")

    @pytest.mark.parametrize(
        ("text", "key"),
        [("base: a\ntarget: t\nbase: b\n", "base"), ("base: b\nmethod:\n  k: 1\n  k: 2\n", "k")],
    )
    def test_a_key_that_is_given_twice_is_refused(self, tmp_path, text, key):
        with pytest.raises(RecipeError, match=rf"key '{key}' is given twice[\s\S]*line [34]"):
            load(tmp_path, text)

    def test_a_key_that_is_given_twice_on_the_command_line_is_refused(self):
        with pytest.raises(RecipeError, match="key 'a' is given twice"):
            build_recipe(LEAST, ["anchors.map={a: x, a: y}"])

    def test_a_key_that_is_no_plain_value_is_refused(self, tmp_path):
        # What an unfilled template leaves behind.
        with pytest.raises(RecipeError, match=r"key \{'model': None\} is no plain value[\s\S]*line 1"):
            load(tmp_path, "base: {{model}}\ntarget: t\noutput: o\n")

    def test_yaml_merge_keys_work_and_may_be_overridden(self, tmp_path):
        text = "target: &t {path: x, revision: a}\nbase:\n  <<: *t\n  revision: b\noutput: o\n"
        assert load(tmp_path, text).base == ModelRef(path="x", revision="b")

    @pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.system", "!custom"])
    def test_yaml_tags_run_nothing(self, tmp_path, tag):
        with pytest.raises(RecipeError, match="could not determine a constructor"):
            load(tmp_path, f"base: {tag} [{tmp_path / 'made'}]\ntarget: t\noutput: o\n")
        with pytest.raises(RecipeError, match="could not determine a constructor"):
            build_recipe(LEAST, [f"base={tag} [{tmp_path / 'made'}]"])
        assert not (tmp_path / "made").exists()
