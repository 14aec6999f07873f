"""Rows come from a network that is trained on the base's tokens and on sampled tokenizers, or was before."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from tokensurgeon.errors import InputError
from tokensurgeon.methods.params import ZettParams
from tokensurgeon.methods.zett import Zett
from tokensurgeon.training.hypernetwork import FrozenBody, Hypernetwork
from tokensurgeon.training.sampling import Batch

TINY = {"steps": 3, "warmup": 3, "batch": 2, "block": 8, "layers": 1, "hidden": 16, "learning_rate": 1e-2}


def make_body(tied, vocabulary=40):
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=3,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def told(context, tools):
    """A context whose resources note what is loaded, read and kept in ``notes``."""

    def make(kept=None, side="tied", corpus=None, parts=None, **changes):
        model = make_body(side == "tied")
        notes = SimpleNamespace(loads=0, kept=kept, inputs=[], model=model)
        model.register_forward_pre_hook(
            lambda _, __, given: notes.inputs.append(given["inputs_embeds"].shape), with_kwargs=True
        )

        def load_body():
            notes.loads += 1
            return model

        resources = tools.resources(
            load_body=load_body,
            load_hypernetwork=lambda: notes.kept,
            save_hypernetwork=lambda weights: setattr(notes, "kept", weights),
            corpus=tools.corpus(30) if corpus is None else corpus,
        )
        own = model.lm_head if side == "lm_head" else model.model.embed_tokens
        changes.setdefault("base_rows", own.weight.detach().clone())
        if parts is not None:
            changes["lexicon"] = tools.lexicon(base_parts=parts)
        return context(side=side, resources=resources, **changes), notes

    return make


def run(given, **changes):
    return Zett(ZettParams(**TINY | changes))(given)


def run_and_keep(told):
    given, notes = told()
    run(given)
    return notes.kept


def means(given):
    return torch.stack([given.base_rows[list(pieces)].mean(dim=0) for pieces in given.pieces])


def test_rows_are_the_kept_networks_answers_and_not_the_means(told):
    given, notes = told()
    made = run(given)
    network = Hypernetwork(torch.zeros(12), torch.ones(12), pieces=7, hidden=16, layers=1, seed=9).eval()
    network.load_state_dict({name.removeprefix("tied-12."): part for name, part in notes.kept.items()})
    for row, pieces in zip(made.rows, given.pieces, strict=True):
        alone = network(given.base_rows[list(pieces)][None], torch.ones(1, 2, dtype=torch.bool))
        torch.testing.assert_close(row, alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made.rows, means(given), atol=1e-2)
    assert made.served.all()


def test_without_anything_to_learn_from_rows_are_the_means_of_the_pieces(told):
    given, notes = told(corpus=[], parts={})
    torch.testing.assert_close(run(given).rows, means(given))
    assert notes.loads == 0


def test_kept_weights_are_taken_up_without_training(told):
    given, notes = told()
    first = run(given)
    again, later = told(kept=notes.kept, generator=torch.Generator().manual_seed(9))
    assert run(again).rows.equal(first.rows)
    assert (notes.loads, later.loads) == (1, 0)


@pytest.mark.parametrize("changes", [{"hidden": 8}, {"layers": 2}, {"pieces": 3}])
def test_kept_weights_of_other_sizes_are_refused_and_left_alone(told, changes):
    kept = run_and_keep(told)
    given, later = told(kept=kept)
    with pytest.raises(InputError, match="name another file to train a new one"):
        run(given, **changes)
    assert later.kept is kept


def test_kept_weights_of_another_base_are_refused_and_those_of_another_side_stay(told):
    kept = run_and_keep(told)
    given, later = told(kept=kept, base_rows=1.1 * told()[0].base_rows)
    with pytest.raises(InputError, match="trained for another base"):
        run(given)
    given, later = told(kept=kept, side="embedding")
    run(given)
    assert later.loads == 1
    assert all(part.equal(later.kept[name]) for name, part in kept.items())
    assert len(later.kept) == 2 * len(kept)


@pytest.mark.parametrize("side", ["tied", "embedding", "lm_head"])
def test_the_body_reads_and_writes_predicted_rows_at_the_side_that_is_made(told, side):
    given, notes = told(side=side)
    network = Hypernetwork(torch.zeros(12), torch.ones(12), pieces=7, hidden=16, layers=1, seed=0)
    torch.nn.init.normal_(network.leave.weight, generator=torch.Generator().manual_seed(0))
    runs = [(3,), (11, 4), (5, 6, 7), (8,), (20, 21)]
    batch = Batch(
        torch.tensor([[0, 1, 2, 4], [0, 4, 1, 0]]), torch.tensor([[1, 2, 4, 3], [4, 1, -100, -100]])
    )
    model = notes.model
    loss = Zett(ZettParams(**TINY)).language_loss(given, network, FrozenBody(model), runs, batch)
    tables = {}
    for end, rows in (("embedding", model.model.embed_tokens.weight), ("lm_head", model.lm_head.weight)):
        tables[end] = torch.stack([rows[list(run)].mean(dim=0) for run in runs])
        if side in (end, "tied"):
            tables[end] = torch.cat(
                [network(rows[list(run)][None], torch.ones(1, len(run), dtype=torch.bool)) for run in runs]
            )
    small = make_body(tied=False, vocabulary=5)
    small.load_state_dict(
        model.state_dict()
        | {"model.embed_tokens.weight": tables["embedding"], "lm_head.weight": tables["lm_head"]}
    )
    expected = cross_entropy(small(batch.ids).logits.flatten(0, 1), batch.labels.flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_steps_batch_and_block_are_what_the_body_sees(told):
    given, notes = told()
    before = copy.deepcopy(notes.model.state_dict())
    run(given, steps=4, batch=3, block=9)
    assert [tuple(shape) for shape in notes.inputs] == [(3, 9, 12)] * 4
    assert all(part.equal(before[name]) for name, part in notes.model.state_dict().items())


def known_error(given, made):
    return float((made.rows - given.base_rows[list(given.lexicon.base_parts)]).square().sum())


def test_warming_up_brings_predictions_near_known_rows(told):
    parts = {token: (token % 10, token % 7) for token in range(10, 30)}
    errors = []
    for steps in (0, 60):
        given, _ = told(corpus=[], parts=parts, pieces=list(parts.values()))
        errors.append(known_error(given, run(given, warmup=steps)))
    assert errors[1] < 0.5 * errors[0]


def test_the_lexical_weight_keeps_them_there(told):
    parts = {token: (token % 10, token % 7) for token in range(10, 30)}
    errors = []
    for weight in (0, 100):
        given, _ = told(parts=parts, pieces=list(parts.values()))
        errors.append(
            known_error(given, run(given, warmup=0, steps=15, learning_rate=3e-2, lexical_weight=weight))
        )
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 1e-4}, {"steps": 9}, {"warmup": 0}, {"sampled_tokens": 64}, {"lexical_weight": 0}],
)
def test_every_option_of_the_training_changes_the_rows(told, changes):
    usual, other = run(told()[0]).rows, run(told()[0], **changes).rows
    assert not torch.allclose(usual, other, rtol=1e-4, atol=1e-5)


def test_of_many_pieces_the_first_ones_and_the_last_are_read(told):
    given, _ = told(pieces=[(1, 2, 9, 4), (1, 2, 4), (1, 2, 5)], wanted=torch.arange(30, 33))
    made = run(given, pieces=3)
    assert made.rows[0].equal(made.rows[1])
    assert not torch.allclose(made.rows[1], made.rows[2])


def test_tokens_without_pieces_are_not_served_and_single_pieces_are_kept(told):
    given, _ = told(pieces=[(), (5,), (5, 6)], wanted=torch.arange(30, 33))
    made = run(given)
    assert made.served.tolist() == [False, True, True]
    torch.testing.assert_close(made.rows[0], given.base_mean)
    assert made.rows[1].equal(given.base_rows[5])


def test_a_base_of_equal_rows_and_one_of_few_tokens_give_finite_rows(told):
    for changes in ({"base_rows": torch.ones(40, 12)}, {"base_ids": torch.arange(5)}):
        assert torch.isfinite(run(told(**changes)[0]).rows).all()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(told, batch_size):
    pieces = [tuple(range(1 + index % 9)) for index in range(20)]
    whole, split = (run(told(pieces=pieces, batch_size=size)[0]).rows for size in (512, batch_size))
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-4)


def test_the_seed_decides(told):
    one, two, other = (run(told(generator=torch.Generator().manual_seed(seed))[0]).rows for seed in (1, 1, 2))
    assert one.equal(two)
    assert not torch.allclose(one, other)
