"""An affine map of the donor's row, corrected at anchors that matching pursuit chooses."""

import pytest
import torch

from tokensurgeon.methods.affine import Affine
from tokensurgeon.methods.affomp import Affomp
from tokensurgeon.methods.omp import Omp
from tokensurgeon.methods.params import AffineParams, AffompParams, OmpParams


def test_rows_are_the_formula(context):
    told = context()
    made = Affomp(AffompParams(k=3, ridge=0.5))(told)
    x, y = told.donor_rows[:30].double(), told.base_rows[10:].double()
    xc, yc = x - x.mean(0), y - y.mean(0)
    gram = xc.T @ xc
    into_base = torch.linalg.solve(
        gram + 0.5 * gram.trace() / 20 * torch.eye(20, dtype=torch.float64), xc.T @ yc
    )
    for row, index in enumerate(told.wanted.tolist()):
        t = told.donor_rows[index].double() - x.mean(0)
        left, taken = t, []
        for _ in range(3):
            scores = [-1.0 if j in taken else float((a @ left).abs() / a.norm()) for j, a in enumerate(xc)]
            taken.append(scores.index(max(scores)))
            coefs = torch.linalg.lstsq(xc[taken].T, t[:, None]).solution[:, 0]
            left = t - coefs @ xc[taken]
        expected = y.mean(0) + coefs @ yc[taken] + left @ into_base
        torch.testing.assert_close(made.rows[row].double(), expected, rtol=1e-4, atol=1e-4)
        assert made.sources[row].tolist() == [10 + place for place in taken]
        torch.testing.assert_close(made.coefs[row].double(), coefs, rtol=1e-4, atol=1e-4)
        assert made.corrects[row]
        assert float(made.residual[row]) == pytest.approx(float(left.norm() / t.norm()), abs=1e-5)


def test_an_affine_relation_is_carried_over_exactly(context, tools):
    donor, into_base = tools.random(3, 50, 20), tools.random(4, 20, 12)
    base = torch.cat([tools.random(5, 10, 12), donor[:30] @ into_base + 7])
    made = Affomp(AffompParams(ridge=0))(context(donor_rows=donor, base_rows=base))
    torch.testing.assert_close(made.rows, donor[30:] @ into_base + 7, rtol=1e-3, atol=1e-3)


def test_a_token_with_an_anchors_donor_row_gets_its_row(context):
    told = context()
    told.donor_rows[30] = told.donor_rows[4]
    made = Affomp(AffompParams(k=1))(told)
    torch.testing.assert_close(made.rows[0], told.base_rows[14], rtol=1e-4, atol=1e-4)


def test_without_a_map_it_is_omp_between_centred_rows(context):
    plain = context()
    told = context(
        donor_rows=plain.donor_rows - plain.donor_rows[:30].mean(0),
        base_rows=plain.base_rows - plain.base_rows[10:].mean(0),
    )
    made = Affomp(AffompParams(k=3, ridge=1e9))(told)
    torch.testing.assert_close(made.rows, Omp(OmpParams(k=3))(told).rows, rtol=1e-3, atol=1e-3)


def test_more_anchors_move_the_rows_away_from_the_map(context):
    told = context()
    mapped = Affine(AffineParams())(told).rows
    near, far = (Affomp(AffompParams(k=k))(told).rows - mapped for k in (1, 8))
    assert 0 < near.norm() < far.norm()


@pytest.mark.parametrize("change", [{"k": 1}, {"ridge": 1.0}])
def test_every_option_changes_the_rows(context, change):
    told = context()
    plain, other = Affomp(AffompParams())(told), Affomp(AffompParams(**change))(told)
    assert not torch.allclose(plain.rows, other.rows, atol=1e-3)


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_anchors_that_span_few_dimensions_give_finite_rows(context, tools, ridge):
    donor = tools.random(3, 50, 3) @ tools.random(4, 3, 20)
    for rows in (donor, torch.ones(50, 20)):
        assert torch.isfinite(Affomp(AffompParams(ridge=ridge))(context(donor_rows=rows)).rows).all()


def test_the_tables_are_left_as_they_were(context):
    told = context()
    donor, base = told.donor_rows.clone(), told.base_rows.clone()
    Affomp(AffompParams())(told)
    assert told.donor_rows.equal(donor)
    assert told.base_rows.equal(base)
