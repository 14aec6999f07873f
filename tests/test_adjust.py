"""Made rows are scaled as the recipe says, and where it says auto, as the base's own writing says."""

import itertools
import re
from collections import Counter

import pytest
import torch

from tokensurgeon import adjust
from tokensurgeon.adjust import climb
from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.expectation import MADE
from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.loading import load_model, load_tokenizer
from tokensurgeon.evaluation.sampling import Allowed, sample_texts
from tokensurgeon.evaluation.trace import trace_row
from tokensurgeon.evaluation.windows import find_bos
from tokensurgeon.lessons import judging_texts
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources, run
from tokensurgeon.plan import make_plan
from tokensurgeon.reading import group_by_limit, score_written
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.surgery import operate
from tokensurgeon.vocab.scripts import script_of
from tokensurgeon.vocab.vocabulary import load_vocabulary


@pytest.mark.parametrize("best", [0.65, 0.8, 1.0, 1.15, 1.2])
def test_the_walk_ends_at_the_smallest_measure(best):
    found, known = climb(lambda scale: (scale - best) ** 2)
    assert found == pytest.approx(best)
    assert known[1.0] == pytest.approx((1 - best) ** 2)
    assert len(known) < 12


def test_no_scale_is_measured_twice_and_the_walk_has_bounds():
    seen = []

    def measure(scale):
        seen.append(scale)
        return scale

    assert climb(measure)[0] == 0.5
    assert len(seen) == len(set(seen))
    assert min(seen) == 0.5
    assert climb(lambda scale: -scale)[0] == 1.5


@pytest.fixture
def rows(make_model, sentencepiece, byte_level):
    def rows(head_scale, kind="llama", **changes):
        document = {
            "base": str(make_model(kind, sentencepiece)),
            "target": str(byte_level),
            "output": "nowhere",
            "method": "gaussian",
            "new_rows": {"head_scale": head_scale, **changes},
        }
        plan = make_plan(build_recipe(document))
        return operate(plan, Batches(Processes()), find_resources(plan))

    return rows


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gemma3", "gpt2", "phi"])
def test_auto_takes_the_scale_that_reads_the_bases_writing_best(kind, rows, monkeypatch):
    tried = {}

    def walk(measure):
        tried.update({scale: measure(scale) for scale in (1.0, 0.5, 1.5)})
        best = min(tried, key=tried.get)
        return best, tried

    monkeypatch.setattr(adjust, "climb", walk)
    chosen = rows("auto", kind)
    best = min(tried, key=tried.get)
    assert len(set(tried.values())) == 3
    expected = rows(best, kind)
    for new, other in zip(chosen, expected, strict=True):
        assert new.data.equal(other.data)
    note = next(new.note for new in chosen if new.note.startswith("head_scale"))
    assert f"head_scale {best:g}, chosen on text sampled from the base: {tried[1.0]:.3f}" in note


def test_the_summary_tells_the_chosen_scale(make_model, sentencepiece, byte_level, tmp_path, monkeypatch):
    from tokensurgeon.pipeline import run
    from tokensurgeon.report.summary import summary_rows

    monkeypatch.setattr(adjust, "climb", lambda measure: (1.2, {1.0: 2.5, 1.2: 2.25}))
    document = {"base": str(make_model("llama", sentencepiece)), "target": str(byte_level)}
    document |= {"method": "pieces", "output": str(tmp_path / "out"), "verify": {"forward": False}}
    report = run(build_recipe({**document, "new_rows": {"head_scale": "auto"}})).report
    told = dict(summary_rows(report))["note, lm_head"]
    assert told.startswith("head_scale 1.2, chosen on text sampled from the base: 2.500 bits per byte at 1")


def test_auto_measures_what_the_output_will_read(rows, make_model, sentencepiece, byte_level, monkeypatch):
    """The scale's measure is that of a model that holds the same rows."""
    measured = {}

    def walk(measure):
        measured[1.0] = measure(1.0)
        return 1.0, measured

    monkeypatch.setattr(adjust, "climb", walk)
    embedding, head = rows("auto")
    base = str(make_model("llama", sentencepiece))
    model, _ = load_model(base, device="cpu")
    plan = make_plan(
        build_recipe({"base": base, "target": str(byte_level), "output": "nowhere", "method": "mean"})
    )
    texts = judging_texts(plan, find_resources(plan))
    model.get_input_embeddings().weight = torch.nn.Parameter(embedding.data.float())
    model.get_output_embeddings().weight = torch.nn.Parameter(head.data.float())
    tokenizer = load_tokenizer(str(byte_level))
    written = group_by_limit(tokenizer, texts, plan.match.target.tokens)
    bits = score_written(model, tokenizer, written)
    assert measured[1.0] == pytest.approx(bits, rel=1e-5)


