"""Time ``tokensurgeon --help`` beside an empty Python, in turn; print a table and write JSON.

python scripts/bench_start.py --json build/bench/start.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "tokensurgeon --help": [sys.executable, "-m", "tokensurgeon", "--help"],
    "tokensurgeon run --help": [sys.executable, "-m", "tokensurgeon", "run", "--help"],
}
HEAVY = ("torch", "transformers", "numpy", "faiss", "accelerate")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path("build/bench/start.json"))
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    empty = medians["python -c pass"]
    print("| command | median s | / empty Python |\n|---|---:|---:|")
    for name, median in medians.items():
        print(f"| {name} | {median:.3f} | {median / empty:.1f} |")
    loaded = loaded_modules()
    print(f"heavy modules that --help loads: {', '.join(loaded) or 'none'}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    document = {"seconds": seconds, "medians": medians, "heavy_modules": loaded}
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def loaded_modules() -> list[str]:
    """Heavy modules in memory after ``--help``."""
    code = (
        "import sys\nsys.argv = ['tokensurgeon', '--help']\nfrom tokensurgeon.cli.app import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return [name for name in HEAVY if name in done.stderr.split()]


if __name__ == "__main__":
    main()
