"""The recipe. The only home of defaults; unknown keys are errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tokensurgeon.codes import find_code
from tokensurgeon.edits.params import AnyEdit
from tokensurgeon.errors import RecipeError
from tokensurgeon.methods.params import (
    AffknnParams,
    AffmixParams,
    AffompParams,
    AnyMethod,
    OmpParams,
    PieceRegressionParams,
    PiecesParams,
)

ROLE_NAMES = Literal["bos", "eos", "unk", "sep", "pad", "cls", "mask"]
EXCLUSIONS = Literal["special", "reserved", "unreachable", "near_zero", "near_copy", "untrained"]


# No file system knows a name with a NUL in it.
_NAME = r"^[^\x00]+$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRef(_Part):
    """A checkpoint or tokenizer: a local directory, or a hub id with a revision."""

    path: str = Field(min_length=1, pattern=_NAME)
    revision: str | None = None


def _as_ref(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    return {"path": value} if isinstance(value, str) else value


def _as_method(default: str) -> Callable[[Any], Any]:
    """Read ``omp`` as ``{name: omp}`` and ``{k: 32}`` as parameters of the default method."""

    def read(value: Any) -> Any:  # noqa: ANN401 - any YAML value
        if isinstance(value, str):
            return {"name": value}
        return {"name": default, **value} if isinstance(value, dict) else value

    return read


def _form(value: Any) -> str:  # noqa: ANN401 - any YAML value, or a model
    if (
        isinstance(value, Auto)
        or value == "auto"
        or (isinstance(value, dict) and value.get("name") == "auto")
    ):
        return "auto"
    if isinstance(value, PerEnd) or (isinstance(value, dict) and value.keys() & {"embedding", "lm_head"}):
        return "ends"
    return "list" if isinstance(value, list | tuple) else "one"


def _refuse_none(methods: tuple[AnyMethod, ...]) -> tuple[AnyMethod, ...]:
    if not methods:
        raise ValueError("expected at least one method")
    return methods


Ref = Annotated[ModelRef, BeforeValidator(_as_ref)]
Fallback = Annotated[AnyMethod, BeforeValidator(_as_method("pieces"))]
_One = Annotated[AnyMethod, BeforeValidator(_as_method("omp")), Tag("one")]
_Several = Annotated[
    tuple[Annotated[AnyMethod, BeforeValidator(_as_method("omp"))], ...],
    AfterValidator(_refuse_none),
    Tag("list"),
]


class PerEnd(_Part):
    """Methods of the two ends of a model that is not tied, or is untied."""

    embedding: Annotated[_One | _Several, Discriminator(_form)]
    lm_head: Annotated[_One | _Several, Discriminator(_form)]


_WITH_DONOR = (AffmixParams(), AffompParams(), AffknnParams(), OmpParams(), PiecesParams())
_WITHOUT_DONOR = (PieceRegressionParams(), PiecesParams())


class Auto(_Part):
    """The method is chosen: by what each candidate is worth on hidden anchors of this pair."""

    name: Literal["auto"] = "auto"
    calibrate: bool | None = Field(
        None,
        description="false: the first candidate, and the base is not run; true: refuse where it cannot be "
        "run; by default it is run where that is possible",
    )
    candidates: Annotated[
        tuple[Annotated[AnyMethod, BeforeValidator(_as_method("omp"))], ...] | None,
        AfterValidator(lambda methods: methods if methods is None else _refuse_none(methods)),
    ] = Field(
        None,
        description="what is tried; by default affmix, affomp, affknn, omp and pieces, and where the donor "
        "brings no weights piece_regression and pieces",
    )
    share: float = Field(0.3, gt=0, lt=1, description="of the anchors, hidden")
    minutes: float | None = Field(
        None,
        gt=0,
        description="to choose in: no candidate is begun after them, and rows are fitted to no more text "
        "than they leave time for; by default there is no limit",
    )

    def with_candidates(self, donor_weights: bool) -> Auto:
        """The same rules with their default candidates spelt out.

        Args:
            donor_weights: Whether the donor brings any.

        Returns:
            Rules that name candidates.
        """
        default = _WITH_DONOR if donor_weights else _WITHOUT_DONOR
        return self.model_copy(update={"candidates": self.candidates or default})

    @property
    def tried(self) -> tuple[AnyMethod, ...]:
        """The candidates; those for a donor with weights where the recipe names none."""
        return self.candidates or _WITH_DONOR


def _as_auto(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    return {} if value == "auto" else value


Methods = Annotated[
    _One
    | _Several
    | Annotated[PerEnd, Tag("ends")]
    | Annotated[Auto, BeforeValidator(_as_auto), Tag("auto")],
    Discriminator(_form),
]


def _as_rules(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    return {"exclude": ()} if value == "all" else value


class AnchorRules(_Part):
    """Which shared tokens rows are built from, and how special tokens are linked."""

    exclude: tuple[EXCLUSIONS, ...] = Field(
        ("special", "reserved", "unreachable", "near_zero", "near_copy", "untrained"),
        description="kinds of matched tokens that are no anchors; [] uses all, and so does `anchors: all`",
    )
    map: dict[str, str] = Field(
        default_factory=dict, description="target token: base text, before all other rules"
    )
    roles: tuple[ROLE_NAMES, ...] = Field(
        ("bos", "eos", "sep", "pad", "cls", "mask"), description="roles that link special tokens"
    )
    minimum: int = Field(256, ge=1, description="refuse with fewer anchors (methods that need them)")
    min_coverage: float = Field(
        0.02, ge=0, le=1, description="refuse when a smaller share of target tokens is matched"
    )


class RowMultiple(_Part):
    """Rows rounded up to a multiple."""

    multiple: int = Field(ge=1)


class LayoutOverrides(_Part):
    """Tensor names, where they do not tell what they are."""

    embedding: str | None = None
    lm_head: str | None = None


class Runtime(_Part):
    """How to compute; none of it changes what is computed, except the seed."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    batch_size: int | None = Field(
        None, ge=1, description="tokens solved at a time; by default as many as memory_gb allows and help"
    )
    memory_gb: float = Field(2.0, gt=0, description="most memory a batch may take, in 1e9 bytes")
    seed: int = Field(0, ge=0)
    link: bool = Field(
        False, description="hard-link shards without vocabulary tensors instead of copying them"
    )
    work_dir: str | None = Field(
        None, description="keeps finished batches there, so that a killed run goes on where it was"
    )


