"""Made embedding rows get some of the row of their last base piece: as told, or where text is read better."""

import itertools

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokensurgeon import last_pieces, lessons
from tokensurgeon.batches import Batches
from tokensurgeon.errors import RecipeError
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources, preflight, run
from tokensurgeon.plan import make_plan
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.surgery import operate


@pytest.fixture(scope="module")
def bigrams(make_model, sentencepiece):
    """A base without layers that do anything: the last token's row alone says what comes next."""
    found = {}
    for kind in ("llama", "llama-tied"):
        found[kind] = make_model(kind, sentencepiece, initializer_range=1.0)
        weights = load_file(found[kind] / "model.safetensors")
        for name in weights:
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weights[name].zero_()
        save_file(weights, found[kind] / "model.safetensors", metadata={"format": "pt"})
    return found


@pytest.fixture
def plan(bigrams, byte_level, monkeypatch):
    monkeypatch.setattr(lessons, "JUDGES", 12)
    monkeypatch.setattr(last_pieces, "_LEAST_USES", 4)

    def plan(last_piece, kind="llama", method="gaussian", **rules):
        rules = {"head_texts": 40, "last_piece": last_piece, **rules}
        document = {"base": str(bigrams[kind]), "target": str(byte_level), "output": "nowhere"}
        return make_plan(build_recipe({**document, "method": method, "new_rows": rules}))

    return plan


def make(plan):
    return operate(plan, Batches(Processes()), find_resources(plan))


def last_row(plan, new, index):
    piece = plan.pieces[plan.wanted.index(index)].ids[-1]
    return load_file(plan.inputs.base / "model.safetensors")[new.tensor.name][piece].float()


@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_a_told_share_moves_that_row_of_the_embedding_and_no_other(plan, kind):
    index, other = [i for i, p in zip(plan({}).wanted, plan({}).pieces, strict=True) if p.ids][:2]
    name = plan({}).match.target.tokens[index].content
    plain, mixed = make(plan({}, kind)), make(plan({name: 0.25}, kind))
    old, new = plain[0].data[index].float(), mixed[0].data[index].float()
    expected = 0.75 * old + 0.25 * last_row(plan({}, kind), plain[0], index)
    assert torch.allclose(new, expected, atol=0.02)
    assert mixed[0].data[other].equal(plain[0].data[other])
    for before, after in zip(plain, mixed, strict=True):
        moved = (before.data != after.data).any(dim=1).nonzero()[:, 0].tolist()
        assert moved == ([index] if after is mixed[0] or after.equal_to else [])


@pytest.mark.parametrize("name", ["the", "no such token", "<|im_start|>"])
def test_a_share_for_a_token_whose_row_is_not_made_is_refused_before_a_row_is_made(
    bigrams, byte_level, name, tmp_path
):
    document = {"base": str(bigrams["llama"]), "target": str(byte_level), "output": str(tmp_path / "out")}
    recipe = build_recipe({**document, "method": "mean", "new_rows": {"last_piece": {name: 0.5}}})
    with pytest.raises(RecipeError, match="last_piece"):
        preflight(recipe, force=False)


@pytest.mark.parametrize("head_fit", [0.0, 0.3])
def test_rows_that_read_badly_get_some_of_the_row_that_the_base_reads(plan, head_fit):
    """The base writes by bigrams, so that the last piece's row is right and a random one is not."""
    new = make(plan("auto", head_fit=head_fit))[0]
    plain = make(plan({}, head_fit=head_fit))[0]
    assert new.note.count("last_piece mixed rows") == 1
    assert new.last_pieces
    assert set(new.last_pieces.values()) <= set(last_pieces.SHARES)
    assert plain.last_pieces == {}


def test_rows_that_are_the_last_pieces_are_left_alone(plan):
    new = make(plan("auto", method={"name": "pieces", "weighting": "last_first"}))[0]
    assert new.last_pieces == {}
    assert "last_piece" not in new.note


def test_nothing_is_mixed_where_other_text_is_read_worse(plan, monkeypatch):
    told = plan("auto")
    worse = {index: 1.0 for index in told.wanted if told.pieces[told.wanted.index(index)].ids}
    swapped = make(plan({}, method={"name": "pieces", "weighting": "last_first"}))
    monkeypatch.setattr("tokensurgeon.adjust.choose_shares", lambda *_, **__: worse)
    readings = itertools.count(1.0)
    monkeypatch.setattr("tokensurgeon.adjust._Reader.bits", lambda *_: next(readings))
    monkeypatch.setattr(
        last_pieces, "_last_rows", lambda _, new, ids: 9 * new.data[torch.tensor(ids)].float()
    )
    kept = make(plan("auto", method={"name": "pieces", "weighting": "last_first"}))
    for new, old in zip(kept, swapped, strict=True):
        assert new.data.equal(old.data)
        assert new.last_pieces == {}
    assert "last_piece left rows as they were" in kept[0].note
    assert "takes 1.000 bits per byte without, 2.000 with" in kept[0].note


@pytest.mark.parametrize("writes", [False, True])
def test_the_model_is_left_as_it_was(plan, writes):
    asked = plan("auto")
    resources = find_resources(asked)
    new = make(plan({}))[0]
    model = resources.load_body()
    model.get_input_embeddings().weight = torch.nn.Parameter(new.data.float(), requires_grad=False)
    table = model.get_input_embeddings().weight
    before = table.clone()
    from tokensurgeon.adjust import load_target_tokenizer

    texts = lessons.lesson_texts(plan({}), find_resources(asked))
    found = last_pieces.choose_shares(asked, new, model, load_target_tokenizer(asked), texts, writes=writes)
    assert found
    assert model.get_input_embeddings().weight is table
    assert table.equal(before)


def test_the_report_has_a_recipe_that_mixes_the_same_rows(bigrams, byte_level, make_model, tmp_path, plan):
    donor = str(make_model("llama", byte_level, seed=1))
    document = {"base": str(bigrams["llama"]), "donor": donor, "anchors": {"minimum": 8}}
    rules = {"head_texts": 40, "head_scale": 1.0}
    document |= {"verify": {"forward": False}}
    auto = {"method": {"name": "auto", "candidates": ["mean"]}, "new_rows": rules}
    report = run(build_recipe({**document, **auto, "output": str(tmp_path / "auto")})).report
    assert report.choice.recipe["new_rows"]["last_piece"]
    run(build_recipe({**document, **report.choice.recipe, "output": str(tmp_path / "told")}))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("auto", "told"))
    assert all(first[name].equal(second[name]) for name in first)
