"""A text that is limited to a writing system is read as what it was drawn from."""

import pytest
import torch

from tokensurgeon.evaluation.bits_per_byte import score_texts
from tokensurgeon.evaluation.loading import load_model
from tokensurgeon.evaluation.states import read_states
from tokensurgeon.evaluation.windows import find_bos
from tokensurgeon.lessons import may_hold
from tokensurgeon.reading import group_by_limit, read_examples, score_written, trace_written
from tokensurgeon.vocab.vocabulary import load_vocabulary

TEXTS = {"sample 1": "the cat sat 12", "Latin sample 1": "the dog ran", "program sample 1": "the cat = 12"}


@pytest.fixture(scope="module")
def loaded(make_model, sentencepiece):
    directory = make_model("llama", sentencepiece)
    return *load_model(str(directory), device="cpu"), load_vocabulary(directory).tokens


def test_what_it_may_not_hold_takes_no_probability_from_it(loaded):
    model, tokenizer, tokens = loaded
    allowed = torch.zeros(len(model.get_input_embeddings().weight), dtype=torch.bool)
    allowed[[index for index, token in tokens.items() if may_hold("Latin", token)]] = True
    expected = {
        name: score_texts(
            model, tokenizer, {name: text}, allowed=allowed if name.startswith("Latin") else None
        ).scores[0]
        for name, text in TEXTS.items()
    }
    bits, size = sum(s.bits for s in expected.values()), sum(len(text.encode()) for text in TEXTS.values())
    found = score_written(model, tokenizer, group_by_limit(tokenizer, TEXTS, tokens))
    assert found == pytest.approx(bits / size)
    assert found < score_texts(model, tokenizer, TEXTS).bits_per_byte


def test_examples_say_what_their_texts_could_hold(loaded):
    model, tokenizer, tokens = loaded
    found = read_examples(model, tokenizer, group_by_limit(tokenizer, TEXTS, tokens))
    free = {name: text for name, text in TEXTS.items() if "Latin" not in name}
    states, following = read_states(model, tokenizer, free | TEXTS)
    torch.testing.assert_close(found.states, states, rtol=1e-4, atol=1e-4)
    assert found.following.equal(following)
    assert found.allowed[found.limits, found.following].all()
    every, some = found.allowed
    assert every.all()
    assert not some.all()
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in (free | TEXTS).values()]
    assert found.limits.tolist() == [0] * sum(lengths[:2]) + [1] * lengths[2]


def test_pieces_of_letters_may_stand_in_any_text(loaded):
    model, tokenizer, tokens = loaded
    text = "the 猫 cat"
    used = tokenizer(text, add_special_tokens=False).input_ids
    assert any(not may_hold("Latin", tokens[index]) for index in used)
    written = group_by_limit(tokenizer, {"Latin sample 1": text}, tokens)
    found = read_examples(model, tokenizer, written)
    assert found.allowed[0][used].all()
    assert score_written(model, tokenizer, written) > 0


def test_tokens_without_a_row_are_never_allowed(loaded):
    model, tokenizer, tokens = loaded
    rows = len(model.get_input_embeddings().weight)
    more = {**tokens, rows: next(token for token in tokens.values() if may_hold("Latin", token))}
    [some] = group_by_limit(tokenizer, {"Latin sample 1": "the cat"}, more)
    assert rows in some.ids
    assert len(some.allowed(model)) == rows


def test_rows_are_traced_by_what_the_text_could_hold(loaded):
    model, tokenizer, tokens = loaded
    written = group_by_limit(tokenizer, TEXTS, tokens)
    reads = trace_written(model, tokenizer, written)
    assert reads.curvatures.shape[0] == len(written) == 2
    start, table = find_bos(tokenizer), model.get_input_embeddings().weight.detach().clone()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.get_input_embeddings(), "weight", torch.nn.Parameter(table))
        losses = []
        for some in written:
            for text in some.texts.values():
                ids = torch.tensor([[start, *tokenizer(text, add_special_tokens=False).input_ids]])
                logits = model(input_ids=ids[:, :-1]).logits[0].masked_fill(~some.allowed(model), -torch.inf)
                losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        (expected,) = torch.autograd.grad(sum(losses), model.get_input_embeddings().weight)
    expected[start] = 0
    # Products may be in bfloat16.
    scale = float(expected.abs().max())
    torch.testing.assert_close(reads.slopes, expected, rtol=0.05, atol=0.02 * scale)
