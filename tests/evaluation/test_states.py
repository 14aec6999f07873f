"""What an lm_head sees is what its logits are made of."""

import pytest
import torch

from tokensurgeon.evaluation.loading import load_model
from tokensurgeon.evaluation.states import has_plain_logits, read_states, trace_rows
from tokensurgeon.evaluation.windows import find_bos

TEXTS = {"a": "the cat sat on the mat", "b": "the dog ran"}


@pytest.fixture(scope="module")
def loaded(make_model, sentencepiece):
    return load_model(str(make_model("llama", sentencepiece)), device="cpu")


def test_states_give_the_logits_and_tokens_follow_in_order(loaded):
    model, tokenizer = loaded
    states, following = read_states(model, tokenizer, TEXTS)
    start, place = find_bos(tokenizer), 0
    for text in TEXTS.values():
        ids = [start, *tokenizer(text, add_special_tokens=False).input_ids]
        count = len(ids) - 1
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        products = states[place : place + count] @ model.get_output_embeddings().weight.detach().float().T
        torch.testing.assert_close(products, logits.float(), rtol=1e-4, atol=1e-4)
        assert following[place : place + count].tolist() == ids[1:]
        place += count
    assert place == len(states) == len(following)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_a_batch_gives_what_its_texts_give_alone(make_model, sentencepiece, monkeypatch, kind):
    model, tokenizer = load_model(str(make_model(kind, sentencepiece)), device="cpu")
    texts = {str(count): "the cat sat on the mat " * count for count in (3, 1, 7, 2)}
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    together = read_states(model, tokenizer, texts)
    assert len(passes) == 1
    monkeypatch.setattr("tokensurgeon.evaluation.states._CPU_TOKENS", 1)
    alone = read_states(model, tokenizer, texts)
    assert len(passes) == 1 + len(texts)
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-4)
    assert together[1].equal(alone[1])


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_rows_are_traced_through_the_body_and_not_past_it(make_model, sentencepiece, kind):
    model, tokenizer = load_model(str(make_model(kind, sentencepiece)), device="cpu")
    head = model.get_output_embeddings().weight.detach().float()

    def slope(states, following):
        leaf = states.clone().requires_grad_()
        torch.nn.functional.cross_entropy(leaf @ head.T, following, reduction="sum").backward()
        return leaf.grad

    texts = {"a": "the cat", "b": "dog"}
    slopes, curvature = trace_rows(model, tokenizer, texts, slope)
    start = find_bos(tokenizer)
    table = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.get_output_embeddings().weight = torch.nn.Parameter(head)
    model.get_input_embeddings().weight = table
    total, squares, places = torch.zeros_like(slopes), torch.zeros_like(curvature), 0
    for text in texts.values():
        ids = [*([] if start is None else [start]), *tokenizer(text, add_special_tokens=False).input_ids]
        # No token twice in a text: derivatives by rows are derivatives by places.
        assert len(set(ids)) == len(ids)
        logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
        (one,) = torch.autograd.grad(loss, table)
        one[[] if start is None else [start]] = 0
        total += one
        squares += one.T @ one
        places += len(ids) - 1 - (start is not None)
    torch.testing.assert_close(slopes, total, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(curvature, squares / places, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("kind", "plain"), [("llama", True), ("gemma3", True), ("granite", False)])
def test_a_model_that_scales_its_logits_is_told_apart(make_model, sentencepiece, kind, plain):
    model, _ = load_model(str(make_model(kind, sentencepiece)), device="cpu")
    assert has_plain_logits(model) is plain


def test_a_bias_is_told_apart(make_model, sentencepiece):
    model, _ = load_model(str(make_model("phi", sentencepiece)), device="cpu")
    assert has_plain_logits(model)
    torch.nn.init.ones_(model.get_output_embeddings().bias)
    model.get_output_embeddings().bias.data[::2] = 3
    assert not has_plain_logits(model)


def test_nothing_is_left_on_the_model(loaded):
    model, tokenizer = loaded
    read_states(model, tokenizer, TEXTS)
    trace_rows(model, tokenizer, TEXTS, lambda states, _: states)
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert not model.get_input_embeddings()._forward_hooks