def _as_codes(value: Any) -> Any:  # noqa: ANN401 - any YAML value
    """Read ``TS017,TS003`` as a list, and codes in any case."""
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
        return tuple(code for entry in value for code in map(_as_warning, entry.split(",")))
    return value


def _as_warning(name: str) -> str:
    try:
        code = find_code(name)
    except RecipeError as error:
        raise ValueError(f"{error.found}: {error.next_step}") from error
    if not code.startswith("TS"):
        raise ValueError(f"an error such as {code} fails in any case; expected codes of warnings")
    return code


class VerifyRules(_Part):
    """What has to hold before the output appears."""

    forward: bool = Field(True, description="load the output in a fresh process and run it")
    allow_reader_mismatch: bool = Field(
        False, description="keep an output that AutoTokenizer reads differently from the raw tokenizer"
    )
    fail_on: Annotated[tuple[str, ...], BeforeValidator(_as_codes)] = Field(
        (), description="codes of warnings, such as TS017, with which there is no output"
    )
    max_bpb_increase: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="bits per byte that any of report.texts may cost more than with the base; there is no "
        "output that costs more",
    )


class ParallelText(_Part):
    """Two files whose lines say the same, one by one."""

    base: str = Field(min_length=1, description="in the base's language")
    target: str = Field(min_length=1, description="in the target's language")


class ResourceRules(_Part):
    """What some methods need besides the models; `tokensurgeon methods` says which."""

    corpus: tuple[str, ...] = Field((), description="UTF-8 texts in the target's language")
    parallel: tuple[ParallelText, ...] = Field((), description="texts in both languages, line by line")
    base_vectors: str | None = Field(None, description="word vectors of the base's language, word2vec format")
    target_vectors: str | None = Field(
        None, description="word vectors of the target's language, word2vec format"
    )
    dictionary: str | None = Field(
        None, description="lines of a base word, a tab and its translation; without it vectors are aligned"
    )
    encoder: Ref | None = Field(None, description="a text encoder: a local directory or hub id")
    hypernetwork: str | None = Field(
        None, description="safetensors file: read if it is there, else written after training"
    )


class NewRowRules(_Part):
    """What is done to rows once methods have made the missing ones."""

    head_scale: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        1.0,
        description="factor on the distance of an lm_head row, or a tied one, to the mean row; auto: the one "
        "at which the output best reads text sampled from the base",
    )
    head_fit: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fit made lm_head rows to text that the base writes, tied ones also by how they read it, "
        "as far as other text is read better: the standard deviation of a row's error, in units of the "
        "base's rows; 0: not at all",
    )
    head_texts: int = Field(
        240,
        ge=1,
        description="texts that the base writes for head_fit as it pleases; and a fifth as many in each "
        "writing system, at most eight, that both tokenizers know, and of programs. More are better and take "
        "longer",
    )
    last_piece: dict[str, Annotated[float, Field(gt=0, le=1)]] | Literal["auto"] = Field(
        default_factory=dict,
        description="target token: share of the row of its last base piece in its made embedding row; auto: "
        "half or all of it for those after which text sampled from the base is read better, unless tied rows "
        "have followed head_fit, which sees to that as well",
    )
    unigrams: bool = Field(
        False,
        description="move lm_head rows, or tied ones, kept rows too, until each token is expected as often "
        "as it occurs in text that the base writes; only bytes and letters of systems that it does not write "
        "in by itself: for text that the target cuts into those",
    )
    norm: Literal["free", "match"] = Field(
        "free", description="match: every made row as long as the median row that is kept"
    )

    @property
    def runs_base(self) -> bool:
        """Whether rows are judged, or fitted, by running the base."""
        return "auto" in (self.head_scale, self.last_piece) or self.head_fit > 0 or self.unigrams


