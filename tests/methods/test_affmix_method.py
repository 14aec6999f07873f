"""An affine map of the donor's row, corrected by chosen anchors and by near ones."""

import pytest
import torch

from tokensurgeon.methods.affknn import Affknn
from tokensurgeon.methods.affmix import Affmix
from tokensurgeon.methods.affomp import Affomp
from tokensurgeon.methods.params import AffknnParams, AffmixParams, AffompParams


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_rows_lie_between_those_of_affomp_and_affknn(context, share):
    told = context()
    chosen = Affomp(AffompParams(k=3, ridge=0.5))(told).rows
    near = Affknn(AffknnParams(k=5, temperature=0.2, ridge=0.5))(told).rows
    params = AffmixParams(k=3, neighbours=5, temperature=0.2, ridge=0.5, nearest=share)
    made = Affmix(params)(told)
    torch.testing.assert_close(made.rows, (1 - share) * chosen + share * near, rtol=1e-4, atol=1e-4)


def test_its_sources_give_the_correction_and_none_is_named_twice(context):
    told = context()
    made = Affmix(AffmixParams(k=4, neighbours=6))(told)
    chosen = Affomp(AffompParams(k=4))(told)
    near = Affknn(AffknnParams(k=6))(told)
    shared = 0
    for row in range(len(told.wanted)):
        halves: dict[int, float] = {}
        for half in (chosen, near):
            for source, coef in zip(half.sources[row].tolist(), half.coefs[row].tolist(), strict=True):
                shared += source in halves
                halves[source] = halves.get(source, 0) + coef / 2
        told_of = [
            (source, coef)
            for source, coef in zip(made.sources[row].tolist(), made.coefs[row].tolist(), strict=True)
            if source >= 0
        ]
        assert dict(told_of) == pytest.approx(halves, abs=1e-5)
        assert len(told_of) == len(halves)
    assert shared
    assert made.corrects.all()
    torch.testing.assert_close(made.residual, chosen.residual)


def test_an_affine_relation_is_carried_over_exactly(context, tools):
    donor, into_base = tools.random(3, 50, 20), tools.random(4, 20, 12)
    base = torch.cat([tools.random(5, 10, 12), donor[:30] @ into_base + 7])
    made = Affmix(AffmixParams(ridge=0))(context(donor_rows=donor, base_rows=base))
    torch.testing.assert_close(made.rows, donor[30:] @ into_base + 7, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "change", [{"k": 1}, {"neighbours": 1}, {"temperature": 1.0}, {"nearest": 0.1}, {"ridge": 1.0}]
)
def test_every_option_changes_the_rows(context, change):
    told = context()
    plain, other = Affmix(AffmixParams())(told), Affmix(AffmixParams(**change))(told)
    assert not torch.allclose(plain.rows, other.rows, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_rows_do_not_depend_on_the_batch_size(context, batch_size):
    whole, split = (Affmix(AffmixParams())(context(batch_size=size)) for size in (512, batch_size))
    torch.testing.assert_close(split.rows, whole.rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_anchors_that_span_few_dimensions_give_finite_rows(context, tools, ridge):
    donor = tools.random(3, 50, 3) @ tools.random(4, 3, 20)
    for rows in (donor, torch.ones(50, 20)):
        assert torch.isfinite(Affmix(AffmixParams(ridge=ridge))(context(donor_rows=rows)).rows).all()


def test_the_tables_are_left_as_they_were(context):
    told = context()
    donor, base = told.donor_rows.clone(), told.base_rows.clone()
    Affmix(AffmixParams())(told)
    assert told.donor_rows.equal(donor)
    assert told.base_rows.equal(base)
