"""The base reads a token's pieces; what it then has in mind is mapped back to a row."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokensurgeon.methods.detokenize import Detokenize
from tokensurgeon.methods.params import DetokenizeParams

PARTS = {token: (token % 11, (3 * token) % 13, token % 7)[: 2 + token % 2] for token in range(13, 40)}


def make_body(seed=0, layers=3, bos=None):
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=bos,
        eos_token_id=None,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def told(context, tools):
    """A context with a body; fields and ``parts`` may be given."""

    def make(body=None, parts=PARTS, **changes):
        body = body or make_body()
        resources = tools.resources(load_body=lambda: body)
        return context(lexicon=tools.lexicon(base_parts=parts), resources=resources, **changes)

    return make


def states_of(body, pieces, layer):
    start = [] if body.config.bos_token_id is None else [body.config.bos_token_id]
    with torch.no_grad():
        out = body.model(torch.tensor([[*start, *pieces]]), output_hidden_states=True)
    return out.hidden_states[layer][0, -1].double()


def slow_map(features, goals, strength):
    """Ridge regression with an offset, by normal equations."""
    centred = features - features.mean(dim=0)
    penalty = strength * centred.square().sum() / centred.shape[1]
    gram = centred.T @ centred + penalty * torch.eye(centred.shape[1]).double()
    weights = torch.linalg.solve(gram, centred.T @ (goals - goals.mean(dim=0)))
    return lambda x: goals.mean(dim=0) + (x - features.mean(dim=0)) @ weights


@pytest.mark.parametrize("bos", [None, 2])
@pytest.mark.parametrize(("share", "layer"), [(0.0, 0), (0.3, 1), (0.7, 2)])
def test_rows_are_a_ridge_map_of_the_state_at_the_last_piece(told, bos, share, layer):
    body = make_body(bos=bos)
    given = told(body)
    made = Detokenize(DetokenizeParams(layer=share, ridge=0.2))(given)
    goals = given.base_rows[list(PARTS)].double()
    features = torch.stack([states_of(body, parts, layer) for parts in PARTS.values()])
    back = slow_map(features, goals, 0.2)
    expected = torch.stack([back(states_of(body, pieces, layer)) for pieces in given.pieces])
    torch.testing.assert_close(made.rows, expected.float(), rtol=1e-3, atol=1e-4)
    assert made.served.all()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_layer_that_held_out_tokens_ask_for_is_read(told, tools, layer):
    # Base rows are a linear function of the states after one layer, so that layer alone predicts them.
    body = make_body()
    rows = tools.random(1, 40, 12)
    parts = {token: (token % 10, 7 * token % 40) for token in range(10, 40)}
    into_rows = tools.random(2, 12, 12)
    for token, pieces in parts.items():
        rows[token] = states_of(body, pieces, layer).float() @ into_rows
    given = told(body, parts, base_rows=rows)
    made = Detokenize(DetokenizeParams(ridge=1e-6))(given)
    expected = torch.stack([states_of(body, pieces, layer).float() @ into_rows for pieces in given.pieces])
    torch.testing.assert_close(made.rows, expected, rtol=1e-2, atol=1e-2)


def test_the_last_third_is_read_only_on_request(told):
    seen = {
        layer: Detokenize(DetokenizeParams(layer=layer))(told(make_body())).rows
        for layer in (0.0, 1 / 3, 2 / 3)
    }
    chosen = Detokenize(DetokenizeParams())(told(make_body())).rows
    assert any(rows.equal(chosen) for rows in seen.values())
    last = Detokenize(DetokenizeParams(layer=1.0))(told(make_body())).rows
    assert torch.isfinite(last).all()
    assert not any(torch.allclose(rows, last) for rows in seen.values())


def test_the_body_runs_no_further_than_it_must_and_is_left_as_it_was(told):
    body = make_body()
    body.lm_head.forward = lambda states: pytest.fail("logits were computed")
    body.model.layers[1].forward = lambda *_, **__: pytest.fail("a layer too many")
    Detokenize(DetokenizeParams(layer=1 / 3))(told(body))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in body.modules())
    assert len(body.model.layers) == 3


def test_the_sample_limits_what_the_map_is_fitted_to(told):
    whole, few = (Detokenize(DetokenizeParams(layer=0, sample=count))(told()).rows for count in (27, 16))
    assert not torch.allclose(whole, few)
    torch.testing.assert_close(whole, Detokenize(DetokenizeParams(layer=0, sample=99))(told()).rows)


def test_a_strong_ridge_brings_rows_to_the_mean(told):
    given = told()
    weak, strong = (Detokenize(DetokenizeParams(layer=0.3, ridge=r))(given).rows for r in (1e-3, 1e6))
    mean = given.base_rows[list(PARTS)].mean(dim=0)
    torch.testing.assert_close(strong, mean.expand(20, -1), rtol=1e-3, atol=1e-3)
    assert (weak - mean).norm() > 1


def test_tokens_without_pieces_are_not_served_and_long_ones_are_read_at_their_end(told):
    long = tuple(index % 40 for index in range(30))
    given = told(pieces=[(), long, long[-16:], long[-15:]], wanted=torch.arange(30, 34))
    made = Detokenize(DetokenizeParams(layer=0.3))(given)
    assert made.served.tolist() == [False, True, True, True]
    torch.testing.assert_close(made.rows[0], given.base_mean)
    assert made.rows[1].equal(made.rows[2])
    assert not torch.allclose(made.rows[2], made.rows[3])


def test_with_too_few_examples_nothing_is_served_and_no_body_loaded(context, tools):
    parts = dict(list(PARTS.items())[:15])
    told = context(lexicon=tools.lexicon(base_parts=parts))
    made = Detokenize(DetokenizeParams())(told)
    assert not made.served.any()
    torch.testing.assert_close(made.rows, told.base_mean.expand(20, -1))


def test_equal_examples_give_finite_rows(told):
    made = Detokenize(DetokenizeParams(ridge=0))(told(parts={token: (1, 2) for token in range(10, 40)}))
    assert torch.isfinite(made.rows).all()


def test_examples_that_have_no_row_are_left_out(told):
    made = Detokenize(DetokenizeParams())(told(base_ids=torch.arange(5)))
    assert not made.served.any()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(told, batch_size):
    pieces = [tuple(range(1 + index % 5)) for index in range(20)]
    whole, split = (
        Detokenize(DetokenizeParams())(told(batch_size=size, pieces=pieces)).rows
        for size in (512, batch_size)
    )
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-4)


def test_the_sample_is_drawn_by_the_seed(told):
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return Detokenize(DetokenizeParams(layer=0.3, sample=16))(told(generator=generator)).rows

    assert run(1).equal(run(1))
    assert not torch.allclose(run(1), run(2))
