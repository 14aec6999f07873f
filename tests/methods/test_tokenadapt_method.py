"""Rows are pieces and similar base tokens, weighted by an encoder of texts."""

from math import exp

import pytest
import torch

from tokensurgeon.methods.params import TokenadaptParams
from tokensurgeon.methods.tokenadapt import Tokenadapt


class Encoder:
    """A random unit vector a text; a list of what it was asked."""

    def __init__(self, dim=6, known=()):
        self.dim, self.calls, self.known = dim, [], dict(known)

    def __call__(self, texts):
        self.calls.append(list(texts))
        assert all(text.strip() for text in texts)
        return torch.stack([self.one(text) for text in texts])

    def one(self, text):
        if text in self.known:
            return torch.tensor(self.known[text])
        seed = int.from_bytes(text.encode()[-6:], "big")
        vector = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
        return vector / vector.norm()


def told_of(context, tools, encoder=None, **changes):
    pieces = [tuple((7 * row + 3 * step) % 40 for step in range(row % 4)) for row in range(20)]
    resources = tools.resources(embed_texts=encoder or Encoder())
    return context(**{"pieces": pieces, "resources": resources} | changes)


def run(told, **params):
    return Tokenadapt(TokenadaptParams(**params))(told)


def softmax(values):
    return [exp(value) / sum(map(exp, values)) for value in values]


def by_hand(told, row, weight, k, temperature, threshold):
    encoder, lexicon = Encoder(), told.lexicon
    token = lexicon.target[30 + row]
    vector = encoder.one(token.decode().lstrip(" "))
    spelt = told.pieces[row]
    similar = [float(encoder.one(lexicon.base[piece].decode().lstrip(" ")) @ vector) for piece in spelt]
    shares = [len(lexicon.base[piece]) / len(token) for piece in spelt]
    mixed = [(s + share) / 2 / temperature for s, share in zip(softmax(similar), shares, strict=True)]
    local = sum((w * told.base_rows[p] for w, p in zip(softmax(mixed), spelt, strict=True)), torch.zeros(12))
    cosines = [
        (float(encoder.one(data.decode().lstrip(" ")) @ vector), -base) for base, data in lexicon.base.items()
    ]
    best = [(cosine, -base) for cosine, base in sorted(cosines, reverse=True)[:k] if cosine >= threshold]
    parts = softmax([cosine / temperature for cosine, _ in best])
    overall = sum((w * told.base_rows[b] for w, (_, b) in zip(parts, best, strict=True)), torch.zeros(12))
    if not spelt or not best:
        return local + overall
    return (1 - weight) * local + weight * overall


DEFAULTS = {"weight": 0.3, "k": 3, "temperature": 0.3, "threshold": 0.0}


@pytest.mark.parametrize(
    "changes",
    [{}, {"weight": 0.9}, {"k": 1}, {"k": 12}, {"temperature": 0.05}, {"threshold": 0.7}],
    ids=str,
)
def test_rows_are_what_the_formula_says(context, tools, changes):
    told = told_of(context, tools)
    made = run(told, **changes)
    rows = {name: [by_hand(told, row, **kind) for row in range(20)] for name, kind in (
        ("asked", DEFAULTS | changes), ("default", DEFAULTS)
    )}  # fmt: skip
    for row in range(20):
        if made.served[row]:
            torch.testing.assert_close(made.rows[row], rows["asked"][row], rtol=1e-4, atol=1e-4)
        else:
            assert not told.pieces[row]
            torch.testing.assert_close(made.rows[row], told.base_mean)
    torch.testing.assert_close(tools.rebuild(made, told.base_rows)[made.served], made.rows[made.served])
    if changes:
        assert (torch.stack(rows["asked"]) - torch.stack(rows["default"])).abs().max() > 0.05


def test_the_threshold_leaves_tokens_without_pieces_unserved(context, tools):
    none = told_of(context, tools, pieces=[()] * 20)
    assert run(none, threshold=-1).served.all()
    made = run(none, threshold=1)
    assert not made.served.any()
    torch.testing.assert_close(made.rows, none.base_mean.repeat(20, 1))


@pytest.mark.parametrize("weight", [0, 1])
def test_all_weight_on_one_side_leaves_no_source_of_the_other(context, tools, weight):
    told = told_of(context, tools, pieces=[(0, 1)] * 20)
    made = run(told, weight=weight, threshold=-1)
    for sources in made.sources:
        used = set(sources[sources >= 0].tolist())
        assert used == {0, 1} if weight == 0 else len(used) == 3


def test_a_similar_text_is_found_and_a_space_before_it_not_read(context, tools):
    same = {"same": [1.0, 0, 0], "other": [0, 1.0, 0]}
    base = {0: b"other", 1: b" other", 2: b"same", 3: b" same", 4: b"  "}
    lexicon = tools.lexicon(base=base, target={30: b" same"})
    encoder = Encoder(3, same)
    told = told_of(
        context,
        tools,
        encoder,
        lexicon=lexicon,
        wanted=torch.tensor([30]),
        pieces=[()],
        base_ids=torch.arange(5),
    )
    made = run(told, k=2)
    assert sorted(made.sources[0].tolist()) == [2, 3]
    assert encoder.calls == [["other", "same"], ["same"]]


def test_fragments_blanks_and_unknown_tokens_are_not_served(context, tools):
    target = {30: b"\xe2\x82", 31: b" ", 32: b"", 34: b"bo"}
    base = {0: b"\xff", 1: b"b", 2: b"\n"}
    told = told_of(
        context,
        tools,
        lexicon=tools.lexicon(target=target, base=base),
        wanted=torch.arange(30, 35),
        pieces=[(0, 1)] * 5,
    )
    made = run(told, threshold=-1)
    assert made.served.tolist() == [False, False, False, False, True]
    # A piece that is no text is similar to nothing, but has its share of the bytes.
    assert set(made.sources[4].tolist()) == {0, 1}
    torch.testing.assert_close(made.rows[0], told.base_mean)


def test_only_base_tokens_with_a_row_are_looked_at(context, tools):
    made = run(told_of(context, tools, base_ids=torch.arange(5), pieces=[()] * 20), k=9, threshold=-1)
    assert made.sources.max() < 5


def test_nothing_to_read_gives_the_mean_row(context, tools):
    for lexicon in (tools.lexicon(base={}), tools.lexicon(target={})):
        made = run(told_of(context, tools, lexicon=lexicon))
        assert not made.served.any()
        assert torch.isfinite(made.rows).all()


def test_rows_depend_on_neither_batches_nor_runs(context, tools):
    whole, *others = (run(told_of(context, tools, batch_size=size)) for size in (512, 512, 1, 7))
    for other in others:
        assert other.sources.equal(whole.sources)
        torch.testing.assert_close(other.rows, whole.rows)
