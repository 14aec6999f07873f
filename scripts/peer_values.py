"""What the authors' packages of WECHSEL and FOCUS make of small made-up vectors, for tests to compare with.

Needs a virtual environment of its own with ``wechsel`` 0.0.4 and ``deepfocus`` 1.0.1; uses no network. Run it
again only to add values::

    build/peers/bin/python scripts/peer_values.py --output tests/methods/peer_values.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepfocus.focus import focus_additional_token_initialization
from deepfocus.vocab_helper import NewToken, OverlappingToken, TokenClass
from wechsel import WECHSEL, create_target_embeddings

DIGITS = 6


class Vocabulary:
    """As much of a tokenizer as wechsel asks for.

    Args:
        size: Number of tokens.
    """

    special_tokens_map: dict[str, str] = {}  # noqa: RUF012 - read only

    def __init__(self, size: int) -> None:
        self.vocab = {f"token {index}": index for index in range(size)}

    def __len__(self) -> int:
        return len(self.vocab)

    def convert_ids_to_tokens(self, ids: Any) -> Any:  # noqa: ANN401 - one id or several
        """Names of ids."""
        if np.ndim(ids) == 0:
            return f"token {ids}"
        return [f"token {index}" for index in ids]


class Vectors:
    """As much of a word embedding as wechsel asks for.

    Args:
        rows: Vectors of the words "0", "1", ...
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def get_word_id(self, word: str) -> int:
        """Place of a word."""
        return int(word)

    def get_word_vector(self, word: str) -> np.ndarray:
        """Vector of a word."""
        return self.rows[int(word)]


def main() -> None:
    """Ask the packages, write their answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("tests/methods/peer_values.json"))
    options = parser.parse_args()
    values = {
        "wechsel_rows": ask_wechsel_for_rows(),
        "wechsel_alignment": ask_wechsel_for_alignment(),
        "focus_rows": ask_focus_for_rows(),
    }
    options.output.write_text(json.dumps(shorten(values)) + "\n", encoding="utf-8")


def draw(seed: int, *shape: int) -> np.ndarray:
    """Normal numbers with as many digits as are written down."""
    return np.random.default_rng(seed).normal(size=shape).round(DIGITS)


def ask_wechsel_for_rows() -> dict[str, Any]:
    """Rows from given token vectors: the ten nearest, by softmax."""
    targets, candidates, base = draw(1, 4, 6), draw(2, 15, 6), draw(3, 15, 5)
    rows, _, sources = create_target_embeddings(
        candidates, targets, Vocabulary(15), Vocabulary(4), base, verbose=False
    )
    names, weights, _ = zip(*(sources[f"token {index}"] for index in range(4)), strict=True)
    return {
        "targets": targets,
        "candidates": candidates,
        "base": base,
        "rows": rows,
        "sources": [[int(name.split()[1]) for name in row] for row in names],
        "weights": np.array(weights),
    }


def ask_wechsel_for_alignment() -> dict[str, Any]:
    """The rotation of base words onto target words, all of unit length."""
    base, targets = (draw(seed, 9, 4) for seed in (4, 5))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (base, targets)]
    pairs = [(str(place), str(place)) for place in range(9)]
    turn = WECHSEL._compute_align_matrix_from_dictionary(None, *map(Vectors, unit), pairs)
    return {"base": base, "targets": targets, "turn": turn}


def ask_focus_for_rows() -> dict[str, Any]:
    """Rows from given token vectors: all anchors, by sparsemax."""
    targets, anchors, base = draw(6, 4, 6), draw(7, 12, 6), draw(8, 12, 5)

    def token(index: int) -> TokenClass:
        return TokenClass(str(index), index, *[str(index)] * 4, False)

    known = {
        str(index): OverlappingToken(
            [token(index)],
            token(index),
            torch.tensor(base[index], dtype=torch.float32),
            torch.tensor(anchors[index], dtype=torch.float32),
        )
        for index in range(12)
    }
    new = {
        str(index): NewToken(token(index), torch.tensor(targets[index], dtype=torch.float32))
        for index in range(4)
    }
    rows = focus_additional_token_initialization(known, new, torch.zeros((4, 5)))
    return {"targets": targets, "anchors": anchors, "base": base, "rows": rows.numpy()}


def shorten(value: Any) -> Any:  # noqa: ANN401 - nested
    """Round all numbers to the digits that are written down."""
    if isinstance(value, dict):
        return {key: shorten(part) for key, part in value.items()}
    numbers = np.asarray(value)
    if numbers.dtype.kind == "f":
        numbers = numbers.astype(np.float64).round(DIGITS)
    return numbers.tolist()


if __name__ == "__main__":
    main()