class TestHeadFit:
    @pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2"])
    def test_made_rows_that_write_move_where_text_not_fitted_to_is_read_better(self, rows, kind):
        plain, fitted = rows(1.0, kind), rows(1.0, kind, head_fit=1.0)
        head = next(new for new in fitted if new.note)
        before, after = map(
            float, re.findall(r"takes ([0-9.]+) bits per byte before, ([0-9.]+)", head.note)[0]
        )
        assert ("moved rows" in head.note) == (after < before) or before == after
        made = torch.tensor(list(head.made_by))
        for new, old in zip(fitted, plain, strict=True):
            moved = (new.data != old.data).any(dim=1)
            assert moved.any() == (new is head and "moved rows" in head.note)
            assert torch.isin(moved.nonzero()[:, 0], made).all()

    def test_text_that_rows_were_fitted_to_is_read_better(self, rows, monkeypatch):
        monkeypatch.setattr(adjust, "lesson_texts", judging_texts)
        head = next(new for new in rows(1.0, "llama-tied", head_fit=1.0) if new.note)
        before, after = map(
            float, re.findall(r"takes ([0-9.]+) bits per byte before, ([0-9.]+)", head.note)[0]
        )
        assert "moved rows" in head.note
        assert after < before

    @pytest.mark.parametrize("best", [0.6, 0.9, 1.0, 1.3])
    def test_rows_go_as_far_as_other_text_is_read_better(self, rows, monkeypatch, best):
        plain = rows(1.0, "llama-tied")[0].data.float()
        made = (rows(1.0, "llama-tied", head_fit=1.0)[0].data.float() != plain).any(dim=1)
        there = torch.randn(plain.shape)
        monkeypatch.setattr(adjust, "fit_rows", lambda examples, rows, free, *_, **__: there[free])
        wanted = torch.lerp(plain, there, best)

        def distance(_, tensors):
            return float((tensors[0].data.float() - wanted)[made].norm())

        monkeypatch.setattr(adjust._Reader, "bits", distance)
        [fitted] = rows(1.0, "llama-tied", head_fit=1.0)
        torch.testing.assert_close(fitted.data.float()[made], wanted[made], rtol=0.01, atol=0.01)
        assert f"head_fit moved rows by {best:g} of the way" in fitted.note

    def test_rows_are_left_where_they_were_if_other_text_is_read_worse(self, rows, monkeypatch):
        monkeypatch.setattr(adjust, "fit_rows", lambda examples, rows, free, *_, **__: 9 * rows[free].float())
        plain, fitted = rows(1.0, "llama-tied"), rows(1.0, "llama-tied", head_fit=1.0)
        assert fitted[0].data.equal(plain[0].data)
        assert "left rows as they were" in fitted[0].note

    @pytest.mark.parametrize(("kind", "read"), [("llama-tied", True), ("llama", False)])
    def test_rows_are_fitted_by_what_reading_them_costs_if_a_model_reads_them(
        self, rows, monkeypatch, kind, read
    ):
        given = []

        def fit(examples, rows, free, *_, reads, **__):
            given.append(reads)
            return rows[free].float()

        monkeypatch.setattr(adjust, "fit_rows", fit)
        rows(1.0, kind, head_fit=1.0)
        assert [cost is not None for cost in given] == [read]
        assert all(cost.slopes.any(dim=1).sum() > 1 for cost in given if cost)

    @pytest.mark.parametrize(
        ("kind", "better", "asked"),
        [("llama-tied", True, False), ("llama-tied", False, True), ("llama", True, True)],
    )
    def test_tied_rows_that_followed_their_fit_are_not_mixed_with_last_pieces(
        self, rows, monkeypatch, kind, better, asked
    ):
        tried = []
        monkeypatch.setattr(adjust, "choose_shares", lambda *_, **__: tried.append(1) or {})
        readings = itertools.count(99.0, -1.0 if better else 1.0)
        monkeypatch.setattr(adjust._Reader, "bits", lambda *_: next(readings))
        fitted = rows(1.0, kind, head_fit=0.3, last_piece="auto")
        assert any("head_fit moved rows" in new.note for new in fitted) == better
        assert bool(tried) == asked

    def test_a_base_that_scales_its_logits_is_left_alone(self, rows):
        plain, fitted = rows(1.0, "granite"), rows(1.0, "granite", head_fit=1.0)
        for new, old in zip(fitted, plain, strict=True):
            assert new.data.equal(old.data)


