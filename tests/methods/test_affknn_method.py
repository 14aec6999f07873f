"""An affine map of the donor's row, corrected by what the map misses nearby."""

import pytest
import torch

from tokensurgeon.methods.affknn import Affknn
from tokensurgeon.methods.params import AffknnParams


def test_rows_are_the_formula(context):
    told = context()
    made = Affknn(AffknnParams(k=3, temperature=0.2, ridge=0.5))(told)
    x, y = told.donor_rows[:30].double(), told.base_rows[10:].double()
    xc, yc = x - x.mean(0), y - y.mean(0)
    gram = xc.T @ xc
    into_base = torch.linalg.solve(
        gram + 0.5 * gram.trace() / 20 * torch.eye(20, dtype=torch.float64), xc.T @ yc
    )
    missed = yc - xc @ into_base
    for row, index in enumerate(told.wanted.tolist()):
        t = told.donor_rows[index].double() - x.mean(0)
        cosines = torch.stack([t @ a / (t.norm() * a.norm()) for a in xc])
        top = sorted(range(30), key=lambda place: -float(cosines[place]))[:3]
        raw = torch.exp(cosines[top] / 0.2)
        expected = y.mean(0) + t @ into_base + (raw / raw.sum()) @ missed[top]
        torch.testing.assert_close(made.rows[row].double(), expected, rtol=1e-4, atol=1e-4)
        assert made.sources[row].tolist() == [10 + place for place in top]
        torch.testing.assert_close(made.coefs[row].double(), raw / raw.sum(), rtol=1e-4, atol=1e-4)
        assert made.corrects[row]


def test_an_affine_relation_is_carried_over_exactly(context, tools):
    donor, into_base = tools.random(3, 50, 20), tools.random(4, 20, 12)
    base = torch.cat([tools.random(5, 10, 12), donor[:30] @ into_base + 7])
    made = Affknn(AffknnParams(ridge=0))(context(donor_rows=donor, base_rows=base))
    torch.testing.assert_close(made.rows, donor[30:] @ into_base + 7, rtol=1e-3, atol=1e-3)


def test_a_token_with_an_anchors_donor_row_gets_nearly_its_row_when_cold(context):
    told = context()
    told.donor_rows[30] = told.donor_rows[4]
    made = Affknn(AffknnParams(k=16, temperature=0.001))(told)
    torch.testing.assert_close(made.rows[0], told.base_rows[14], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", [{"k": 1}, {"temperature": 1.0}, {"ridge": 1.0}])
def test_every_option_changes_the_rows(context, change):
    told = context()
    plain, other = Affknn(AffknnParams())(told), Affknn(AffknnParams(**change))(told)
    assert not torch.allclose(plain.rows, other.rows, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(context, batch_size):
    whole, split = (Affknn(AffknnParams())(context(batch_size=size)) for size in (512, batch_size))
    torch.testing.assert_close(split.rows, whole.rows)


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_anchors_that_span_few_dimensions_give_finite_rows(context, tools, ridge):
    donor = tools.random(3, 50, 3) @ tools.random(4, 3, 20)
    for rows in (donor, torch.ones(50, 20)):
        assert torch.isfinite(Affknn(AffknnParams(ridge=ridge))(context(donor_rows=rows)).rows).all()


def test_the_tables_are_left_as_they_were(context):
    told = context()
    donor, base = told.donor_rows.clone(), told.base_rows.clone()
    Affknn(AffknnParams())(told)
    assert told.donor_rows.equal(donor)
    assert told.base_rows.equal(base)
