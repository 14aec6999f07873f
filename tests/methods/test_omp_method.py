"""Rows are combinations of anchors, found in the donor's space and applied in the base's."""

import pytest
import torch

from tokensurgeon.methods.omp import Omp
from tokensurgeon.methods.params import OmpParams


def test_rows_are_exact_where_the_base_is_a_linear_map_of_the_donor(context, tools):
    # 20 donor dimensions and 20 anchors a token span the donor's space, so a linear map carries over.
    donor, into_base = tools.random(3, 50, 20), tools.random(4, 20, 12)
    base = torch.cat([tools.random(5, 10, 12), donor[:30] @ into_base])
    made = Omp(OmpParams(k=20, tolerance=0))(context(donor_rows=donor, base_rows=base))
    assert made.rows.shape == (20, 12)
    torch.testing.assert_close(made.rows, donor[30:] @ into_base, rtol=1e-3, atol=1e-3)
    assert made.residual.max() < 1e-4


def test_a_sparse_mixture_of_anchors_gets_the_same_mixture_of_base_rows(context, tools):
    donor = tools.random(3, 50, 20)
    donor[30] = 2 * donor[4] - 0.5 * donor[17]
    told = context(donor_rows=donor, wanted=torch.tensor([30]))
    made = Omp(OmpParams(k=8))(told)
    assert sorted(made.sources[0, :2].tolist()) == [14, 27]
    torch.testing.assert_close(made.rows[0], 2 * told.base_rows[14] - 0.5 * told.base_rows[27])


def test_sources_and_coefficients_rebuild_the_rows(context, tools):
    told = context()
    made = Omp(OmpParams(k=6))(told)
    assert made.sources.shape == made.coefs.shape == (20, 6)
    torch.testing.assert_close(tools.rebuild(made, told.base_rows), made.rows)


def test_sources_are_base_ids_of_anchors(context):
    # Targets 0, 2, 4, ... stand for base tokens 39, 38, 37, ...
    told = context(anchor_targets=torch.arange(0, 30, 2), anchor_bases=torch.arange(39, 24, -1))
    made = Omp(OmpParams(k=4))(told)
    assert set(made.sources.flatten().tolist()) <= set(range(25, 40))
    told.donor_rows[30] = told.donor_rows[2]
    made = Omp(OmpParams(k=1))(told)
    assert made.sources[0].tolist() == [38]
    torch.testing.assert_close(made.rows[0], told.base_rows[38])


def test_the_residual_is_what_is_missed_in_the_donors_space(context):
    told = context()
    made = Omp(OmpParams(k=3))(told)
    fitted = (made.coefs[:, :, None] * told.donor_rows[made.sources - 10]).sum(dim=1)
    wanted = told.donor_rows[told.wanted]
    expected = (wanted - fitted).norm(dim=1) / wanted.norm(dim=1)
    torch.testing.assert_close(made.residual, expected)


def test_k_is_cut_to_the_rank_of_the_anchors(context, tools):
    donor = tools.random(3, 50, 5) @ tools.random(4, 5, 20)
    made = Omp(OmpParams(k=64, tolerance=0))(context(donor_rows=donor))
    assert (made.sources >= 0).sum(dim=1).max() <= 5
    assert torch.isfinite(made.rows).all()


@pytest.mark.parametrize("anchors", [1, 2, 7])
def test_few_anchors_give_a_defined_row(context, tools, anchors):
    told = context(anchor_targets=torch.arange(anchors), anchor_bases=torch.arange(anchors) + 10)
    made = Omp(OmpParams(k=8))(told)
    assert made.sources.shape == (20, anchors)
    assert torch.isfinite(made.rows).all()
    torch.testing.assert_close(tools.rebuild(made, told.base_rows), made.rows)


def test_without_anchors_nothing_is_explained(context):
    none = torch.zeros(0, dtype=torch.int64)
    made = Omp(OmpParams(k=8))(context(anchor_targets=none, anchor_bases=none))
    assert made.sources.shape == (20, 0)
    assert made.residual.tolist() == [1] * 20