class LoraRules(_Part):
    """Low-rank changes of linear layers that train beside rows, and are merged into their weights."""

    rank: int = Field(16, ge=1, description="of every change")
    alpha: float = Field(32.0, gt=0, description="over rank, what changes are multiplied with")
    targets: tuple[str, ...] = Field(
        (), description="endings of names of layers, such as q_proj; none: all linear layers but the lm_head"
    )
    learning_rate: float = Field(
        1e-3, gt=0, description="the largest; rises and falls as the one of rows does"
    )


class HealRules(_Part):
    """Minutes of training after rows are made; the body stays as it is, unless there is ``lora``."""

    objective: Literal["chunk_likelihood", "token_distillation", "ntp"] = Field(
        "chunk_likelihood",
        description="chunk_likelihood: the base's own probability of every stretch of text; "
        "token_distillation: the base's own hidden states after new tokens; ntp: the next token",
    )
    corpus: tuple[str, ...] = Field(
        (),
        description="text, .jsonl (a `text` field) or .parquet files; without any the base writes the text",
    )
    texts: int = Field(
        480, ge=2, description="how many the base writes as it pleases, where there is no corpus"
    )
    train: Literal["new", "vocabulary"] = Field(
        "new", description="rows that methods made, or every row with a token"
    )
    steps: int = Field(100, ge=1, description="at most so many")
    minutes: float = Field(30.0, gt=0, description="at most so long; whichever ends first")
    batch_tokens: int = Field(4096, ge=1, description="tokens of a step")
    learning_rate: float = Field(
        0.2,
        gt=0,
        description="the largest, in units of the spread that prior gives; rises over a tenth of the steps "
        "and falls to zero",
    )
    prior: float = Field(
        0.35,
        ge=0,
        description="how far a row is thought to be off, in units of the base's rows; 0: any distance is "
        "as likely as any other",
    )
    copied: float = Field(
        0.1,
        gt=0,
        le=1,
        description="train: vocabulary: how far off a copied row is thought to be, in units of a made one; "
        "its steps are as much shorter",
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="share of the texts that says when to stop; at most four batches of them"
    )
    patience: int = Field(
        3, ge=1, description="it stops after so many scores of held-out text without a gain; a run has ten"
    )
    expected: float = Field(
        1.0,
        ge=0,
        description="chunk_likelihood: weight of what the base expects before every stretch, spelt in the "
        "first pieces of its tokens; 0: only what comes counts",
    )
    alpha: float = Field(
        1.0,
        ge=0,
        description="weight of the next-token loss beside what the teacher says; in token_distillation "
        "nothing else teaches rows to write, and 0 leaves an lm_head as it is",
    )
    layer: int | None = Field(
        None,
        description="token_distillation: whose hidden states; -1 is the last, 0 the rows; null: of the layer "
        "after a third of them",
    )
    lora: LoraRules | None = Field(
        None, description="train low-rank changes of the body, too; null: the body stays as it is"
    )
    checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")
    teacher: Ref | None = Field(
        None, description="the base of an earlier transplant, when it is that transplant that is healed"
    )


class ReportRules(_Part):
    """What the report measures."""

    texts: tuple[str, ...] = Field((), description="files to score in bits per byte, base against output")
    max_bytes: int = Field(32768, ge=1, description="bytes of each text to score")
    hidden: int = Field(
        500,
        ge=0,
        description="so many shared tokens are made again as if missing, to tell how far off rows are; "
        "only where methods need no more than a donor, and auto has not hidden any",
    )