class TestUnigrams:
    """Tokens that the target uses more or less often than the base did."""

    @pytest.fixture
    def helpful(self, monkeypatch):
        """Whatever is judged reads better than what was judged before it."""
        bits = itertools.count(9, -1)
        monkeypatch.setattr(adjust._Reader, "bits", lambda *_: float(next(bits)))

    @pytest.mark.parametrize("kind", ["llama", "llama-tied"])
    def test_rows_move_along_one_direction_and_the_others_stay_copies(self, rows, kind, helpful):
        plain, moved = rows(1.0, kind), rows(1.0, kind, unigrams=True)
        head, before = moved[-1], plain[-1]
        assert "unigrams moved" in head.note
        changed = (head.data != before.data).any(dim=1).nonzero()[:, 0].tolist()
        assert head.healed == changed
        assert any(before.source[index] >= 0 for index in changed), "kept rows move too"
        assert all(head.source[index] == MADE for index in changed)
        assert all(
            old == new
            for at, (old, new) in enumerate(zip(before.source, head.source, strict=True))
            if at not in set(changed)
        )
        moves = (head.data - before.data)[changed].double()
        assert torch.linalg.matrix_rank(moves, rtol=0.02) == 1
        if kind == "llama":
            assert moved[0].data.equal(plain[0].data), "the embedding of a base that is not tied stays"

    def test_special_tokens_stay(self, rows, byte_level, helpful):
        head = rows(1.0, "llama", unigrams=True)[-1]
        special = set(load_tokenizer(str(byte_level)).all_special_ids)
        assert special
        assert not special & set(head.healed)

    @pytest.mark.parametrize("main", ["Latin", "Cyrillic"])
    def test_only_bytes_and_letters_of_systems_that_the_base_does_not_write_in_by_itself_move(
        self, rows, byte_level, helpful, monkeypatch, main
    ):
        monkeypatch.setattr(adjust, "main_script", lambda _: main)
        tokens = load_vocabulary(byte_level).tokens
        moved = {script_of(tokens[index]) for index in rows(1.0, "llama", unigrams=True)[-1].healed}
        assert {"Bytes", "Latin", "Cyrillic"} - {main} <= moved
        assert not moved & {main, "Digits", "Whitespace", "Symbols", "Special"}

    def test_text_that_rows_were_fitted_to_is_read_better(self, rows, monkeypatch):
        monkeypatch.setattr(adjust, "lesson_texts", judging_texts)
        note = rows(1.0, "llama", unigrams=True)[-1].note
        before, after = map(float, re.findall(r"takes ([0-9.]+) bits per byte before, ([0-9.]+)", note)[0])
        assert "unigrams moved" in note
        assert after < before

    def test_rows_are_left_where_they_were_if_other_text_is_read_worse(self, rows, monkeypatch):
        def mislead(states, following, table, **_):
            return 9 * torch.randn(len(table)), states.mean(dim=0)

        monkeypatch.setattr(adjust, "fit_unigrams", mislead)
        plain, fitted = rows(1.0, "llama-tied"), rows(1.0, "llama-tied", unigrams=True)
        assert fitted[0].data.equal(plain[0].data)
        assert fitted[0].source == plain[0].source
        assert "unigrams left rows as they were" in fitted[0].note

    def test_an_output_with_moved_rows_is_verified_and_tells_of_them(
        self, make_model, sentencepiece, byte_level, tmp_path, helpful
    ):
        document = {
            "base": str(make_model("llama-tied", sentencepiece)),
            "target": str(byte_level),
            "output": str(tmp_path / "out"),
            "method": "gaussian",
            "new_rows": {"unigrams": True},
        }
        report = run(build_recipe(document)).report
        assert all(check.passed for check in report.checks)
        (tensor,) = report.tensors
        assert tensor.healed > 0
        assert "unigrams moved" in tensor.note
        origins = Counter()
        for index in range(report.vocabulary.target_tokens):
            (row,) = trace_row(tmp_path / "out", index, nearest=0)
            origins[row.origin] += 1
            assert (row.method == "gaussian") == (row.origin == "made")
            assert ("unigrams moved" in row.note) == (row.origin in ("made", "moved"))
        assert origins["copied"] == tensor.copied
        assert origins["made"] == tensor.made
        assert 0 < origins["moved"] <= tensor.healed


