"""What tests learn tiny tokenizers from, and how they are written."""

from __future__ import annotations

import json
from pathlib import Path

CORPUS = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps under the old oak tree.",
    "It's the children's kettle, isn't it? She would have wanted the other one, they're sure.",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n",
    "Le château de la rivière était très élevé, où l'été passait déjà.",
    "Привет, мир! Это проверка токенизатора. 日本語も少し。",
    "1 22 333 4444 55555 3.14159 2026-11-23 100%",
] * 4


def write_tokenizer(directory: Path, tokenizer: object, **config: object) -> Path:
    """Save a raw tokenizer as AutoTokenizer wants to find it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    document = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(document), encoding="utf-8")
    return directory