class Recipe(_Part):
    """One transplant.

    ``donor`` defaults to ``target``: the directory of the target tokenizer usually holds the model that was
    trained with it. With ``edits`` and neither of them, the base's own tokenizer is edited; its new tokens
    have no donor, and their rows are made of their pieces unless ``method`` says otherwise.
    """

    schema_version: Literal[1] = 1
    base: Ref
    target: Ref
    donor: Ref
    output: str = Field(min_length=1, pattern=_NAME)
    edits: tuple[AnyEdit, ...] = Field(
        (),
        description="what is done to the target's tokenizer first: trim, extend, supertokens, train, union",
    )
    method: Methods = Field(
        Auto(),
        description="one, a list whose next serves what the last could not, one for each end, or auto",
    )
    fallback: Fallback = Field(PiecesParams(), description="for tokens no method serves")
    new_rows: NewRowRules = NewRowRules()
    heal: HealRules | None = Field(None, description="train what methods made, for minutes; null: do not")
    resources: ResourceRules = ResourceRules()
    anchors: Annotated[AnchorRules, BeforeValidator(_as_rules)] = AnchorRules()
    rows: Literal["target", "exact"] | RowMultiple | int = Field(
        "target", description="rows of the output: the donor's, as few as possible, a multiple, or a number"
    )
    match_vocab_of: Ref | None = Field(
        None,
        description="a model that the output shall be a draft of: as many rows as its config says, and its "
        "tokenizer where the recipe names no target; refused unless it passes `tokensurgeon check-draft`",
    )
    layout: LayoutOverrides = LayoutOverrides()
    tie_policy: Literal["refuse", "keep-head", "drop-head"] = Field(
        "refuse", description="for a base that is declared tied and stores another lm_head"
    )
    untie: bool = Field(
        False, description="give a tied base an lm_head of its own: the output grows by one table"
    )
    keep_digits: bool = Field(False, description="let the target's tokenizer cut numbers as the base's does")
    runtime: Runtime = Runtime()
    verify: VerifyRules = VerifyRules()
    report: ReportRules = ReportRules()
    trust_remote_code: bool = False

    def methods(self, end: Literal["embedding", "lm_head"]) -> tuple[AnyMethod, ...]:
        """Methods of one end of the model in their order, without the fallback.

        Args:
            end: Which end.

        Returns:
            At least one method.
        """
        if isinstance(self.method, Auto):
            return self.method.tried[: 1 if self.method.calibrate is False else None]
        chosen = getattr(self.method, end) if isinstance(self.method, PerEnd) else self.method
        return chosen if isinstance(chosen, tuple) else (chosen,)

    def told(self) -> dict[str, Any]:
        """What is asked for, as JSON; where it is written is no part of that."""
        return self.model_dump(mode="json", exclude={"output": True, "runtime": {"work_dir"}})

    @property
    def runs_base(self) -> bool:
        """Whether something is chosen, or learnt, by running the base."""
        chooses = isinstance(self.method, Auto) and self.method.calibrate is not False
        return chooses or self.new_rows.runs_base or self.heal is not None

    @property
    def may_choose_blindly(self) -> bool:
        """Whether a base that cannot be run is no reason to refuse the recipe."""
        chooses = isinstance(self.method, Auto) and self.method.calibrate is None
        return chooses and not self.new_rows.runs_base and self.heal is None

    @property
    def all_methods(self) -> tuple[AnyMethod, ...]:
        """Every method that may be used, each once: those of the embedding first, the fallback last."""
        chains = (*self.methods("embedding"), *self.methods("lm_head"), self.fallback)
        return tuple(dict.fromkeys(chains))

    @field_validator("match_vocab_of")
    @classmethod
    def _refuse_two_sizes(cls, served: ModelRef | None, info: ValidationInfo) -> ModelRef | None:
        if served is not None and info.data.get("rows", "target") != "target":
            raise ValueError("it says how many rows there are, and so does rows; leave one of them out")
        return served

    @field_validator("untie")
    @classmethod
    def _refuse_both_ways(cls, untie: bool, info: ValidationInfo) -> bool:
        if untie and info.data.get("tie_policy") == "drop-head":
            raise ValueError("untie keeps an lm_head, tie_policy: drop-head loses it; leave one of them out")
        return untie

    @model_validator(mode="after")
    def _has_texts_to_judge_by(self) -> Recipe:
        if self.verify.max_bpb_increase is not None and not self.report.texts:
            raise ValueError("verify.max_bpb_increase without report.texts: which texts shall not cost more?")
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_twins(cls, data: Any) -> Any:  # noqa: ANN401 - any YAML value
        if isinstance(data, dict):
            data = dict(data)
            if data.get("match_vocab_of") is not None:
                data.setdefault("target", data["match_vocab_of"])
            for key, twin in (("target", "donor"), ("donor", "target")):
                if key not in data and twin in data:
                    data[key] = data[twin]
            if data.get("edits") and "target" not in data and "base" in data:
                data |= {"target": data["base"], "donor": data["base"]}
            if data.get("edits") and data.get("donor") == data.get("base"):
                data.setdefault("method", "pieces")
        return data

    @property
    def edits_itself(self) -> bool:
        """Whether it is the base's own tokenizer that is edited."""
        return bool(self.edits) and self.target == self.base

    @property
    def brings_donor(self) -> bool:
        """Whether there is a donor that knows more tokens than the base does."""
        return not (self.edits and self.donor == self.base)
