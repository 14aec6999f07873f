r"""Time orthogonal matching pursuit against mergekit's and against the machine's own limit.

Everything runs in one go and takes turns: a large matrix product (the limit of any method that scores all
anchors at every step), mergekit's ``batch_omp`` in its own virtual environment, ours in both modes. Prints a
table, writes JSON and a plot of how the cost grows::

    make bench-omp
    python scripts/bench_omp.py --base build/models/smollm2 --donor build/models/gemma3 \
        --mergekit build/mergekit/bin/python --json build/bench/omp.json --plot build/bench/omp.png
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

RANK_TOKENS = 512


def main() -> None:
    """Measure, print, write."""
    options = parse_arguments()
    if options.ranks_worker:
        time_ranks(options)
        return
    anchors, targets = load_pair(options)
    torch.save({"anchors": anchors, "targets": targets[: options.tokens]}, options.work / "omp.pt")
    facts: dict[str, Any] = {
        "machine": machine(options.device),
        "anchors": list(anchors.shape),
        "tokens": options.tokens,
        "k": options.k,
        "rounds": options.rounds,
    }
    facts["solvers"] = compare(options, anchors, targets[: options.tokens])
    print_table(facts)
    if options.plot:
        facts["growth"] = measure_growth(options, anchors, targets)
        draw(facts["growth"], options.plot)
    if options.device == "cpu":
        facts["two_processes"] = compare_ranks(options)
    options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="build/models/smollm2")
    parser.add_argument("--donor", default="build/models/gemma3")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512, help="missing tokens each solver is given a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, help="default: what a run takes")
    parser.add_argument("--mergekit", type=Path, help="python of a virtual environment with mergekit")
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--json", type=Path, default=Path("build/bench/omp.json"))
    parser.add_argument("--plot", type=Path, help="also measure growth in tokens and anchors; a PNG")
    parser.add_argument("--ranks-worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.batch_size = options.batch_size or (256 if options.device == "cpu" else 4096)
    return options


def machine(device: str) -> str:
    """What the figures belong to."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def load_pair(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Donor rows of the anchors, and of missing tokens in random order."""
    from tokensurgeon.checkpoint.reader import map_tensor
    from tokensurgeon.plan import make_plan
    from tokensurgeon.recipe.load import build_recipe
    from tokensurgeon.vocab.canonical import Kind

    document = {"base": options.base, "donor": options.donor, "output": str(options.work / "unused")}
    plan = make_plan(build_recipe(document))
    assert plan.inputs.donor_layout is not None
    rows = map_tensor(plan.inputs.donor_layout.embedding.ref)
    tokens = plan.match.target.tokens
    missing = [i for i in plan.match.missing if i < len(rows) and tokens[i].kind is not Kind.SPECIAL]
    order = torch.randperm(len(missing), generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor(sorted(missing))[order]
    return rows[torch.tensor(list(plan.anchors))].float(), rows[wanted[: 8 * options.tokens]].float()


def compare(
    options: argparse.Namespace, anchors: torch.Tensor, targets: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """All solvers on the same tokens, in turn; medians over the rounds."""
    solvers: dict[str, Callable[[], tuple[float, float]]] = {
        f"product {dtype}": lambda dtype=dtype: time_products(options, anchors, targets, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    for mode in ("exact", "screened"):
        solvers[f"ours {mode}, unit atoms"] = lambda mode=mode: time_ours(
            options, anchors, targets, mode, True
        )
        solvers[f"ours {mode}, atoms as mergekit"] = lambda mode=mode: time_ours(
            options, anchors, targets, mode, False
        )
    peer = None
    if options.mergekit:
        peer = Mergekit(options)
        solvers["mergekit"] = peer.time
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    residuals: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, solve in solvers.items():
            took, residuals[name] = solve()
            seconds[name].append(took)
            print(f"{name}: {took:.2f} s", file=sys.stderr, flush=True)
    if peer:
        peer.close()
    return {
        name: {
            "tokens_per_second": len(targets) / statistics.median(times),
            "seconds": times,
            "mean_residual": residuals[name],
        }
        for name, times in seconds.items()
    }


def wait(device: str) -> None:
    """Let a device finish, so that a clock says what it took."""
    if device != "cpu":
        torch.cuda.synchronize()


def time_products(
    options: argparse.Namespace, anchors: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
) -> tuple[float, float]:
    """Seconds of k products of all targets with all anchors, and nothing else; no residual."""
    left = targets.to(options.device, dtype)
    right = anchors.to(options.device, dtype)
    size = max(options.batch_size, 512)
    torch.mm(left[:size], right.T)
    wait(options.device)
    start = time.perf_counter()
    for _ in range(max(options.k // 8, 1)):
        for part in left.split(size):
            torch.mm(part, right.T)
    wait(options.device)
    return (time.perf_counter() - start) * options.k / max(options.k // 8, 1), float("nan")


def time_ours(
    options: argparse.Namespace, anchors: torch.Tensor, targets: torch.Tensor, mode: str, unit: bool
) -> tuple[float, float]:
    """Seconds of a solve, the dictionary's preparation included, and the mean residual."""
    from tokensurgeon.solvers.dictionary import Dictionary
    from tokensurgeon.solvers.omp import Mode, omp

    anchors, targets = anchors.to(options.device), targets.to(options.device)
    wait(options.device)
    start = time.perf_counter()
    dictionary = Dictionary.prepare(anchors, normalize_atoms=unit)
    result = omp(targets, dictionary, options.k, mode=cast(Mode, mode), batch_size=options.batch_size)
    wait(options.device)
    return time.perf_counter() - start, float(result.residual.double().mean())


class Mergekit:
    """mergekit's solver in its own process; its code never enters ours."""

    SERVER = """
import sys, time, torch
from mergekit.tokensurgeon.omp import batch_omp
data = torch.load(sys.argv[1])
device, k, size = sys.argv[2], int(sys.argv[3]), 512
anchors, targets = data["anchors"].to(device), data["targets"].to(device)
for _ in sys.stdin:
    if device != "cpu": torch.cuda.synchronize()
    start = time.perf_counter()
    parts = [batch_omp(part, anchors, k) for part in targets.split(size)]
    if device != "cpu": torch.cuda.synchronize()
    took = time.perf_counter() - start
    left = [
        (t.double() - torch.einsum("bk,bkd->bd", c.double(), anchors[i].double())).norm(dim=1)
        for t, (i, c) in zip(targets.split(size), parts)
    ]
    residual = torch.cat(left) / targets.double().norm(dim=1)
    print(took, float(residual.mean()), flush=True)
"""

    def __init__(self, options: argparse.Namespace) -> None:
        data = str(options.work / "omp.pt")
        self.process = subprocess.Popen(
            [str(options.mergekit), "-c", self.SERVER, data, options.device, str(options.k)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def time(self) -> tuple[float, float]:
        """Seconds of a solve, and the mean residual, computed outside the clock in float64."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        took, residual = self.process.stdout.readline().split()
        return float(took), float(residual)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def print_table(facts: dict[str, Any]) -> None:
    """The comparison as a table."""
    solvers = facts["solvers"]
    limit = solvers["product torch.float32"]["tokens_per_second"]
    peer = solvers.get("mergekit", {}).get("tokens_per_second")
    peer_residual = solvers.get("mergekit", {}).get("mean_residual")
    print(facts["machine"])
    shape = " x ".join(map(str, facts["anchors"]))
    print(f"{facts['tokens']} missing tokens, {shape} anchors, k = {facts['k']}, {facts['rounds']} rounds")
    print("| solver | tokens/s | / float32 product | / mergekit | mean residual | / mergekit - 1 |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, figures in solvers.items():
        speed, residual = figures["tokens_per_second"], figures["mean_residual"]
        cells = [f"{speed:.1f}", f"{speed / limit:.2f}", f"{speed / peer:.1f}" if peer else ""]
        known = residual == residual
        cells += [f"{residual:.6f}" if known else ""]
        cells += [f"{residual / peer_residual - 1:+.1e}" if known and peer_residual else ""]
        print(f"| {name} | {' | '.join(cells)} |")


def measure_growth(
    options: argparse.Namespace, anchors: torch.Tensor, targets: torch.Tensor
) -> dict[str, list[dict[str, float]]]:
    """Seconds by missing tokens with all anchors, and by anchors with a fixed number of tokens."""
    growth: dict[str, list[dict[str, float]]] = {}
    for mode in ("exact", "screened"):
        for part in (1, 2, 4, 8):
            some = targets[: options.tokens * part // (8 if mode == "exact" else 2)]
            took, _ = time_ours(options, anchors, some, mode, True)
            growth.setdefault(f"{mode}, missing tokens", []).append({"size": len(some), "seconds": took})
        for part in (1, 2, 4, 8):
            some = anchors[: len(anchors) * part // 8]
            took, _ = time_ours(options, some, targets[: options.tokens], mode, True)
            growth.setdefault(f"{mode}, anchors", []).append({"size": len(some), "seconds": took})
    for name, points in growth.items():
        first, last = points[0], points[-1]
        ratio = last["seconds"] / first["seconds"]
        print(f"{name}: {last['size'] / first['size']:.1f} times the size takes {ratio:.1f} times as long")
    return growth


def draw(growth: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plot growth; a straight line through the origin is linear cost."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, variable in zip(axes, ("missing tokens", "anchors"), strict=True):
        for name, points in growth.items():
            if name.endswith(variable):
                sizes, seconds = [p["size"] for p in points], [p["seconds"] for p in points]
                axis.plot(sizes, seconds, "o-", label=name.partition(",")[0])
        axis.set(xlabel=variable, ylabel="seconds", xlim=(0, None), ylim=(0, None))
        axis.legend()
    figure.savefig(path, dpi=120)


def compare_ranks(options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of one and of two processes with one thread each, in turn."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worker = [__file__, "--ranks-worker", "--work", str(options.work), "--k", str(options.k)]
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for count in speeds:
            done = subprocess.run(
                [*command, "--nproc-per-node", str(count), *worker, "--device", "cpu"],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            speeds[count].append(float(done.stdout))
    one, two = (statistics.median(values) for values in speeds.values())
    print(f"one process, one thread: {one:.1f} tokens/s; two: {two:.1f}, {two / one:.2f} times as many")
    return {"one": one, "two": two}


def time_ranks(options: argparse.Namespace) -> None:
    """Inside a launched process: solve the tokens together, screened; the main process prints tokens/s."""
    from tokensurgeon.batches import Batches
    from tokensurgeon.methods.base import MethodContext
    from tokensurgeon.methods.omp import Omp
    from tokensurgeon.methods.params import OmpParams
    from tokensurgeon.parallel import connect

    torch.set_num_threads(1)
    data = torch.load(options.work / "omp.pt")
    anchors = len(data["anchors"])
    rows = torch.cat([data["anchors"], data["targets"]])
    params = OmpParams(k=options.k, mode="exact")
    context = MethodContext(
        side="tied",
        base_rows=rows,
        base_ids=torch.arange(anchors),
        pieces=[],
        donor_rows=rows,
        wanted=torch.arange(anchors, len(rows))[:RANK_TOKENS],
        anchor_targets=torch.arange(anchors),
        anchor_bases=torch.arange(anchors),
        generator=torch.Generator(),
        device=torch.device("cpu"),
        batch_size=64,
        advance=lambda count: None,
        lexicon=cast("Any", None),  # OMP asks neither
        resources=cast("Any", None),
    )
    processes = connect("cpu")
    runner = Batches(processes).runner(params, context)
    method = Omp(params)
    from dataclasses import replace

    context = replace(context, runner=runner)
    processes.exchange(None)
    start = time.perf_counter()
    method(context)
    if processes.is_main:
        print(len(context.wanted) / (time.perf_counter() - start))


if __name__ == "__main__":
    main()
