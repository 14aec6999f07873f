r"""Supertokens against plain BPE at the same size: bytes per token on text that neither was learnt from.

A byte-level BPE of N tokens is learnt on the first part of a text. Of the same part, a BPE of N - m tokens is
learnt and m supertokens on top. Both cut the last part, which neither has seen::

    python scripts/bench_supertokens.py english.txt --size 2000 --size 8000 --share 0.1 --share 0.2
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokensurgeon.edits.document import open_tokenizer
from tokensurgeon.edits.params import SupertokensParams
from tokensurgeon.edits.supertokens import supertokens
from tokensurgeon.vocab.vocabulary import Vocabulary, load_vocabulary


def main() -> None:
    """Print a table for each text, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", type=Path, nargs="+", help="UTF-8 texts, each measured on its own")
    parser.add_argument("--size", type=int, action="append", help="tokens in all; may be repeated")
    parser.add_argument("--share", type=float, action="append", help="of them supertokens; may be repeated")
    parser.add_argument("--words", type=int, default=4, help="words a supertoken may span")
    parser.add_argument("--learn", type=float, default=0.8, help="share of the text to learn from")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    found = []
    for path in options.texts:
        text = path.read_text(encoding="utf-8")
        cut = text.find("\n", int(len(text) * options.learn)) + 1 or int(len(text) * options.learn)
        learn, held_out = text[:cut], text[cut:]
        print(f"{path}: {len(learn.encode())} bytes to learn from, {len(held_out.encode())} held out")
        print("size    super   plain   with    tokens  seconds")
        sizes = []
        for size in options.size or [2000, 4000, 8000]:
            plain = train_plain(learn, size)
            real = len(plain)
            before = bytes_per_token(plain.tokenizer, held_out)
            shares = []
            for share in options.share or [0.1, 0.2, 0.3]:
                most = int(real * share)
                start = time.process_time()
                edited = supertokens(
                    train_plain(learn, real - most),
                    SupertokensParams(corpus=(str(path),), count=most, most_words=options.words),
                    [learn],
                )
                after = bytes_per_token(open_tokenizer(edited.spec), held_out)
                print(
                    f"{real:<7} {edited.facts['added']:<7} {before:<7.3f} {after:<7.3f} "
                    f"{before / after - 1:<+7.1%} {time.process_time() - start:.1f}",
                    flush=True,
                )
                shares.append(
                    {"share": share, "supertokens": edited.facts["added"], "bytes_per_token": after}
                )
            sizes.append({"size": real, "plain": before, "with": shares})
        found.append({"text": path.name, "held_out_bytes": len(held_out.encode()), "sizes": sizes})
    if options.json:
        options.json.write_text(json.dumps({"texts": found}, indent=1) + "\n", encoding="utf-8")


def train_plain(text: str, size: int) -> Vocabulary:
    """Learn a byte-level BPE as GPT-2 has it.

    Args:
        text: What to learn from.
        size: Tokens at most; a short text gives fewer.

    Returns:
        The tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        (Path(name) / "tokenizer_config.json").write_text(json.dumps({}), encoding="utf-8")
        return load_vocabulary(Path(name))


def bytes_per_token(tokenizer: Tokenizer, text: str) -> float:
    """How long a token is on average.

    Args:
        tokenizer: What cuts the text.
        text: The text.

    Returns:
        Bytes per token.
    """
    return len(text.encode()) / len(tokenizer.encode(text, add_special_tokens=False).ids)


if __name__ == "__main__":
    main()
