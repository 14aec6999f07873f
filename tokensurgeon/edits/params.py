"""What each edit of a vocabulary is told. No torch, no tokenizers: a recipe is read quickly."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Edit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrimParams(_Edit):
    """Leave out tokens. What is kept is what all that is asked for keeps together."""

    operation: Literal["trim"] = "trim"
    corpus: tuple[str, ...] = Field((), description="keep the tokens that these UTF-8 texts use")
    least: int = Field(1, ge=1, description="times that a text token has to be used to be kept")
    scripts: tuple[str, ...] = Field(
        (), description="keep the tokens of these writing systems, such as Latin; digits, space, symbols too"
    )
    keep: tuple[str, ...] = Field((), description="files with one token a line, as text; kept in any case")
    size: int | None = Field(None, ge=1, description="tokens to keep at most, the most used first")
    exact_size: bool = Field(
        False, description="keep no fewer than size either: the most used, then the lowest ids"
    )
    multiple_of: int = Field(
        1,
        ge=1,
        description="keep so many more, but not more than size, that their number is a multiple of this",
    )
    allow_unreachable: bool = Field(
        False,
        description="do not keep what kept tokens are made of: some are never produced, texts cut otherwise",
    )
    drop_reserved: bool = Field(
        False, description="leave out special tokens whose names say that they are unused, such as <unused7>"
    )


class ExtendParams(_Edit):
    """Add tokens."""

    operation: Literal["extend"] = "extend"
    tokens: tuple[str, ...] = Field(
        (),
        description="files with one token a line, as text; a leading space opens a word, \\n is a line end",
    )
    tokenizer: str | None = Field(None, description="directory of a tokenizer whose tokens are added")
    corpus: tuple[str, ...] = Field((), description="UTF-8 texts that more merges are learnt from")
    count: int | None = Field(None, ge=1, description="tokens to add at most")
    placed: Literal["vocab", "added"] = Field(
        "vocab",
        description="vocab: merges (or scores) are added so that plain text produces them; added: as added "
        "tokens, which text is searched for before anything else",
    )

    @model_validator(mode="after")
    def _has_a_source(self) -> ExtendParams:
        if not (self.tokens or self.tokenizer or self.corpus):
            raise ValueError("extend needs tokens, a tokenizer or a corpus")
        if self.corpus and self.count is None:
            raise ValueError("a corpus has merges without end: say how many with count")
        if self.corpus and self.placed == "added":
            raise ValueError("tokens learnt from a corpus are merges or scores: placed must be vocab")
        return self


class SupertokensParams(_Edit):
    """Learn tokens that reach over spaces, and add them."""

    operation: Literal["supertokens"] = "supertokens"
    corpus: tuple[str, ...] = Field(min_length=1, description="UTF-8 texts to learn from")
    count: int = Field(1000, ge=1, description="tokens to add at most")
    most_words: int = Field(4, ge=2, description="words a token may span")
    replace: bool = Field(
        False, description="as many tokens as before: the least used of the corpus make room"
    )


class TrainParams(_Edit):
    """Learn all tokens anew; the pre-tokenizer, the digit scheme and the special tokens stay."""

    operation: Literal["train"] = "train"
    corpus: tuple[str, ...] = Field(min_length=1, description="UTF-8 texts to learn from")
    size: int | None = Field(
        None, ge=300, description="tokens, special ones included; by default searched for, see `growth`"
    )
    growth: float = Field(
        0.005, gt=0, description="without size: stop where the next step gains less than this share"
    )


class UnionParams(_Edit):
    """Add every token of another tokenizer, behind the tokens there are."""

    operation: Literal["union"] = "union"
    tokenizer: str = Field(min_length=1, description="directory of the other tokenizer")


AnyEdit = Annotated[
    TrimParams | ExtendParams | SupertokensParams | TrainParams | UnionParams,
    Field(discriminator="operation"),
]
