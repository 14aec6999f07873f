r"""Time ``head_fit`` against the products it cannot do without, on this machine.

As many rows as SmolLM2 has, three in ten of them free, and examples as ``auto`` reads them: half of any text,
half limited to one of five writing systems. Each example is multiplied with the rows it may hold once, with
the free ones among them once more, and twice a pass. The limit is the time those products take at the speed
of one batch's, measured in the same run before and after::

    python scripts/bench_fit.py --json build/bench/fit.json

On two cores of an EPYC of the first generation, in float32: 28 s, 1.4 times the products. When each step
multiplied slopes and moves with the root, and all examples with all rows, it was 66 s, 3.3 times.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from tokensurgeon.reading import PASSES
from tokensurgeon.solvers.dictionary import fast_dtype
from tokensurgeon.solvers.softmax import fit_softmax_rows

ROWS, WIDTH, FREE, SYSTEMS, SYSTEM_ROWS = 49_152, 576, 14_336, 5, 2_048
_BATCH = 1024


def products_per_second(states: Tensor, rows: Tensor) -> float:
    """Floating-point operations a second of a batch times all rows, the best of three."""
    fast = fast_dtype(rows.device)
    part, table = states[:_BATCH].to(fast), rows.to(fast).mT
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        part @ table
        if rows.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * part.numel() * len(rows) / best


def make_examples(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """States, rows, what follows, limits, and what those allow; drawn as the rows say."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((ROWS, WIDTH), generator=generator) * 2 / WIDTH**0.5
    states = torch.randn((count, WIDTH), generator=generator)
    limits = (torch.arange(count) % (2 * SYSTEMS)).clamp(max=SYSTEMS)
    allowed = torch.zeros((SYSTEMS + 1, ROWS), dtype=torch.bool)
    allowed[SYSTEMS] = True
    for system in range(SYSTEMS):
        allowed[system, system * SYSTEM_ROWS : (system + 1) * SYSTEM_ROWS] = True
    following = torch.cat(
        [
            torch.multinomial(
                (part @ rows.mT).masked_fill_(~allowed[limit], -torch.inf).softmax(dim=1),
                1,
                generator=generator,
            )[:, 0]
            for part, limit in zip(states.split(_BATCH), limits.split(_BATCH), strict=True)
        ]
    )
    states, rows, following, limits, allowed = (
        some.to(device) for some in (states, rows, following, limits, allowed)
    )
    return states, rows, following, limits, allowed


def main() -> None:
    """Print the figures, and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=8 * _BATCH)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, default=Path("build/bench/fit.json"))
    arguments = parser.parse_args()
    states, rows, following, limits, allowed = make_examples(arguments.examples, arguments.device)
    free = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))[:FREE].to(arguments.device)
    root = 0.1 * torch.eye(WIDTH, device=arguments.device)
    speeds = [products_per_second(states, rows)]
    started = time.perf_counter()
    fit_softmax_rows(
        states,
        following,
        rows,
        free,
        root,
        groups=torch.zeros_like(free),
        limits=(limits, allowed),
        passes=PASSES,
    ).cpu()
    seconds = time.perf_counter() - started
    speeds.append(products_per_second(states, rows))
    multiplied = allowed.sum(dim=1)[limits] + (1 + 2 * PASSES) * allowed[:, free].sum(dim=1)[limits]
    limit = 2 * WIDTH * int(multiplied.sum()) / max(speeds)
    found = {
        "device": str(arguments.device),
        "threads": torch.get_num_threads(),
        "dtype": str(fast_dtype(arguments.device)),
        "examples": arguments.examples,
        "seconds": seconds,
        "products_seconds": limit,
        "ratio": seconds / limit,
    }
    print(f"{seconds:.2f} s, of which products {limit:.2f} s: {seconds / limit:.2f} times those")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
