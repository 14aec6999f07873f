"""The network starts as the mean of the pieces, and learns more than that."""

import copy
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from tokensurgeon.training.hypernetwork import Hypernetwork, lexical_loss, train

WIDTH = 6


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_network(pieces=4, hidden=16, layers=1, seed=0, known=None):
    known = 2 * random(1, 50, WIDTH) + 1 if known is None else known
    mean, scale = known.mean(dim=0), known.std(dim=0, correction=0)
    return Hypernetwork(mean, scale, pieces=pieces, hidden=hidden, layers=layers, seed=seed)


def stir(network, seed=3):
    """Weights as after training."""
    for number, part in enumerate(network.parameters()):
        part.data += random(seed + number, *part.shape) / 3
    return network.eval()


def by_hand(network, pieces):
    """The prediction for one token: no padding, one head after another."""
    standard = (pieces - network.mean) / network.scale
    x = standard @ network.enter.weight.T + network.enter.bias + network.places[: len(pieces)]
    for block in network.blocks:
        y = layer_norm(x, x.shape[1:], block.norm1.weight, block.norm1.bias)
        attention = block.self_attn
        query, key, value = (y @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=1)
        size = x.shape[1] // attention.num_heads
        heads = [slice(size * head, size * (head + 1)) for head in range(attention.num_heads)]
        looked = [(query[:, h] @ key[:, h].T / size**0.5).softmax(dim=1) @ value[:, h] for h in heads]
        x = x + torch.cat(looked, dim=1) @ attention.out_proj.weight.T + attention.out_proj.bias
        y = layer_norm(x, x.shape[1:], block.norm2.weight, block.norm2.bias)
        x = (
            x
            + gelu(y @ block.linear1.weight.T + block.linear1.bias) @ block.linear2.weight.T
            + block.linear2.bias
        )
    correction = x.mean(dim=0) @ network.leave.weight.T + network.leave.bias
    return (standard.mean(dim=0) + correction) * network.scale + network.mean


def test_before_training_the_prediction_is_the_mean_of_the_pieces():
    rows, present = random(2, 3, 4, WIDTH), torch.arange(4) < torch.tensor([[2], [4], [1]])
    expected = torch.stack([rows[0, :2].mean(dim=0), rows[1].mean(dim=0), rows[2, 0]])
    torch.testing.assert_close(make_network()(rows, present), expected)


@pytest.mark.parametrize(("hidden", "layers"), [(16, 1), (15, 2), (11, 1)])
def test_a_prediction_is_the_mean_and_a_transformers_correction(hidden, layers):
    network = stir(make_network(hidden=hidden, layers=layers))
    rows, present = random(2, 3, 4, WIDTH), torch.arange(4) < torch.tensor([[2], [4], [3]])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            made = network(rows, present)
            for row, pieces, count in zip(made, rows, (2, 4, 3), strict=True):
                torch.testing.assert_close(row, by_hand(network, pieces[:count]), rtol=1e-4, atol=1e-4)


def test_it_starts_from_the_best_linear_prediction():
    first, last, offset = random(1, WIDTH, WIDTH), random(2, WIDTH, WIDTH), random(3, WIDTH)
    rows = random(4, 200, 2, WIDTH)
    goals = rows[:, 0] @ first + rows[:, 1] @ last + offset
    present = torch.ones(200, 2, dtype=torch.bool)
    network = make_network()
    network.start_from(rows[:150], present[:150], goals[:150], strength=0.0)
    torch.testing.assert_close(network(rows[150:], present[150:]), goals[150:], rtol=1e-3, atol=1e-3)
    network.start_from(rows[:150], present[:150], goals[:150], strength=1e6)
    near_mean = network(rows[150:], present[150:])
    torch.testing.assert_close(near_mean, goals[:150].mean(dim=0).expand(50, -1), rtol=1e-2, atol=1e-1)


