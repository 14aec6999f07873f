"""``method: auto`` takes what costs the base least on hidden anchors, and says what else it tried."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from tokensurgeon.choice import HEAD_FIT, Tried, choose_method, mark_chosen, settle
from tokensurgeon.errors import InputError, RecipeError
from tokensurgeon.lessons import judging_texts
from tokensurgeon.methods.params import (
    AffknnParams,
    AffmixParams,
    MeanParams,
    OmpParams,
    PieceRegressionParams,
    PiecesParams,
)
from tokensurgeon.methods.registry import find_method
from tokensurgeon.pipeline import find_resources, run
from tokensurgeon.plan import make_plan
from tokensurgeon.reading import score_written
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.recipe.schema import Auto, PerEnd

CANDIDATES = ["mean", {"name": "affomp", "k": 2}, "affknn"]


@pytest.fixture(scope="module")
def document(make_model, sentencepiece, byte_level):
    bases = {kind: str(make_model(kind, sentencepiece)) for kind in ("llama", "llama-tied")}
    donor = str(make_model("llama", byte_level, seed=1))

    def document(kind="llama-tied", **changes):
        return {
            "base": bases[kind],
            "donor": donor,
            "output": "nowhere",
            "anchors": {"minimum": 8},
            "method": {"name": "auto", "candidates": CANDIDATES},
            **changes,
        }

    return document


@pytest.fixture(scope="module")
def choose(document):
    def choose(kind):
        plan = make_plan(build_recipe(document(kind)))
        return choose_method(plan, find_resources(plan))

    return choose


@pytest.mark.parametrize(("kind", "ends"), [("llama-tied", ["both"]), ("llama", ["embedding", "lm_head"])])
def test_the_first_candidate_as_good_as_the_best_is_chosen_for_each_end(choose, kind, ends):
    choice = choose(kind)
    assert sorted({tried.ends for tried in choice.tried}) == ends
    for end in ends:
        tried = [tried for tried in choice.tried if tried.ends == end]
        assert [tried.method.name for tried in tried] == ["mean", "affomp", "affknn"]
        (chosen,) = (tried for tried in tried if tried.chosen)
        assert choice.chosen(end) is chosen
        bits = [min(tried.bits.values()) for tried in tried]
        assert chosen is next(one for one, read in zip(tried, bits, strict=True) if read <= 1.002 * min(bits))
        assert set(chosen.bits) == ({1.0} if end == "embedding" else {1.0, 1.1})


class TestMark:
    """Which candidate is taken, by the bits per byte that the base reads with its rows."""

    @staticmethod
    def choose(**bits):
        """The method chosen of some named in their order."""
        tried = [
            Tried(find_method(name).params(), "both", 1.0, {1.0: 9.0, 1.1: read})
            for name, read in bits.items()
        ]
        marked = mark_chosen(tried)
        assert [replace(one, chosen=False) for one in marked] == tried
        (chosen,) = (one.method.name for one in marked if one.chosen)
        return chosen

    def test_the_best_is_taken(self):
        assert self.choose(affomp=1.2, affknn=1.1, mean=1.3) == "affknn"

    def test_of_those_that_are_as_good_as_the_best_the_first_is(self):
        assert self.choose(affomp=1.1021, affknn=1.1008, mean=1.1) == "affomp"
        assert self.choose(affomp=1.1023, affknn=1.1021, mean=1.1) == "affknn"
        assert self.choose(affknn=1.1, affomp=1.1, omp=1.1) == "affknn"

    @pytest.mark.parametrize("plain", ["omp", "pieces"])
    def test_nothing_is_taken_that_came_out_worse_than_a_plain_method(self, plain):
        assert self.choose(affomp=1.1008, **{plain: 1.1}) == plain
        assert self.choose(affomp=1.1008, affknn=1.1004, **{plain: 1.1005}) == "affknn"

    def test_each_end_is_asked_by_itself(self):
        bits = {
            ("mean", "embedding"): 1,
            ("mean", "lm_head"): 4,
            ("affknn", "embedding"): 2,
            ("affknn", "lm_head"): 3,
        }
        tried = [
            Tried(find_method(name).params(), ends, 1.0, {1.0: read}) for (name, ends), read in bits.items()
        ]
        chosen = [(one.method.name, one.ends) for one in mark_chosen(tried) if one.chosen]
        assert chosen == [("mean", "embedding"), ("affknn", "lm_head")]


def test_the_same_seed_chooses_the_same(choose):
    assert choose("llama-tied") == choose("llama-tied")


def test_rows_error_tells_methods_apart_and_true_rows_cost_nothing(choose):
    choice = choose("llama-tied")
    mean = next(tried for tried in choice.tried if tried.method == MeanParams())
    assert mean.row_error == pytest.approx(1.0, abs=0.1)
    assert len({tried.row_error for tried in choice.tried}) == 3
    assert choice.base_bits > 0
    assert choice.bytes > 0


def test_a_settled_recipe_names_what_was_chosen(choose, document):
    for kind in ("llama-tied", "llama"):
        choice, recipe = choose(kind), build_recipe(document(kind))
        settled = settle(recipe, choice)
        chosen = {tried.ends: tried.method for tried in choice.tried if tried.chosen}
        if kind == "llama" and chosen["embedding"] != chosen["lm_head"]:
            assert settled.method == PerEnd(embedding=chosen["embedding"], lm_head=chosen["lm_head"])
        else:
            assert settled.method in chosen.values()
        assert settled.new_rows.head_scale == "auto"
        assert settled.new_rows.head_fit == HEAD_FIT
        assert settled.new_rows.unigrams


def test_what_the_recipe_says_of_new_rows_is_kept(choose, document):
    choice = choose("llama-tied")
    recipe = build_recipe(document(new_rows={"head_scale": 1.05, "norm": "match"}))
    rules = settle(recipe, choice).new_rows
    assert (rules.head_scale, rules.head_fit, rules.norm) == (1.05, HEAD_FIT, "match")
    rules = settle(build_recipe(document(new_rows={"head_fit": 0, "unigrams": False})), choice).new_rows
    assert (rules.head_fit, rules.unigrams) == (0, False)


def test_auto_may_be_written_in_one_word(document):
    recipe = build_recipe(document(method="auto"))
    assert recipe.method == Auto()
    assert {OmpParams(), AffmixParams(), AffknnParams()} < set(recipe.all_methods)


def test_without_calibration_the_first_candidate_is_taken_and_the_base_is_not_run(
    document, tmp_path, monkeypatch
):
    monkeypatch.setattr("tokensurgeon.evaluation.loading.load_model", None)
    rules = {"name": "auto", "calibrate": False}
    auto = run(build_recipe(document(method=rules, output=str(tmp_path / "auto")))).report
    named = run(build_recipe(document(method="affmix", output=str(tmp_path / "named")))).report
    assert auto.choice is None
    assert auto.recipe == named.recipe
    assert _weights(tmp_path / "auto") == _weights(tmp_path / "named")


def test_the_report_tells_what_was_tried_and_its_recipe_gives_the_same_rows(document, tmp_path):
    report = run(build_recipe(document(output=str(tmp_path / "auto")))).report
    assert report.choice is not None
    assert [tried.method for tried in report.choice.tried] == ["mean", "affomp", "affknn"]
    changes = report.choice.recipe
    assert isinstance(changes["new_rows"]["head_scale"], float)
    again = run(build_recipe(document(output=str(tmp_path / "again")) | changes)).report
    assert again.choice is None
    assert _weights(tmp_path / "auto") == _weights(tmp_path / "again")
    page = (tmp_path / "auto" / "report.html").read_text(encoding="utf-8")
    assert "How the method was chosen" in page
    assert "How the method was chosen" not in (tmp_path / "again/report.html").read_text(encoding="utf-8")


class TestMinutes:
    """What ``method.minutes`` leaves time for."""

    def test_when_they_are_over_the_first_candidate_is_taken_and_no_row_is_fitted(self, document, tmp_path):
        rules = {"name": "auto", "candidates": CANDIDATES, "minutes": 1e-6}
        report = run(build_recipe(document(method=rules, output=str(tmp_path / "auto")))).report
        assert [tried.method for tried in report.choice.tried] == ["mean"]
        (warning,) = (w for w in report.warnings if w.code == "TS027")
        assert warning.text.endswith(": affomp, affknn left out, time to fit rows to 0 texts, not 240")
        changes = report.choice.recipe
        assert changes["new_rows"]["head_fit"] == 0
        again = run(build_recipe(document(output=str(tmp_path / "again")) | changes)).report
        assert not [w for w in again.warnings if w.code == "TS027"]
        assert _weights(tmp_path / "auto") == _weights(tmp_path / "again")

    @pytest.fixture
    def choose(self, document, monkeypatch):
        """Choose by a clock on which texts take 24 seconds to write and one to read."""
        now = 0.0

        def slow(work, seconds):
            def slowed(*arguments):
                nonlocal now
                now += seconds
                return work(*arguments)

            return slowed

        monkeypatch.setattr("tokensurgeon.choice.time", SimpleNamespace(monotonic=lambda: now))
        monkeypatch.setattr("tokensurgeon.choice.judging_texts", slow(judging_texts, 24))
        monkeypatch.setattr("tokensurgeon.choice.score_written", slow(score_written, 1))

        def choose(minutes, **rules):
            recipe = build_recipe(
                document(method={"name": "auto", "candidates": CANDIDATES, "minutes": minutes}, **rules)
            )
            plan = make_plan(recipe)
            found = choose_method(plan, find_resources(plan))
            return found, settle(recipe, found).new_rows

        return choose

    def test_rows_are_fitted_to_as_many_texts_as_what_is_left_allows(self, choose):
        # Of two minutes 31 seconds are gone, 18 go to judges; a text and its eight readings take 32 / 24.
        found, rules = choose(2)
        assert found.untried == []
        assert rules.head_texts == found.lessons == int((120 - 31 - 18) * 24 / 32)
        assert rules.head_fit == HEAD_FIT

    def test_they_never_ask_for_more_text_than_the_recipe(self, choose):
        found, rules = choose(60, new_rows={"head_texts": 100})
        assert found.lessons > 100
        assert rules.head_texts == 100

    def test_too_few_texts_are_none(self, choose):
        found, rules = choose(1, new_rows={"norm": "match"})
        assert (len(found.tried), found.lessons) == (3, 0)
        assert (rules.head_fit, rules.norm) == (0, "match")
        assert rules.head_scale == found.chosen("both").best

    def test_without_a_limit_all_are_tried_and_the_recipe_says_how_much_text(self, choose):
        found, rules = choose(None)
        assert (found.lessons, rules.head_texts) == (None, 240)


@pytest.mark.parametrize(
    "rules",
    [
        {"candidates": []},
        {"share": 0},
        {"share": 1},
        {"candidates": ["nosuch"]},
        {"budget": 3},
        {"minutes": 0},
    ],
)
def test_senseless_rules_are_refused(document, rules):
    with pytest.raises(RecipeError):
        build_recipe(document(method={"name": "auto", **rules}))


def _weights(directory):
    return {name: rows.tolist() for name, rows in load_file(directory / "model.safetensors").items()}


class TestDefault:
    def test_a_recipe_that_names_no_method_lets_auto_choose(self, document):
        recipe = build_recipe({key: value for key, value in document().items() if key != "method"})
        assert recipe.method == Auto()
        assert recipe.runs_base

    def test_without_weights_of_a_donor_the_candidates_need_none(self, document, byte_level):
        plan = make_plan(build_recipe(document(donor=str(byte_level), method="auto")))
        assert plan.recipe.methods("embedding") == (PieceRegressionParams(), PiecesParams())
        assert find_method("piece_regression").needs == find_method("pieces").needs == ()
        choice = choose_method(plan, find_resources(plan))
        assert [tried.method.name for tried in choice.tried] == ["piece_regression", "pieces"]

    def test_a_base_that_cannot_be_run_gets_the_first_candidate_and_a_warning(
        self, document, make_model, wordpiece, tmp_path
    ):
        changes = {"base": str(make_model("bert", wordpiece)), "output": str(tmp_path / "out")}
        recipe = build_recipe(document(**changes, verify={"forward": False}))
        report = run(recipe).report
        assert report.choice is None
        (warning,) = (w for w in report.warnings if w.code == "TS024")
        assert "mean as it is" in warning.text
        insisting = document(**changes, method={"name": "auto", "candidates": CANDIDATES, "calibrate": True})
        with pytest.raises(InputError, match="a causal language model"):
            make_plan(build_recipe(insisting))

    def test_so_does_a_base_that_writes_nothing(self, document, tmp_path, monkeypatch):
        def write(*_, **__):
            raise InputError("the base: writes nothing", "a model that writes text")

        monkeypatch.setattr("tokensurgeon.evaluation.sampling.sample_texts", write)
        report = run(build_recipe(document(output=str(tmp_path / "out")))).report
        assert report.choice is None
        assert any(w.code == "TS024" and "writes nothing; mean as it is" in w.text for w in report.warnings)

    def test_a_base_that_does_not_fit_into_memory_is_not_run(self, document, monkeypatch):
        monkeypatch.setattr("tokensurgeon.plan.available_memory", lambda: 1)
        plan = make_plan(build_recipe(document()))
        assert not plan.recipe.runs_base
        assert "of memory" in next(notice.detail for notice in plan.notices if notice.code == "TS024")