def test_the_tolerance_ends_a_row_early(context):
    told = context()
    loose, tight = (Omp(OmpParams(k=20, tolerance=t))(told) for t in (0.5, 0))
    assert (loose.residual <= 0.5).all()
    assert ((loose.sources >= 0).sum(dim=1) < (tight.sources >= 0).sum(dim=1)).all()


def test_normalising_atoms_is_an_option_that_matters(context, tools):
    donor = tools.random(3, 50, 20)
    donor[:30] *= torch.linspace(0.1, 10, 30)[:, None]
    by_angle, by_length = (
        Omp(OmpParams(k=4, normalize_atoms=choice))(context(donor_rows=donor)) for choice in (True, False)
    )
    assert by_length.sources.float().mean() > by_angle.sources.float().mean() + 3


class TestModes:
    def test_auto_is_exact_until_that_takes_minutes(self):
        auto = OmpParams()
        assert auto.choose_mode(3_000, 46_000, 576, "cpu") == "exact"
        assert auto.choose_mode(216_000, 46_000, 640, "cpu") == "screened"
        assert auto.choose_mode(216_000, 46_000, 640, "cuda") == "exact"

    @pytest.mark.parametrize("mode", ["exact", "screened"])
    def test_a_mode_that_was_asked_for_is_taken(self, mode, context):
        assert OmpParams(mode=mode).choose_mode(10**9, 10**6, 8192, "cpu") == mode
        assert Omp(OmpParams(k=4, mode=mode))(context()).solver == mode

    def test_screened_rows_come_with_their_agreement_with_exact_ones(self, context, tools):
        told = context(
            base_rows=tools.random(1, 900, 12),
            base_ids=torch.arange(900),
            donor_rows=tools.random(2, 1500, 96),
            wanted=torch.arange(900, 1500),
            anchor_targets=torch.arange(900),
            anchor_bases=torch.arange(900),
        )
        exact, screened = (Omp(OmpParams(k=16, mode=mode))(told) for mode in ("exact", "screened"))
        assert exact.agreement is None
        seen = screened.agreement
        assert seen.sample == 256
        sample = torch.linspace(0, 599, 256).long()
        assert seen.residual == pytest.approx(float(screened.residual[sample].mean()))
        assert seen.exact_residual == pytest.approx(float(exact.residual[sample].mean()))
        assert seen.exact_residual < seen.residual < 1.05 * seen.exact_residual
        assert 0.3 < seen.shared_anchors < 1
        assert 0 < seen.proven < 1

    def test_its_cost_is_known_before_a_row_is_read(self):
        exact, screened = (OmpParams(mode=m).cost(1000, 46_000, 640, "cpu") for m in ("exact", "screened"))
        assert exact.operations == 2 * 64 * 46_000 * 640 * 1000
        assert screened.operations < exact.operations / 4
        assert exact.bytes_per_token > 4 * 46_000


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_rows_do_not_depend_on_the_batch_size(context, batch_size):
    whole, split = (Omp(OmpParams(k=6))(context(batch_size=size)) for size in (512, batch_size))
    assert split.sources.equal(whole.sources)
    assert split.rows.equal(whole.rows)


def test_every_token_is_counted(context):
    finished = []
    Omp(OmpParams(k=2))(context(batch_size=8, advance=finished.append))
    assert finished == [8, 8, 4]


def test_half_precision_rows_are_read_and_single_precision_comes_out(context, tools):
    told = context(base_rows=tools.random(1, 40, 12).bfloat16(), donor_rows=tools.random(2, 50, 20).half())
    made = Omp(OmpParams(k=4))(told)
    assert made.rows.dtype is torch.float32
    torch.testing.assert_close(tools.rebuild(made, told.base_rows), made.rows)


def test_without_a_donor_it_is_a_mistake_of_the_caller(context):
    with pytest.raises(RuntimeError, match="no donor rows; the registry must say"):
        Omp(OmpParams())(context(donor_rows=None))
