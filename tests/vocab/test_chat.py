"""A chat template may fail in any way, and takes neither the machine's memory nor a user's time."""

from __future__ import annotations

import pytest

from tokensurgeon.errors import InputError
from tokensurgeon.vocab import chat
from tokensurgeon.vocab.chat import MESSAGES, SENTINELS, Conversation, render_chat

ORDINARY = ["a", "b"]
ALL_TURNS = "{% for m in messages %}<a>{{ m['content'] }}<b>{% endfor %}"


@pytest.fixture
def with_template(build):
    tokenizer = build.byte_level(ORDINARY, ["<a>", "<b>"])
    return lambda template: build.load(tokenizer, chat_template=template)


def test_both_conversations_are_rendered(with_template):
    vocabulary = with_template(ALL_TURNS)
    assert render_chat(vocabulary) == "".join(f"<a>{m['content']}<b>" for m in MESSAGES)
    assert render_chat(vocabulary, Conversation.MARKED) == "".join(f"<a>{s}<b>" for s in SENTINELS)


def test_a_template_may_render_one_and_refuse_the_other(with_template):
    template = "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}fine"
    assert render_chat(with_template(template)) == "fine"
    assert render_chat(with_template(template), Conversation.MARKED) is None


def test_text_that_is_no_ascii_comes_back_as_it_is(with_template):
    assert render_chat(with_template("é日本\u2028\x85🙂")) == "é日本\u2028\x85🙂"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson(indent=10**9) }}",
        "{{ 'x' * 10**10 }}",
        "{% set n = namespace(x='x' * 99) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    ],
    ids=["indent", "product", "doubling"],
)
def test_a_template_that_takes_all_memory_is_refused(template, with_template):
    with pytest.raises(InputError, match=r"takes more than 1024 MiB of memory"):
        render_chat(with_template(template))


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
    ],
    ids=["loops", "power"],
)
def test_a_template_that_takes_for_ever_is_refused(template, with_template, monkeypatch):
    monkeypatch.setattr(chat, "_SECONDS", 1)
    with pytest.raises(InputError, match=r"takes more than 1 s of processor time"):
        render_chat(with_template(template))
