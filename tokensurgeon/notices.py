"""Warnings with stable codes, so that CI can allow or deny them by name."""

from __future__ import annotations

from dataclasses import dataclass

TITLES = {
    "TS001": "numbers are cut differently; expect worse arithmetic",
    "TS002": "more than one BOS in front of a prompt",
    "TS003": "target tokens that no method of the recipe serves were made by the fallback",
    "TS004": "several target tokens stand for the same bytes",
    "TS005": "a chat marker has no counterpart in the base",
    "TS006": "a config names a token that the target does not have",
    "TS007": "config.json and the stored embedding disagree on the vocabulary size",
    "TS008": "the tokenizers normalise text differently",
    "TS009": "the target has no BOS; the base was trained with one",
    "TS010": "new tokens share one row",
    "TS011": "AutoTokenizer frames texts with other special tokens than tokenizer.json",
    "TS012": "warnings while the output was loaded",
    "TS013": "base pieces do not spell all bytes of some tokens",
    "TS014": "the target directory holds tokenizer files of two kinds",
    "TS015": "the output was not loaded for verification",
    "TS016": "base tokens have no row of their own",
    "TS017": "an id without a token is the most likely next one",
    "TS018": "the texts were not scored",
    "TS019": "the base opens every prompt with BOS, the target's tokenizer does not",
    "TS020": "the base is tied, the output is not",
    "TS021": "untie changes nothing",
    "TS022": "ids of texts with numbers differ from those of the raw target's tokenizer",
    "TS023": "keep_digits changes nothing",
    "TS024": "auto did not measure its candidates",
    "TS025": "healing diverged; the best rows before are kept",
    "TS026": "healing changed nothing",
}


@dataclass(frozen=True)
class Notice:
    """One warning.

    Attributes:
        code: A key of ``TITLES``.
        detail: What exactly was found.
    """

    code: str
    detail: str

    @property
    def text(self) -> str:
        """Title and detail."""
        return f"{TITLES[self.code]}: {self.detail}" if self.detail else TITLES[self.code]
