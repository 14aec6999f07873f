"""Rows from the base's own spelling: the last piece is read, the first is written."""

import pytest
import torch

from tokensurgeon.methods.params import PiecesParams
from tokensurgeon.methods.pieces import Pieces

SPELT = [(3, 8, 5), (7,), (2, 2), (1, 9)]


def make(context, side, weighting="last_first", pieces=SPELT, **options):
    wanted = torch.arange(30, 30 + len(pieces))
    told = context(side=side, pieces=pieces, wanted=wanted, **options.pop("told", {}))
    return told, Pieces(PiecesParams(weighting=weighting, **options))(told)


@pytest.mark.parametrize("side", ["embedding", "lm_head", "tied"])
def test_by_default_a_row_is_the_mean_of_its_pieces(context, side):
    told, made = make(context, side, "mean")
    base = told.base_rows
    expected = torch.stack([base[list(pieces)].mean(dim=0) for pieces in SPELT])
    torch.testing.assert_close(made.rows, expected)
    torch.testing.assert_close(Pieces(PiecesParams())(told).rows, expected)


def test_the_embedding_is_the_last_piece(context):
    told, made = make(context, "embedding")
    assert made.rows.equal(told.base_rows[[5, 7, 2, 9]])


def test_the_lm_head_weighs_pieces_from_the_first_down(context):
    told, made = make(context, "lm_head")
    base = told.base_rows
    torch.testing.assert_close(made.rows[0], (base[3] + 0.5 * base[8] + 0.25 * base[5]) / 1.75)
    torch.testing.assert_close(made.rows[1], base[7])
    torch.testing.assert_close(made.rows[3], (base[1] + 0.5 * base[9]) / 1.5)


def test_the_decay_is_the_weight_of_each_further_piece(context):
    told, made = make(context, "lm_head", decay=0.2)
    base = told.base_rows
    torch.testing.assert_close(made.rows[0], (base[3] + 0.2 * base[8] + 0.04 * base[5]) / 1.24)


def test_decay_0_is_the_first_piece_and_decay_1_the_mean(context):
    told, first = make(context, "lm_head", decay=0)
    assert first.rows.equal(told.base_rows[[3, 7, 2, 1]])
    _, flat = make(context, "lm_head", decay=1)
    _, mean = make(context, "lm_head", "mean")
    torch.testing.assert_close(flat.rows, mean.rows)


def test_a_tied_row_serves_both_ends_with_the_mean(context):
    _, tied = make(context, "tied", "last_first")
    _, mean = make(context, "tied", "mean")
    assert tied.rows.equal(mean.rows)


class TestWeightings:
    """Weights of three pieces of 1, 2 and 5 bytes."""

    @pytest.mark.parametrize(
        ("weighting", "embedding", "lm_head", "tied"),
        [
            ("mean", [1 / 3] * 3, [1 / 3] * 3, [1 / 3] * 3),
            ("last_first", [0, 0, 1], [4 / 7, 2 / 7, 1 / 7], [1 / 3] * 3),
            ("eeve", [1 / 3] * 3, [1, 0, 0], [1 / 3] * 3),
            ("length", [1 / 8, 2 / 8, 5 / 8], [1 / 8, 2 / 8, 5 / 8], [1 / 8, 2 / 8, 5 / 8]),
            ("position", [1 / 6, 2 / 6, 3 / 6], [3 / 6, 2 / 6, 1 / 6], [1 / 3] * 3),
            (
                "exponential",
                [0.0158762, 0.1173104, 0.8668133],
                [0.8668133, 0.1173104, 0.0158762],
                [1 / 3] * 3,
            ),
        ],
    )
    def test_weights_are_the_formulas(self, weighting, embedding, lm_head, tied):
        pieces = Pieces(PiecesParams(weighting=weighting))
        for side, expected in (("embedding", embedding), ("lm_head", lm_head), ("tied", tied)):
            assert pieces.weights([1, 2, 5], side) == pytest.approx(expected, abs=1e-6)

    def test_exponential_weights_of_many_pieces_do_not_overflow(self):
        weights = Pieces(PiecesParams(weighting="exponential")).weights([1] * 2000, "embedding")
        assert sum(weights) == pytest.approx(1)
        assert weights[-1] == max(weights)

    def test_length_counts_the_bytes_of_the_base_token(self, context):
        # Token 3 is one letter, token 20 two bytes.
        told, made = make(context, "embedding", "length", pieces=[(3, 20)])
        torch.testing.assert_close(made.rows[0], told.base_rows[3] / 3 + told.base_rows[20] * 2 / 3)

    def test_similarity_attends_to_the_mean_piece(self, context):
        told, made = make(context, "embedding", "similarity")
        for row, pieces in enumerate(SPELT):
            rows = told.base_rows[list(pieces)]
            weights = torch.softmax(rows @ rows.mean(dim=0) / 12**0.5, dim=0)
            torch.testing.assert_close(made.rows[row], weights @ rows)
            torch.testing.assert_close(made.coefs[row, : len(pieces)], weights)

    def test_merges_halve_at_every_merge_until_parts_are_shared(self, context, tools):
        # Target 40 is 41 and 3; 41 is 1 and 2. Targets below 30 are base tokens ten higher.
        parts = {40: (41, 3), 41: (1, 2)}
        told = context(wanted=torch.tensor([40]), lexicon=tools.lexicon(target_parts=parts))
        made = Pieces(PiecesParams(weighting="merges"))(told)
        assert made.sources.tolist() == [[11, 12, 13]]
        assert made.coefs.tolist() == [[0.25, 0.25, 0.5]]

    def test_merges_of_a_token_that_cannot_be_spelt_at_all_are_not_served(self, context, tools):
        told = context(
            wanted=torch.tensor([40]), pieces=[()], lexicon=tools.lexicon(target_parts={40: (41, 3)})
        )
        assert Pieces(PiecesParams(weighting="merges"))(told).served.tolist() == [False]

    def test_merges_fall_back_on_the_bases_own_pieces(self, context, tools):
        told = context(
            wanted=torch.tensor([40, 42]),
            pieces=[(5, 6), (7,)],
            lexicon=tools.lexicon(target_parts={40: (41, 3)}),
        )
        made = Pieces(PiecesParams(weighting="merges"))(told)
        assert made.sources.tolist() == [[5, 6], [7, -1]]
        assert made.coefs.tolist() == [[0.5, 0.5], [1, 0]]


