"""Conversations rendered by chat templates, which are programs that others wrote.

They run in the sandbox of ``transformers``, and in a process of their own that may use a bounded amount of
memory and time: ``python -m tokensurgeon.vocab.chat`` reads a job from stdin and writes the texts to stdout.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from tokensurgeon.child import child_command, child_environment, limit_self
from tokensurgeon.errors import InputError

if TYPE_CHECKING:
    from tokensurgeon.vocab.vocabulary import Vocabulary

# What a template may use for the conversations of this module: a hundred times what known ones need.
_MEMORY = 1 << 30
_SECONDS = 10

MESSAGES = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "And in French?"},
]
SENTINELS = ("tokensurgeonuserone", "tokensurgeonanswerone", "tokensurgeonusertwo", "tokensurgeonanswertwo")


class Conversation(StrEnum):
    """What is rendered."""

    PLAIN = "plain"
    """``MESSAGES``."""
    MARKED = "marked"
    """Two turns of ``SENTINELS``."""


_CONVERSATIONS = {
    Conversation.PLAIN: MESSAGES,
    Conversation.MARKED: [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant") * 2, SENTINELS, strict=True)
    ],
}


def pinned_time(form: str) -> str:
    """What templates that print the date get: always the same day, so that two runs render one text.

    Args:
        form: As for ``strftime``.

    Returns:
        The date in that form.
    """
    return datetime(2024, 7, 26).strftime(form)


def render_chat(vocabulary: Vocabulary, conversation: Conversation = Conversation.PLAIN) -> str | None:
    """Render a conversation with the vocabulary's chat template.

    Args:
        vocabulary: Brings the template and the names of its special tokens.
        conversation: Which one.

    Returns:
        The text, or None when there is no template or it refuses the conversation.

    Raises:
        InputError: The template takes more memory or time than a conversation of a few words may.
    """
    if vocabulary.chat_template is None:
        return None
    names = {f"{role}_token": vocabulary.tokens[index].content for role, index in vocabulary.roles.items()}
    try:
        return _render(vocabulary.chat_template, tuple(sorted(names.items())))[conversation]
    except _GreedyError as error:
        raise InputError(
            f"{vocabulary.path}: its chat template takes more than {error} for a conversation of a few words",
            "a template that programs can render",
            "remove or mend it: chat_template.jinja, or chat_template in tokenizer_config.json",
        ) from error


class _GreedyError(Exception):
    """A template went beyond its bounds; the message says which."""


@lru_cache(maxsize=64)
def _render(template: str, names: tuple[tuple[str, str], ...]) -> dict[str, str | None]:
    limits = {"memory": _MEMORY, "seconds": _SECONDS}
    done = subprocess.run(
        child_command(__name__),
        input=json.dumps({"template": template, "names": dict(names), "limits": limits}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**child_environment(), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode == -signal.SIGXCPU:
        raise _GreedyError(f"{_SECONDS} s of processor time")
    if done.returncode < 0 or done.stderr.rstrip().endswith("MemoryError"):
        raise _GreedyError(f"{_MEMORY >> 20} MiB of memory")
    if done.returncode:
        raise RuntimeError(f"{__name__}: {done.stderr}")
    texts: dict[str, str | None] = json.loads(done.stdout)
    return texts


def main() -> None:
    """Render all conversations by the template on stdin."""
    from transformers.utils.chat_template_utils import render_jinja_template

    job = json.load(sys.stdin)
    limit_self(**job["limits"])
    texts: dict[str, str | None] = {}
    for conversation, messages in _CONVERSATIONS.items():
        try:
            rendered, _ = render_jinja_template(
                conversations=[messages],
                chat_template=job["template"],
                strftime_now=pinned_time,
                **job["names"],
            )
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - a program that others wrote, in a sandbox, may fail with anything
            texts[conversation] = None
        else:
            texts[conversation] = str(rendered[0])
    json.dump(texts, sys.stdout)


if __name__ == "__main__":
    main()