def test_padding_tells_a_linear_prediction_nothing():
    rows, present = random(4, 80, 3, WIDTH), torch.tensor([[True, True, False]] * 80)
    network = make_network()
    network.start_from(rows, present, random(5, 80, WIDTH), strength=0.1)
    before = network(rows, present)
    torch.testing.assert_close(network(rows + 100 * ~present[:, :, None], present), before)
    torch.testing.assert_close(network(rows[:, :2], present[:, :2]), before)


def test_a_single_piece_keeps_its_row_after_training():
    network, rows = stir(make_network()), random(2, 2, 4, WIDTH)
    for present in (torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 0]] * 2)):
        assert network(rows, present.bool())[0].equal(rows[0, 0])


def test_a_dimension_without_spread_is_predicted():
    known = random(1, 50, WIDTH)
    known[:, 2] = 5
    made = make_network(known=known)(known[:8].reshape(2, 4, WIDTH), torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(made[:, 2], torch.full((2,), 5.0))


def test_it_learns_a_function_of_the_pieces_better_than_their_mean():
    first, last = random(2, WIDTH, WIDTH) / 2, random(3, WIDTH, WIDTH) / 2
    pieces = random(4, 400, 2, WIDTH)
    goals = pieces[:, 0] @ first + pieces[:, 1].tanh() @ last
    present = torch.ones(400, 2, dtype=torch.bool)
    network = make_network(known=goals)
    losses = train(
        network,
        150,
        1e-2,
        lambda _: lexical_loss(network(pieces[:300], present[:300]), goals[:300], network.scale),
    )
    with torch.no_grad():
        missed = (network(pieces[300:], present[300:]) - goals[300:]).square().sum()
    assert len(losses) == 150
    assert missed < 0.3 * (pieces[300:].mean(dim=1) - goals[300:]).square().sum()


def test_the_lexical_loss_of_the_mean_row_is_one():
    rows = 3 * random(1, 50, WIDTH) + 1
    scale = rows.std(dim=0, correction=0)
    assert float(lexical_loss(rows.mean(dim=0).expand(50, -1), rows, scale)) == pytest.approx(1)


def test_the_same_seed_makes_the_same_network_and_leaves_other_random_numbers_alone():
    before = torch.get_rng_state()
    one, two, other = (make_network(seed=seed).enter.weight for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert one.equal(two)
    assert not one.equal(other)


class TestTrain:
    @pytest.mark.parametrize("bad", ["loss", "gradient"])
    def test_a_loss_that_is_no_number_brings_the_last_good_weights_back(self, bad):
        rows, present = random(2, 8, 4, WIDTH), torch.ones(8, 4, dtype=torch.bool)

        def run(steps):
            network = make_network()

            def loss_of(step):
                loss = network(rows, present).square().mean()
                if step == 3:
                    return loss * torch.nan if bad == "loss" else loss + (0 * loss).sqrt()
                return loss

            return network, train(network, steps, 0.1, loss_of)

        network, losses = run(9)
        good, _ = run(3)
        assert len(losses) == (3 if bad == "loss" else 4)
        expected = good.state_dict() if bad == "gradient" else run(2)[0].state_dict()
        assert all(part.equal(expected[name]) for name, part in network.state_dict().items())

    def test_the_learning_rate_rises_to_what_was_asked_for(self):
        network, seen = make_network(), []

        def loss_of(_):
            seen.append(network.leave.bias.detach().clone())
            return network.leave.bias.sum()

        train(network, 40, 1e-2, loss_of)
        moves = [(b - a).abs().max().item() for a, b in pairwise(seen)]
        assert moves[0] == pytest.approx(1e-2 / 20, rel=0.01)
        assert moves[30] == pytest.approx(1e-2, rel=0.01)

    def test_single_pieces_teach_nothing(self):
        network = make_network()
        present = torch.tensor([[True, False]])
        before = copy.deepcopy(network.state_dict())
        train(network, 2, 0.1, lambda _: network(torch.ones(1, 2, WIDTH), present).sum())
        assert all(part.equal(before[name]) for name, part in network.state_dict().items())
