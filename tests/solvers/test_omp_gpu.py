"""The solver on CUDA gives what it gives on the CPU."""

from __future__ import annotations

import pytest
import torch

from tokensurgeon.solvers.omp import omp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_device_does_not_change_the_answer():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn((2000, 64), generator=generator)
    targets = torch.randn((300, 64), generator=generator)
    here = omp(targets, atoms, 8)
    there = omp(targets.cuda(), atoms.cuda(), 8)
    assert (here.indices == there.indices.cpu()).all(dim=1).float().mean() > 0.99
    torch.testing.assert_close(here.residual, there.residual.cpu(), rtol=1e-3, atol=1e-4)
