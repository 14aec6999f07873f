"""Every error a user can cause, each with the exit code the command line ends with, and a code.

::

    TokensurgeonError
    ├── RecipeError          2  usage or recipe
    ├── InputError           3  bad input: a file, a tensor, a tokenizer
    ├── PolicyError          4  refused by policy: remote code, pickle, too few anchors, output exists
    ├── VerificationError    5  a checkpoint is not what it should be
    ├── ResourceError        6  memory or disk
    └── InterruptError     130  Ctrl-C

Anything else that reaches the command line is a bug: exit code 1 and a traceback.
``codes`` explains ``TE2`` and so on, and ``TE1`` for a bug.
A message has three parts: what was found and where, what was expected, what to do next.
"""

from __future__ import annotations


class TokensurgeonError(Exception):
    """Base of all expected errors.

    Args:
        found: What was found, and where.
        expected: What should have been there; may be empty when ``found`` says it.
        next_step: What the user can do about it.
    """

    exit_code = 1
    code = "TE1"

    def __init__(self, found: str, expected: str = "", next_step: str = "") -> None:
        self.found = found
        self.expected = expected
        self.next_step = next_step
        super().__init__(str(self))

    def __reduce__(self) -> tuple[type[TokensurgeonError], tuple[str, str, str]]:
        return type(self), (self.found, self.expected, self.next_step)

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"expected: {self.expected}")
        if self.next_step:
            lines.append(f"next: {self.next_step}")
        return "\n".join(lines)


class RecipeError(TokensurgeonError):
    """The recipe or the command line is wrong."""

    exit_code = 2
    code = "TE2"


class InputError(TokensurgeonError):
    """A model, tokenizer or text cannot be used as it is."""

    exit_code = 3
    code = "TE3"


class PolicyError(TokensurgeonError):
    """The run is possible but refused until the user allows it."""

    exit_code = 4
    code = "TE4"


class VerificationError(TokensurgeonError):
    """A checkpoint is not what it should be: not what the plan says, or no draft of its target."""

    exit_code = 5
    code = "TE5"


class ResourceError(TokensurgeonError):
    """Not enough memory or disk."""

    exit_code = 6
    code = "TE6"


class InterruptError(TokensurgeonError):
    """The user ended the program."""

    exit_code = 130
    code = "TE130"
