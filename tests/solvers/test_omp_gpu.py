"""The solver on CUDA gives what it gives on the CPU."""

from __future__ import annotations

import pytest
import torch

from tokensurgeon.solvers.dictionary import Dictionary
from tokensurgeon.solvers.omp import omp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("mode", ["exact", "screened"])
def test_the_device_does_not_change_the_answer(mode):
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn((2000, 64), generator=generator)
    targets = torch.randn((300, 64), generator=generator)
    here = omp(targets, Dictionary.prepare(atoms), 8, mode=mode)
    there = omp(targets.cuda(), Dictionary.prepare(atoms.cuda()), 8, mode=mode)
    if mode == "exact":
        assert (here.indices == there.indices.cpu()).all(dim=1).float().mean() > 0.99
    torch.testing.assert_close(here.residual.mean(), there.residual.cpu().mean(), rtol=1e-3, atol=1e-4)


def test_what_bfloat16_takes_is_proven_to_be_what_float32_takes():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn((20_000, 256), generator=generator).cuda()
    targets = torch.randn((2000, 256), generator=generator).cuda()
    coarse = Dictionary.prepare(atoms, coarse_dtype=torch.bfloat16)
    one, other = omp(targets, coarse, 16), omp(targets, coarse.with_float32_products(), 16)
    assert (one.indices == other.indices).all(dim=1).float().mean() > 0.999


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_waits_for_the_device():
    atoms = Dictionary.prepare(torch.randn((5000, 64), device="cuda"))
    targets = torch.randn((256, 64), device="cuda")
    from tokensurgeon.solvers import omp as solver

    try:
        torch.cuda.set_sync_debug_mode("error")
        solver._pursue(targets, atoms, 8, 0.0)
        solver._pursue_screened(targets, atoms, 8, 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
