r"""Time the back ends of the nearest-atom search against each other on this CPU.

Tables and queries are the two real models' embeddings where ``build/models`` has them, else noise of the same
shape. The back ends take turns in one process and the best round counts, so a ratio stands also where other
work makes both slower. Large cells are timed on fewer queries than asked for; time is proportional::

    python scripts/bench_nearest.py --json build/bench_nearest.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tokensurgeon.solvers.nearest import FaissFlat, FaissIvf, NearestIndex, TorchNearest

MODELS = Path("build/models")
TABLES = {"smollm2": (49_152, 576), "gemma3": (262_144, 640)}
CELLS = [(10_000, "smollm2"), (46_000, "smollm2"), (262_144, "gemma3")]
QUERIES = (100, 3_000, 50_000)
NEIGHBOURS = (1, 16, 64)


def read_table(name: str) -> Tensor:
    """Embedding rows of a real model in float32, or noise of their shape."""
    path = MODELS / name / "model.safetensors"
    if not path.is_file():
        return torch.randn(TABLES[name], generator=torch.Generator().manual_seed(0))
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("model.embed_tokens.weight").float()


def time_cell(indices: dict[str, NearestIndex], queries: Tensor, k: int, rounds: int) -> dict[str, float]:
    """Best seconds of each index."""
    best = dict.fromkeys(indices, float("inf"))
    for _ in range(rounds):
        for name, index in indices.items():
            start = time.perf_counter()
            index.search(queries, k)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path("build/bench_nearest.json"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=float, default=1e11, help="most multiplications a timing")
    parser.add_argument("--lists", action="store_true", help="also FAISS's lists, a minute more")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, seconds, faiss / torch")
    print("      N    D      B    k   torch   faiss  ratio")
    cells = []
    for count, name in CELLS:
        table = read_table(name)
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
        atoms = table[order[:count].sort().values]
        rows = table[order.flip(0)].repeat(2, 1)
        indices: dict[str, NearestIndex] = {"torch": TorchNearest(atoms), "faiss": FaissFlat(atoms)}
        most = int(arguments.work / atoms.numel())
        for size in sorted({min(size, most) for size in QUERIES}):
            for k in NEIGHBOURS:
                seconds = time_cell(indices, rows[:size], k, arguments.rounds)
                cell = {"N": count, "D": atoms.shape[1], "B": size, "k": k, **seconds}
                cell["ratio"] = seconds["faiss"] / seconds["torch"]
                cells.append(cell)
                print(
                    "{N:7} {D:4} {B:6} {k:4} {torch:7.3f} {faiss:7.3f} {ratio:6.2f}".format(**cell),
                    flush=True,
                )
    if arguments.lists:
        start = time.perf_counter()
        lists = FaissIvf(atoms)
        cell = {"N": count, "B": 500, "k": 10, "build": time.perf_counter() - start, "recall": lists.recall}
        cell |= time_cell({"torch": indices["torch"], "lists": lists}, rows[:500], 10, arguments.rounds)
        cells.append(cell)
        print("lists: " + ", ".join(f"{name} {value:.3g}" for name, value in cell.items()))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
