"""A tiny teacher, texts that it wrote, and a student of it that reads the commonest pair as one new token."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokensurgeon.training.heal import Settings, Table
from tokensurgeon.training.objectives import Body, Example

NEW = 40
NAMES = ("model.embed_tokens.weight", "lm_head.weight")
_LENGTH = 14


def make_teacher(tied: bool = True, layer: int = -1) -> Body:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=6,
        tie_word_embeddings=tied,
        initializer_range=0.6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Body(LlamaForCausalLM(config), layer)


@cache
def written() -> list[list[int]]:
    """Texts of the tied teacher, each opened by token 0."""
    model, generator = make_teacher().model, torch.Generator().manual_seed(0)
    ids = torch.zeros((400, 1), dtype=torch.int64)
    with torch.inference_mode():
        for _ in range(_LENGTH):
            shares = model(input_ids=ids).logits[:, -1].softmax(dim=1)
            ids = torch.cat([ids, torch.multinomial(shares, 1, generator=generator)], dim=1)
    return ids.tolist()


@cache
def pair() -> tuple[int, int]:
    """Two tokens that often follow each other."""
    counts = Counter(two for text in written() for two in pairwise(text[1:]) if two[0] != two[1])
    return counts.most_common(1)[0][0]


def make_table(teacher: Body, *, root: float | torch.Tensor = 0.3, names: tuple[str, ...] = NAMES) -> Table:
    """The teacher's rows, and a poor one for the new token."""
    rows = teacher.model.get_parameter(names[0]).detach()
    return Table(names, torch.cat([rows, rows.mean(dim=0)[None]]), torch.tensor([NEW]), root)


def make_text(theirs: list[int]) -> Example:
    """A text as teacher and student read it; every token of the student is a chunk."""
    ours, chunks, ends = [0], [], [0]
    for at, token in enumerate(theirs[1:], 1):
        if (token, theirs[at - 1]) == pair()[::-1] and ours[-1] == pair()[0] and at > 1:
            ours[-1] = NEW
            ends[-1] = at
        else:
            ours.append(token)
            ends.append(at)
        chunks.append(len(ours) - 2)
    first = ours.index(NEW) if NEW in ours else len(ours)
    return Example(
        ids=torch.tensor(ours),
        teacher_ids=torch.tensor(theirs),
        chunks=torch.arange(len(ours) - 1),
        teacher_chunks=torch.tensor(chunks),
        places=torch.arange(first, len(ours)),
        teacher_places=torch.tensor(ends[first:], dtype=torch.int64),
        bytes=3 * (len(theirs) - 1),
    )


@cache
def all_texts() -> list[Example]:
    """Texts of several lengths with the new token in them."""
    cut = [text[: _LENGTH + 1 - number % 4] for number, text in enumerate(written())]
    return [text for text in map(make_text, cut) if len(text.places)]


def make_texts(count: int, start: int = 0) -> list[Example]:
    found = all_texts()[start : start + count]
    assert len(found) == count
    return found


def settings(**changes: float) -> Settings:
    plain = {"steps": 20, "minutes": 9, "batch_tokens": 150, "part_tokens": 75, "learning_rate": 0.02}
    return Settings(**{**plain, "patience": 20, "seed": 0, **changes})
