r"""Do greedy continuations of an output loop more than those of its base?

Ten prompts, the beginnings of parts of a text, are continued by 200 tokens; the share of repeated
four-grams of a continuation is 0 where none occurs twice and near 1 where it goes round in circles. Told are
how many do (more than half repeated), the mean share, and each::

    python scripts/bench_loops.py build/models/gemma3 build/gemma3-auto --text english.txt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokensurgeon.evaluation.loading import load_model
from tokensurgeon.evaluation.loops import continue_prompts, cut_prompts, loop_rate
from tokensurgeon.evaluation.texts import read_texts

PROMPTS = 10


def main(arguments: list[str]) -> None:
    """Print the shares of each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--text", required=True, type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    text = next(iter(read_texts([options.text], 1 << 20).values()))
    prompts = cut_prompts(text, PROMPTS)
    for directory in options.models:
        found = continue_prompts(*load_model(directory, device="cpu"), prompts)
        shares = [one.repeated for one in found]
        mean = sum(shares) / len(shares)
        told = f"{loop_rate(found):.0%} loop, mean {mean:.3f};"
        print(f"{directory}: {told}", *(f"{share:.2f}" for share in shares), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
