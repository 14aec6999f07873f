"""Texts on which two readers of one tokenizer must agree; a conversation rendered."""

from __future__ import annotations

from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.chat import render_chat
from tokensurgeon.vocab.vocabulary import Vocabulary

_TEXTS = (
    "Hello world, this is a test.",
    "The quick brown fox's 3 lazy dogs can't jump; they've slept!",
    "1234567890 3.14159 1,000,000 0x7F 2026-11-23",
    "    four spaces\n\ttab\n\n\nthree newlines\r\n  trailing  ",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}\n",
    "naïve café Zürich Ærøskøbing coöperate ŁÓDŹ",
    "Привет, мир! Это проверка.",
    "今日は世界。你好，世界！ 안녕하세요",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b\u00a0\ufeff ﬁ ½ ™",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "<|im_start|>user\nhi<|im_end|>\n<start_of_turn>model\n<bos></s>[INST] x [/INST]",
    "word",
    " word",
    "a",
)

PROMPTS = ("The capital of France is", "def add(a, b):\n    return", "1, 2, 3, 4,")


def probe_texts(vocabulary: Vocabulary) -> list[str]:
    """Fixed texts, and one with the vocabulary's own special tokens in it.

    Args:
        vocabulary: The tokenizer to probe.

    Returns:
        The texts.
    """
    names = [token.content for token in vocabulary if token.kind is Kind.SPECIAL][:32]
    return [*_TEXTS, " ".join(f"a {name} b{name}" for name in names)] if names else list(_TEXTS)


def probe_ids(vocabulary: Vocabulary) -> list[tuple[str, list[int]]]:
    """Probe texts and the raw tokenizer's ids for them, without BOS and the like.

    Args:
        vocabulary: The tokenizer to probe.

    Returns:
        Pairs of text and ids.
    """
    pairs = ((text, vocabulary.encode(text)) for text in probe_texts(vocabulary))
    return [(text, ids) for text, ids in pairs if ids]


def probe_chat(vocabulary: Vocabulary) -> tuple[str, list[int]] | None:
    """The fixed conversation rendered by the vocabulary's template, and its ids.

    Args:
        vocabulary: The tokenizer to probe.

    Returns:
        None when there is no template, or it refuses the conversation.
    """
    text = render_chat(vocabulary)
    return None if text is None else (text, vocabulary.encode(text))