def test_copies_of_a_table_stay_copies(rows):
    for new in rows(1.3, "llama-tied"):
        assert new.equal_to is None or new.data is not None
    tied = rows(1.3, "llama-tied")
    assert len(tied) == 1
    assert not tied[0].data.equal(rows(1.0, "llama-tied")[0].data)


def test_a_base_that_writes_no_text_cannot_choose(make_model, wordpiece, byte_level):
    document = {"base": str(make_model("bert", wordpiece)), "target": str(byte_level), "output": "out"}
    with pytest.raises(InputError, match="a causal language model"):
        make_plan(build_recipe({**document, "method": "pieces", "new_rows": {"head_scale": "auto"}}))


class TestSampling:
    @pytest.fixture
    def loaded(self, make_model, sentencepiece):
        return load_model(str(make_model("llama", sentencepiece)), device="cpu")

    def test_the_seed_decides_and_other_random_numbers_are_left_alone(self, loaded):
        state = torch.random.get_rng_state()
        one, again = (sample_texts(*loaded, seed=3, samples=4, new_tokens=12) for _ in range(2))
        assert one == again
        assert one != sample_texts(*loaded, seed=4, samples=4, new_tokens=12)
        assert torch.random.get_rng_state().equal(state)

    def test_every_sample_is_a_text_of_its_own(self, loaded):
        found = sample_texts(*loaded, seed=0, samples=4, new_tokens=12)
        assert list(found) == [f"sample {number}" for number in range(1, 5)]
        assert len(set(found.values())) == 4
        assert all(text for text in found.values())

    def test_only_what_is_allowed_is_written(self, loaded):
        first, later = (loaded[1].convert_tokens_to_ids(some) for some in (["▁the"], ["▁dog", "s"]))
        found = sample_texts(*loaded, seed=0, samples=5, new_tokens=9, allowed=Allowed(first, later))
        for text in found.values():
            assert re.fullmatch(r" ?the( dog|s)*", text)

    def test_rows_of_tokens_that_are_not_allowed_are_not_multiplied_with(self, loaded):
        model, tokenizer = loaded
        head, words = model.get_output_embeddings(), tokenizer.convert_tokens_to_ids(["▁the", "▁dog", "s"])
        whole, seen = head.weight, []
        head.register_forward_pre_hook(lambda used, _: seen.append(used.weight.shape))
        narrow = sample_texts(
            model, tokenizer, seed=0, samples=5, new_tokens=9, allowed=Allowed(words, words)
        )
        assert set(seen) == {(3, whole.shape[1])}
        assert head.weight is whole
        assert model(input_ids=torch.tensor([words])).logits.shape == (1, 3, len(whole))
        # With a bias it is left alone, and draws the same.
        head.bias = torch.nn.Parameter(torch.zeros(len(whole)))
        assert (
            sample_texts(model, tokenizer, seed=0, samples=5, new_tokens=9, allowed=Allowed(words, words))
            == narrow
        )
        assert seen[-1] == whole.shape

    def test_tokens_are_drawn_as_often_as_the_model_says(self, loaded):
        model, tokenizer = loaded
        start = find_bos(tokenizer)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[start]])).logits[0, -1]
        likely = logits.topk(3).indices.tolist()
        allowed = Allowed(likely, likely)
        found = sample_texts(model, tokenizer, seed=1, samples=3000, new_tokens=1, allowed=allowed)
        counts = Counter(found.values())
        share = logits[likely].softmax(dim=0)
        texts = tokenizer.batch_decode([[index] for index in likely])
        for text, expected in zip(texts, share.tolist(), strict=True):
            if len(text) > 1 and texts.count(text) == 1:
                assert counts[text] / 3000 == pytest.approx(expected, abs=0.04)
