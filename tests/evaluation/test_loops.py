"""Continuations, and how much of them was there before."""

import pytest
import torch

from tokensurgeon.errors import InputError
from tokensurgeon.evaluation.loops import (
    Continuation,
    continue_prompts,
    cut_prompts,
    loop_rate,
    repeated_share,
)


def test_only_grams_that_were_there_before_count_as_repeated():
    assert repeated_share(range(20)) == 0
    assert repeated_share([1, 2, 3, 4, 5, 1, 2, 3, 4]) == 1 - 5 / 6
    assert repeated_share([7] * 20) == 1 - 1 / 17
    assert repeated_share([1, 1, 1]) == 0


def test_a_continuation_loops_when_most_of_it_was_there_before():
    ones = [Continuation("", "", share) for share in (0.0, 0.5, 0.51, 0.9)]
    assert loop_rate(ones) == 0.5


def test_prompts_are_the_beginnings_of_equal_parts():
    text = "".join(f"{place:04d}" for place in range(500))
    prompts = cut_prompts(text, 4)
    assert prompts == [text[start : start + 160] for start in (0, 500, 1000, 1500)]
    assert cut_prompts("ab  cd", 3) == ["ab", "cd"]
    with pytest.raises(InputError, match="blank text"):
        cut_prompts(" \n ", 3)


@pytest.mark.parametrize("body", ["llama", "gemma"])
def test_a_continuation_is_the_likeliest_token_after_bos_and_prompt_each_time(request, tokenizers, body):
    model, tokenizer = request.getfixturevalue(body), tokenizers["byte-level"]
    told = []
    [one] = continue_prompts(model, tokenizer, ["the fox"], new_tokens=12, advance=lambda: told.append(1))
    ids = [0, *tokenizer("the fox", add_special_tokens=False)["input_ids"]]
    start = len(ids)
    for _ in range(12):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        logits[1] = -torch.inf  # an end of text does not end it
        ids.append(int(logits.argmax()))
    assert one.text == tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert one.repeated == repeated_share(ids[start:])
    assert one.prompt == "the fox"
    assert told == [1]
