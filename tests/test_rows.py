"""Moments of a table, read in parts."""

import torch

from tokensurgeon.rows import mean_row, spread_root


def test_the_root_of_the_spread_is_symmetric_and_its_square_the_covariance():
    table = torch.randn(20000, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    table[:, 1] += table[:, 0]
    ids = torch.arange(3, 20000, 2)
    root = spread_root(table, ids)
    torch.testing.assert_close(root, root.T)
    torch.testing.assert_close(root @ root, table[ids].double().T.cov(correction=0))
    torch.testing.assert_close(mean_row(table, ids), table[ids].double().mean(dim=0))
