"""Random rows that look like the base's."""

import pytest
import torch

from tokensurgeon.methods.gaussian import Gaussian
from tokensurgeon.methods.params import GaussianParams


def draw(context, seed=0, count=20, told=None, **params):
    return Gaussian(GaussianParams(**params))(
        context(
            generator=torch.Generator().manual_seed(seed),
            wanted=torch.arange(count),
            **(told or {}),
        )
    ).rows


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_same_seed_draws_the_same_rows_and_another_seed_others(context, covariance):
    first = draw(context, covariance=covariance)
    assert draw(context, covariance=covariance).equal(first)
    assert not draw(context, seed=1, covariance=covariance).isclose(first).any(dim=1).all()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_no_two_tokens_share_a_row(context, covariance):
    assert len(torch.unique(draw(context, covariance=covariance), dim=0)) == 20


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_rows_do_not_depend_on_the_batch_size(context, covariance):
    whole = draw(context, covariance=covariance)
    assert draw(context, told={"batch_size": 3}, covariance=covariance).equal(whole)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_mean_and_spread_are_those_of_the_base(context, tools, covariance):
    base = tools.random(1, 40, 12) * torch.linspace(0.5, 4, 12) + torch.linspace(-3, 3, 12)
    rows = draw(context, count=20_000, told={"base_rows": base}, covariance=covariance)
    spread = base.std(dim=0, correction=0)
    assert ((rows.mean(dim=0) - base.mean(dim=0)).abs() < 0.05 * spread).all()
    torch.testing.assert_close(rows.std(dim=0), spread, rtol=0.05, atol=0)


def test_full_covariance_keeps_what_dimensions_share_and_diagonal_does_not(context, tools):
    base = tools.random(1, 40, 12)
    base[:, 1] = 2 * base[:, 0]
    full, diagonal = (
        draw(context, count=5000, told={"base_rows": base}, covariance=choice)
        for choice in ("full", "diagonal")
    )
    assert torch.corrcoef(full.T)[0, 1] > 0.999
    assert torch.corrcoef(diagonal.T)[0, 1].abs() < 0.05
    torch.testing.assert_close(torch.cov(full.T), torch.cov(base.T, correction=0), rtol=0.1, atol=0.1)


def test_full_covariance_works_with_fewer_rows_than_dimensions(context, tools):
    base = tools.random(1, 5, 12)
    told = {"base_rows": base, "base_ids": torch.arange(5)}
    rows = draw(context, count=5000, told=told, covariance="full")
    assert torch.isfinite(rows).all()
    centred = rows - base.mean(dim=0)
    # Five rows span four directions around their mean; nothing is drawn outside of them.
    values = torch.linalg.svdvals(centred)
    assert values[4] < 1e-4 * values[0]
    assert values[3] > 1e-2 * values[0]


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_single_base_row_is_repeated(context, tools, covariance):
    base = tools.random(1, 1, 12)
    rows = draw(context, told={"base_rows": base, "base_ids": torch.arange(1)}, covariance=covariance)
    torch.testing.assert_close(rows, base.expand(20, -1))


def test_the_scale_is_a_factor_on_the_distance_from_the_mean(context):
    mean = context().base_mean
    torch.testing.assert_close(draw(context, scale=0.01) - mean, 0.01 * (draw(context) - mean))


def test_rows_without_a_token_are_left_out(context, tools):
    base = tools.random(1, 40, 12)
    base[30:] = 1e6
    rows = draw(context, told={"base_rows": base, "base_ids": torch.arange(30)})
    assert rows.abs().max() < 10


def test_the_two_ends_of_a_model_get_different_noise(context):
    embedding, head = (
        Gaussian(GaussianParams())(context(donor_rows=None, side=side)).rows
        for side in ("embedding", "lm_head")
    )
    assert not torch.allclose(embedding, head, atol=1e-2)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_token_s_noise_does_not_depend_on_how_many_follow(context, monkeypatch, covariance):
    monkeypatch.setattr("tokensurgeon.methods.gaussian._BLOCK", 8)
    method = Gaussian(GaussianParams(covariance=covariance))
    whole = method(context(donor_rows=None)).rows
    fewer = method(context(donor_rows=None, wanted=torch.arange(30, 43))).rows
    torch.testing.assert_close(whole[:13], fewer)
    assert len(torch.unique(whole, dim=0)) == 20


def test_rows_are_no_combinations_and_every_token_is_counted(context):
    finished = []
    made = Gaussian(GaussianParams())(context(donor_rows=None, advance=finished.append))
    assert (made.sources, made.coefs, made.residual) == (None, None, None)
    assert made.rows.dtype is torch.float32
    assert sum(finished) == 20
