r"""Do greedy continuations of an output loop more than those of its base?

Ten prompts, the beginnings of parts of a text, are continued by 200 tokens; the share of repeated
four-grams of a continuation is 0 where none occurs twice and near 1 where it goes round in circles::

    python scripts/bench_loops.py build/models/gemma3 build/gemma3-auto --text english.txt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tokensurgeon.evaluation.loading import load_model
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.evaluation.windows import encode, find_bos

PROMPTS, PROMPT_BYTES, NEW_TOKENS, GRAM = 10, 160, 200, 4


@torch.inference_mode()
def repeated(model_dir: str, prompts: list[str]) -> list[float]:
    """Share of four-grams that occurred before, in the continuation of each prompt."""
    model, tokenizer = load_model(model_dir, device="cpu")
    start = find_bos(tokenizer)
    shares = []
    for prompt in prompts:
        ids = [*([] if start is None else [start]), *encode(tokenizer, "prompt", prompt).ids]
        given = torch.tensor([ids])
        found = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        grams = [tuple(found[place : place + GRAM]) for place in range(len(found) - GRAM + 1)]
        shares.append(1 - len(set(grams)) / len(grams))
    return shares


def main(arguments: list[str]) -> None:
    """Print the shares of each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--text", required=True, type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    text = next(iter(read_texts([options.text], 1 << 20).values()))
    step = len(text) // PROMPTS
    prompts = [text[place : place + PROMPT_BYTES] for place in range(0, step * PROMPTS, step)]
    for model in options.models:
        shares = repeated(model, prompts)
        mean = sum(shares) / len(shares)
        print(f"{model}: mean {mean:.3f};", *(f"{share:.2f}" for share in shares), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
