"""The two simplest rows: the mean of the base, and nothing."""

import pytest
import torch

from tokensurgeon.methods.mean import Mean
from tokensurgeon.methods.params import MeanParams, ZeroParams
from tokensurgeon.methods.zero import Zero


def test_every_token_gets_the_mean_row(context):
    told = context()
    made = Mean(MeanParams())(told)
    torch.testing.assert_close(made.rows, told.base_rows.mean(dim=0).expand(20, -1))
    assert made.rows.dtype is torch.float32


def test_the_mean_row_leaves_out_rows_without_a_token(context, tools):
    base = tools.random(1, 40, 12)
    base[[0, 17, 39]] = 1e6
    ids = torch.tensor([index for index in range(40) if index not in (0, 17, 39)])
    made = Mean(MeanParams())(context(base_rows=base, base_ids=ids))
    torch.testing.assert_close(made.rows[0], base[ids].mean(dim=0))


def test_the_logit_of_the_mean_row_is_the_mean_logit(context, tools):
    told = context()
    hidden = tools.random(9, 12)
    made = Mean(MeanParams())(told)
    torch.testing.assert_close(made.rows[0] @ hidden, (told.base_rows @ hidden).mean())


def test_the_mean_of_half_precision_rows_is_not_rounded_to_half_precision(context):
    # The two neighbours have no bfloat16 number between them.
    base = torch.tensor([[1.0], [1.0078125]]).bfloat16()
    made = Mean(MeanParams())(context(base_rows=base, base_ids=torch.arange(2)))
    assert made.rows[0].tolist() == [1.00390625]


def test_zero_rows_are_zero_and_as_wide_as_the_base(context):
    made = Zero(ZeroParams())(context())
    assert made.rows.shape == (20, 12)
    assert made.rows.dtype is torch.float32
    assert not made.rows.any()


@pytest.mark.parametrize("method", [Mean(MeanParams()), Zero(ZeroParams())], ids=["mean", "zero"])
def test_they_are_no_combinations_and_count_every_token(context, method):
    finished = []
    made = method(context(advance=finished.append, donor_rows=None))
    assert (made.sources, made.coefs, made.residual) == (None, None, None)
    assert sum(finished) == 20
