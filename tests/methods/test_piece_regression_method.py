"""A map from pieces to rows, learnt from base tokens that other tokens could spell."""

from dataclasses import replace

import pytest
import torch

from tokensurgeon.methods.params import PieceRegressionParams
from tokensurgeon.methods.piece_regression import PieceRegression

# 300 base tokens; those from 40 up are spelt by two of the first 40.
PARTS = {index: (index * 7 % 40, index * 11 % 39) for index in range(40, 300)}


@pytest.fixture
def told(context, tools):
    """Rows are a linear function of the parts; wanted tokens are spelt by unseen pairs, one by none."""
    rows = tools.random(1, 300, 12)
    first, last = tools.random(2, 12, 12), tools.random(3, 12, 12)
    for index, (one, other) in PARTS.items():
        rows[index] = rows[one] @ first + rows[other] @ last + 1
    lexicon = tools.lexicon(
        base={index: b"ab" if index >= 40 else b"a" for index in range(300)},
        target=dict.fromkeys(range(50), b"ab"),
        base_parts=PARTS,
    )
    pieces = [(place, 39 - place) for place in range(19)] + [()]
    told = context(base_rows=rows, base_ids=torch.arange(300), pieces=pieces, lexicon=lexicon)
    expected = torch.stack([rows[one] @ first + rows[other] @ last + 1 for one, other in pieces[:19]])
    return told, expected


def test_a_linear_relation_is_learnt(told):
    context, expected = told
    made = PieceRegression(PieceRegressionParams(ridge=0))(context)
    torch.testing.assert_close(made.rows[:19], expected, rtol=1e-2, atol=1e-2)


def test_the_order_of_pieces_counts(told):
    plain, expected = told
    swapped = replace(plain, pieces=[pieces[::-1] for pieces in plain.pieces])
    made = PieceRegression(PieceRegressionParams(ridge=0))(swapped)
    assert (made.rows[:19] - expected).norm() > expected.norm() / 2


def test_rows_are_the_ridge_solution(told):
    context, _ = told
    made = PieceRegression(PieceRegressionParams(ridge=0.3))(context)
    base = context.base_rows.double()
    scale = torch.stack([base[one] for one, _ in PARTS.values()]).norm(dim=1).mean()

    def features(pieces, size):
        mean = torch.stack([base[piece] for piece in pieces]).mean(0)
        extra = torch.tensor([float(len(pieces)), float(size)]).double().log() * scale
        return torch.cat([base[pieces[0]], base[pieces[-1]], mean, extra])

    x = torch.stack([features(parts, 2) for parts in PARTS.values()])
    y = base[list(PARTS)]
    xc, yc = x - x.mean(0), y - y.mean(0)
    gram = xc.T @ xc
    solution = torch.linalg.solve(gram + 0.3 * gram.diagonal().mean() * torch.eye(38).double(), xc.T @ yc)
    expected = torch.stack([features(pieces, 2) for pieces in context.pieces[:19]]) - x.mean(0)
    torch.testing.assert_close(made.rows[:19].double(), expected @ solution + y.mean(0), rtol=1e-3, atol=1e-3)


def test_a_token_without_pieces_is_not_served(told):
    made = PieceRegression(PieceRegressionParams())(told[0])
    assert made.served.tolist() == [True] * 19 + [False]
    torch.testing.assert_close(made.rows[19], told[0].base_mean)


def test_with_too_few_examples_nothing_is_served(context, tools):
    few = tools.lexicon(base_parts={10: (0, 1), 11: (2, 3)})
    made = PieceRegression(PieceRegressionParams())(context(lexicon=few))
    assert not made.served.any()
    assert torch.isfinite(made.rows).all()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(told, batch_size):
    whole, split = (
        PieceRegression(PieceRegressionParams())(replace(told[0], batch_size=size))
        for size in (512, batch_size)
    )
    torch.testing.assert_close(split.rows, whole.rows)


def test_equal_rows_and_no_ridge_give_finite_rows(context, tools):
    lexicon = tools.lexicon(base={index: b"ab" for index in range(300)}, base_parts=PARTS)
    told = context(base_rows=torch.ones(300, 12), base_ids=torch.arange(300), lexicon=lexicon)
    made = PieceRegression(PieceRegressionParams(ridge=0))(told)
    torch.testing.assert_close(made.rows, torch.ones(20, 12))
