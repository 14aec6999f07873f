"""A small base, a donor of another width, and everything a method is told about them."""

from types import SimpleNamespace

import pytest
import torch

from tokensurgeon.methods.base import MethodContext


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_context(**changes):
    """40 base tokens of width 12, 50 target tokens; targets 0 to 29 are base tokens 10 to 39."""
    told = {
        "side": "embedding",
        "base_rows": random(1, 40, 12),
        "base_ids": torch.arange(40),
        "donor_rows": random(2, 50, 20),
        "wanted": torch.arange(30, 50),
        "anchor_targets": torch.arange(30),
        "anchor_bases": torch.arange(10, 40),
        "generator": torch.Generator().manual_seed(0),
        "device": torch.device("cpu"),
        "batch_size": 512,
        "advance": lambda count: None,
    }
    told |= changes
    told.setdefault("pieces", [(int(index) % 40, int(index) % 7) for index in told["wanted"]])
    return MethodContext(**told)


@pytest.fixture(scope="session")
def context():
    """Makes a context; any field may be given."""
    return make_context


@pytest.fixture(scope="session")
def tools():
    """``random(seed, *shape)`` and ``rebuild(made, base_rows)``."""

    def rebuild(made, base_rows):
        return (made.coefs[:, :, None] * base_rows.float()[made.sources.clamp(min=0)]).sum(dim=1)

    return SimpleNamespace(random=random, rebuild=rebuild)