@pytest.mark.parametrize("side", ["embedding", "lm_head", "tied"])
@pytest.mark.parametrize("weighting", ["mean", "last_first", "eeve", "length", "position", "exponential"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_weights_add_up_to_one(side, weighting, count):
    weights = Pieces(PiecesParams(weighting=weighting)).weights([1] * count, side)
    assert len(weights) == count
    assert sum(weights) == pytest.approx(1)


def test_no_pieces_have_no_weights():
    for weighting in ("mean", "last_first", "eeve", "length", "position", "exponential"):
        for side in ("embedding", "lm_head", "tied"):
            assert Pieces(PiecesParams(weighting=weighting)).weights([], side) == []


@pytest.mark.parametrize("weighting", ["mean", "last_first", "similarity"])
@pytest.mark.parametrize("side", ["embedding", "lm_head", "tied"])
def test_a_token_that_cannot_be_spelt_gets_the_mean_row_and_is_not_served(context, side, weighting):
    told, made = make(context, side, weighting, pieces=[(4,), (), (6, 1)])
    torch.testing.assert_close(made.rows[1], told.base_rows.mean(dim=0))
    assert made.served.tolist() == [True, False, True]
    assert made.sources[1].tolist() == [-1, -1]
    assert made.rows[0].equal(told.base_rows[4])


def test_all_tokens_may_be_without_pieces(context):
    told, made = make(context, "embedding", pieces=[(), ()])
    torch.testing.assert_close(made.rows, told.base_rows.mean(dim=0).expand(2, -1))


def test_the_mean_row_leaves_out_rows_without_a_token(context, tools):
    base = tools.random(1, 40, 12)
    base[35:] = 1e6
    _, made = make(context, "embedding", pieces=[()], told={"base_rows": base, "base_ids": torch.arange(35)})
    torch.testing.assert_close(made.rows[0], base[:35].mean(dim=0))


@pytest.mark.parametrize("side", ["embedding", "lm_head"])
def test_sources_are_the_pieces_in_order_and_rebuild_the_rows(context, tools, side):
    told, made = make(context, side)
    assert made.sources.tolist() == [[3, 8, 5], [7, -1, -1], [2, 2, -1], [1, 9, -1]]
    torch.testing.assert_close(tools.rebuild(made, told.base_rows), made.rows)
    assert made.residual is None


@pytest.mark.parametrize("batch_size", [1, 3])
def test_rows_do_not_depend_on_the_batch_size(context, batch_size):
    _, whole = make(context, "lm_head")
    _, split = make(context, "lm_head", told={"batch_size": batch_size})
    torch.testing.assert_close(split.rows, whole.rows)


def test_every_token_is_counted(context):
    finished = []
    make(context, "embedding", told={"batch_size": 3, "advance": finished.append})
    assert finished == [3, 1]


def test_no_donor_is_needed_and_half_precision_is_read(context, tools):
    told, made = make(
        context, "embedding", told={"donor_rows": None, "base_rows": tools.random(1, 40, 12).bfloat16()}
    )
    assert made.rows.dtype is torch.float32
    assert made.rows.equal(told.base_rows[[5, 7, 2, 9]].float())
