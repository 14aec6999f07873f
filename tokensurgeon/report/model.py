"""Schema of ``report.json``. Nothing in it depends on the clock: two equal runs write equal reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tokensurgeon.errors import InputError

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputModel(_Part):
    """One input directory.

    Attributes:
        role: ``base``, ``target``, ``donor`` or ``teacher``.
        source: Path or hub id, as in the recipe.
        revision: Commit, for a hub id.
        from_hub: Whether it came from the hub; None in reports of earlier versions.
        files: SHA-256 by file name, of the files that were read.
        card: What its own model card says that holds for the output too, such as ``license``.
    """

    role: Literal["base", "target", "donor", "teacher"]
    source: str
    revision: str | None
    from_hub: bool | None = None
    files: dict[str, str]
    card: dict[str, str | list[str]] = {}


class VocabularySummary(_Part):
    """Sizes before and after.

    Attributes:
        base_tokens: Tokens of the base tokenizer.
        base_rows: Rows of the base's input embedding.
        target_tokens: Tokens of the target tokenizer.
        target_bound: Highest target id plus one.
        rows: Rows of the output.
        row_policy: The recipe's ``rows``.
        holes: Ids below ``target_bound`` without a token.
        padding: Rows at and past ``target_bound``.
        parameters_before: Parameters of the base.
        parameters_after: Parameters of the output.
    """

    base_tokens: int
    base_rows: int
    target_tokens: int
    target_bound: int
    rows: int
    row_policy: str
    holes: int
    padding: int
    parameters_before: int
    parameters_after: int


class OriginCount(_Part):
    """Target tokens whose rows came about in one way.

    Attributes:
        origin: ``matched``, ``content``, ``role``, ``chat``, ``mapped``, or ``method: NAME``.
        tokens: How many tokens.
        share: Share of all target tokens, 0 to 1.
        text_share: Share of the tokens in the recipe's texts, 0 to 1; None without texts.
    """

    origin: str
    tokens: int
    share: float
    text_share: float | None = None


class Matching(_Part):
    """How the two vocabularies were matched.

    Attributes:
        byte_equal: Ordinary tokens matched by equal bytes.
        false_matches: Matches whose bytes differ; anything but 0 is a bug.
        missing: Target tokens without a counterpart.
        inexact_pieces: Missing tokens whose base pieces do not spell all their bytes.
        collisions_target: Byte strings with several target tokens.
        collisions_base: Byte strings with several base tokens.
        collision_examples: A few of them as text.
    """

    byte_equal: int
    false_matches: int
    missing: int
    inexact_pieces: int
    collisions_target: int
    collisions_base: int
    collision_examples: list[str]


class Exclusion(_Part):
    """Matched tokens that were not used as anchors.

    Attributes:
        reason: Such as ``reserved`` or ``near_zero (target)``.
        tokens: How many.
        examples: A few, as text.
    """

    reason: str
    tokens: int
    examples: list[str]


class AnchorSummary(_Part):
    """The shared tokens that rows were built from.

    Attributes:
        count: Anchors used.
        by_script: Number by script, the largest first.
        excluded: What was left out, and why.
    """

    count: int
    by_script: dict[str, int]
    excluded: list[Exclusion]


class SpecialToken(_Part):
    """One special token of the target.

    Attributes:
        token: Its name.
        id: Its id.
        roles: Its roles in the target tokenizer, such as ``eos``.
        base_tokens: Base tokens whose rows it has; empty when a method made its row.
        decided_by: How that was decided.
    """

    token: str
    id: int
    roles: list[str]
    base_tokens: list[str]
    decided_by: str


class Quantiles(_Part):
    """A distribution in short.

    Attributes:
        count: Number of values.
        minimum: Smallest.
        q01: 1st percentile.
        q25: 25th percentile.
        median: 50th percentile.
        q75: 75th percentile.
        q99: 99th percentile.
        maximum: Largest.
        histogram: Counts in equal bins from ``minimum`` to ``maximum``.
    """

    count: int
    minimum: float
    q01: float
    q25: float
    median: float
    q75: float
    q99: float
    maximum: float
    histogram: list[int]


class Ingredient(_Part):
    """A token that stands behind a row.

    Attributes:
        token: Its text.
        weight: Its coefficient, or its similarity.
    """

    token: str
    weight: float


class TokenRow(_Part):
    """One new row, looked at closely.

    Attributes:
        id: Target id.
        token: Its text.
        method: What made the row.
        residual: Share of the donor row that the combination misses; None if unknown.
        norm: Norm of the new row.
        made_of: Largest ingredients.
        nearest: The anchor whose donor row is most similar, with their cosine; None if there is none.
    """

    id: int
    token: str
    method: str
    residual: float | None
    norm: float
    made_of: list[Ingredient]
    nearest: Ingredient | None = None


class RowTable(_Part):
    """Made rows of one tensor and what they are made of, as columns in the order of their ids.

    Attributes:
        made: Made rows of the tensor. The columns hold all of them, or of very many those of text before
            those of control tokens, the lowest ids first.
        ids: Target ids.
        tokens: Their texts.
        methods: What made each; ``map`` where the user spelt it out.
        residuals: Share of the donor row that the combination misses; None if unknown.
        sources: For each row the base ids with the largest coefficients; methods with a linear map use them
            to correct it.
        weights: Their coefficients.
        source_tokens: Text by base id, of every id in ``sources``.
    """

    made: int
    ids: list[int]
    tokens: list[str]
    methods: list[str]
    residuals: list[float | None]
    sources: list[list[int]]
    weights: list[list[float]]
    source_tokens: dict[int, str]


class Solver(_Part):
    """How made rows were solved for; the samples are there for an approximate solver only.

    Attributes:
        mode: ``exact`` or ``screened``.
        sample: Tokens solved again exactly.
        residual: Their mean residual as made.
        exact_residual: Their mean residual when solved exactly.
        shared_anchors: Mean share of the exact anchors that were taken as well, 0 to 1.
        proven: Share of all choices, over all tokens, at which no anchor off the solver's shortlist could
            have been better, 0 to 1.
    """

    mode: str
    sample: int | None = None
    residual: float | None = None
    exact_residual: float | None = None
    shared_anchors: float | None = None
    proven: float | None = None


class TensorQuality(_Part):
    """The rows of one vocabulary tensor.

    Attributes:
        name: Tensor name.
        role: ``embedding``, ``lm_head``, ``bias`` or ``per_layer_embedding``.
        tied: Whether the same rows serve as lm_head.
        dtype: Stored dtype.
        old_shape: Shape in the base; empty where it has no such tensor.
        new_shape: Shape in the output.
        copied: Rows copied bit for bit.
        made: Rows a method made.
        made_by: Rows by the method that made them; ``map`` where the user spelt them out.
        padding: Rows without a token.
        equal_to: Another tensor with the same contents before and after, or None.
        kept_norms: Norms of the copied rows.
        new_norms: Norms of the made rows; None if there are none.
        residuals: Residuals of the made rows; None if the method has none.
        similarities: Cosine of donor rows to their nearest anchor, on a sample of the made rows; the lower,
            the less a combination of anchors can say. None without a donor.
        solver: How made rows were solved for; None where there is nothing to solve.
        worst: Made rows with the largest residual, or the most unusual norm where there are no residuals.
        rows: What made rows are made of; None where none was made, in a copy of another tensor, and in
            reports of earlier versions.
        healed: Rows that training moved, copied ones or made ones.
        note: What else a reader must know, such as how a bias was filled.
    """

    name: str
    role: str
    tied: bool
    dtype: str
    old_shape: list[int]
    new_shape: list[int]
    copied: int
    made: int
    made_by: dict[str, int] = {}
    padding: int
    equal_to: str | None
    kept_norms: Quantiles | None
    new_norms: Quantiles | None
    residuals: Quantiles | None
    similarities: Quantiles | None = None
    solver: Solver | None = None
    worst: list[TokenRow]
    rows: RowTable | None = None
    healed: int = 0
    note: str


class FieldChange(_Part):
    """One config field that differs from the base.

    Attributes:
        file: Which file.
        field: Dotted path.
        old: Value before.
        new: Value after.
    """

    file: str
    field: str
    old: Any
    new: Any


class Check(_Part):
    """One verification step.

    Attributes:
        name: What was checked.
        passed: Whether it held.
        detail: What was seen.
    """

    name: str
    passed: bool
    detail: str


class LossClass(_Part):
    """Chunks of a text of one class. A chunk ends where a token ends in both base and target.

    Attributes:
        name: Of the class.
        chunks: How many.
        byte_share: Their share of the text's bytes, 0 to 1.
        base: Bits the base spends on them, per byte of the whole text.
        output: Bits the output spends on them, per byte of the whole text.
        excess: Output minus base.
    """

    name: str
    chunks: int
    byte_share: float
    base: float
    output: float
    excess: float


class LossAnatomy(_Part):
    """Where the output loses against the base; the classes of each split add up to all of it.

    Attributes:
        chunks: Chunks of the text.
        excess: Bits per byte, output minus base.
        by_cut: By how base and target cut a chunk; ``missing`` are those with a token whose row was made.
        by_script: By the script of the first letter.
        by_content: By numbers, line breaks and indentation, other runs of blanks; empty in reports of earlier
            versions.
        by_new_rows: By whether a made row is predicted, or lies shortly before; None if not known.
    """

    chunks: int
    excess: float
    by_cut: list[LossClass]
    by_script: list[LossClass]
    by_content: list[LossClass] = []
    by_new_rows: list[LossClass] | None


class TextScore(_Part):
    """Bits per byte of one text, before and after.

    Attributes:
        text: File name.
        bytes: UTF-8 bytes scored.
        base: Bits per byte of the base with its own tokenizer.
        output: Bits per byte of the output.
        base_bytes_per_token: Compression of the base tokenizer on this text.
        output_bytes_per_token: Compression of the target tokenizer on this text.
        anatomy: Where the difference sits; None in reports of earlier versions.
    """

    text: str
    bytes: int
    base: float
    output: float
    base_bytes_per_token: float
    output_bytes_per_token: float
    anatomy: LossAnatomy | None = None


class TokenizerTraits(_Part):
    """What a tokenizer does, base against target.

    Attributes:
        digits_base: Digit splitting of the base.
        digits_target: Digit splitting of the target.
        bos_base: BOS tokens in front of a plain prompt, base.
        bos_target: BOS tokens in front of a plain prompt, target.
        bos_chat_target: BOS tokens in front of a rendered chat, target; None without a template.
        normalizer_base: Type of the base's normaliser, or ``none``.
        normalizer_target: Type of the target's normaliser, or ``none``.
    """

    digits_base: str
    digits_target: str
    bos_base: int
    bos_target: int
    bos_chat_target: int | None
    normalizer_base: str
    normalizer_target: str


class Notice(_Part):
    """Something a user should know.

    Attributes:
        code: Stable, such as ``TS001``.
        text: What and why.
    """

    code: str
    text: str


class Tried(_Part):
    """One candidate of ``method: auto`` on hidden anchors.

    Attributes:
        method: Its name.
        parameters: Its parameters.
        ends: Where its rows were put back: embedding, lm_head or both.
        row_error: Weighted squared distance of its rows to the true ones, 1 for the mean row.
        head_scale: The better of the scales tried.
        bits_per_byte: Of the base reading its own writing with those rows.
        chosen: Whether it was taken.
    """

    method: str
    parameters: dict[str, Any]
    ends: str
    row_error: float
    head_scale: float
    bits_per_byte: float
    chosen: bool


class ChoiceSummary(_Part):
    """How ``method: auto`` chose.

    Attributes:
        hidden: Shared tokens that were hidden.
        share: Of the anchors.
        seed: Of the hidden tokens and the base's writing.
        bytes: Text the base wrote to be measured on.
        base_bits: Bits per byte of it with the true rows.
        tried: Every candidate.
        recipe: The part of a recipe that gives the same rows without choosing.
    """

    hidden: int
    share: float
    seed: int
    bytes: int
    base_bits: float
    tried: list[Tried]
    recipe: dict[str, Any]


class HiddenErrors(_Part):
    """How far the made rows of hidden tokens are from the true ones: squared distances, 1 for the mean row.

    Attributes:
        tensor: Whose rows.
        weighted: Over all, each quarter below counting the same.
        by_similarity: By cosine to the nearest anchor, the farthest first; None where no token is.
    """

    tensor: str
    weighted: float
    by_similarity: list[float | None]


class HiddenSummary(_Part):
    """Shared tokens that were made again as if they were missing.

    Attributes:
        tokens: How many.
        seed: Which ones.
        edges: Quartiles of the missing tokens' cosine to the nearest anchor; empty without a donor.
        errors: By tensor.
    """

    tokens: int
    seed: int
    edges: list[float]
    errors: list[HiddenErrors]


class HeldOutScore(_Part):
    """How held-out text was read at one time.

    Attributes:
        step: Steps made before.
        bits_per_byte: Of the held-out text.
    """

    step: int
    bits_per_byte: float


class HealSummary(_Part):
    """How rows were trained.

    Attributes:
        objective: ``chunk_likelihood``, ``token_distillation`` or ``ntp``.
        train: ``new`` or ``vocabulary``.
        corpus: Files that were read; empty where the base wrote the texts.
        rows: Rows that trained, over all tensors.
        layers: Layers of the body with a change of low rank that trained; 0 for a body that stayed as it was.
        parameters: Of those changes.
        texts: Texts they learnt from.
        held_out_texts: Texts they were judged by.
        tokens: The output's tokens in the texts they learnt from.
        tokens_read: The same over all steps.
        steps: Steps made.
        best_step: Steps after which held-out text was read best, and whose rows were kept; 0 for none.
        ended: By ``steps``, ``minutes``, ``patience`` or because it ``diverged``.
        losses: The objective at each step.
        held_out: Held-out text before, and every few steps.
        before: Bits per byte of held-out text with the rows as they were made.
        after: The same with the rows that were kept.
        base: The same by the base with its own tokenizer.
    """

    objective: str
    train: str
    corpus: list[str]
    rows: int
    layers: int = 0
    parameters: int = 0
    texts: int
    held_out_texts: int
    tokens: int
    tokens_read: int
    steps: int
    best_step: int
    ended: str
    losses: list[float]
    held_out: list[HeldOutScore]
    before: float
    after: float
    base: float


class EditStep(_Part):
    """One edit of the target's tokenizer.

    Attributes:
        operation: ``trim``, ``extend``, ``supertokens``, ``train`` or ``union``.
        before: Tokens before it.
        after: Tokens after it.
        facts: What it tells of itself, by name.
    """

    operation: str
    before: int
    after: int
    facts: dict[str, Any]


class EditSummary(_Part):
    """What edits made of the target's tokenizer, and of texts.

    Attributes:
        steps: The edits in their order.
        kept: Tokens that were there before and still are.
        keeps_ids: Whether every token kept its id.
        files: What became of each tokenizer file, by name.
        lines: Lines of the recipe's texts that were cut before and after; 0 without texts.
        changed_lines: Share of them that is cut otherwise, 0 to 1.
        changed_bytes: Share of their bytes that lie in other tokens, 0 to 1.
        broken: Lines cut otherwise although all their tokens were kept.
        bytes_per_token_before: On these lines; None without texts.
        bytes_per_token_after: On these lines; None without texts.
        unreachable: Tokens that plain text never leads to, after the edits.
        unreachable_before: The same before them.
    """

    steps: list[EditStep]
    kept: int
    keeps_ids: bool
    files: dict[str, str]
    lines: int
    changed_lines: float
    changed_bytes: float
    broken: int
    bytes_per_token_before: float | None
    bytes_per_token_after: float | None
    unreachable: int
    unreachable_before: int


class DraftVerdict(_Part):
    """What the rule of one engine says of the output as a draft model.

    Attributes:
        rule: The engine, or ``every draft``.
        result: ``passes``, ``fails`` or ``not checked``.
        reason: The first difference, what was compared, or why there is no verdict.
    """

    rule: str
    result: Literal["passes", "fails", "not checked"]
    reason: str


class DraftSummary(_Part):
    """Whether engines take the output as a draft of another model.

    Attributes:
        model: The other model: path or hub id.
        asked: Whether the recipe names it as ``match_vocab_of``; else the output has its tokenizer.
        verdicts: One a rule.
    """

    model: str
    asked: bool
    verdicts: list[DraftVerdict]


class Report(_Part):
    """Everything that is known about one run.

    Attributes:
        schema_version: Of this file.
        tool_version: Of tokensurgeon.
        versions: Of the libraries that matter.
        recipe: The recipe as run, without the output path.
        inputs: Base, target and donor.
        vocabulary: Sizes.
        matching: How tokens were matched.
        origins: Where rows came from, the largest first.
        anchors: What rows were built from; None when the method uses no anchors.
        specials: Every special token of the target.
        tensors: Every vocabulary tensor.
        traits: Tokenizer traits that change what a model can do.
        config_changes: Config fields that changed.
        files: Where each file of the output came from, by name.
        checks: Verification.
        scores: Bits per byte; empty unless the recipe names texts.
        choice: How ``method: auto`` chose; None where the recipe names its method.
        edits: What was done to the target's tokenizer first; None without edits.
        hidden: How far off rows are, by shared tokens; None where none were hidden for this.
        heal: How rows were trained; None where they were not.
        draft: The output as a draft model; None where there is no model to be a draft of.
        architectures: Model classes, as the config says; empty in reports of earlier versions.
        warnings: What to know before use.
    """

    schema_version: int = SCHEMA_VERSION
    tool_version: str
    versions: dict[str, str]
    recipe: dict[str, Any]
    inputs: list[InputModel]
    vocabulary: VocabularySummary
    matching: Matching
    origins: list[OriginCount]
    anchors: AnchorSummary | None
    specials: list[SpecialToken]
    tensors: list[TensorQuality]
    traits: TokenizerTraits
    config_changes: list[FieldChange]
    files: dict[str, str]
    checks: list[Check]
    scores: list[TextScore]
    choice: ChoiceSummary | None = None
    edits: EditSummary | None = None
    hidden: HiddenSummary | None = None
    heal: HealSummary | None = None
    draft: DraftSummary | None = None
    architectures: list[str] = []
    warnings: list[Notice]

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(check.passed for check in self.checks)

    def dump(self) -> str:
        """The report as JSON text."""
        return _lay_out(self.model_dump(mode="json")) + "\n"


def _lay_out(value: Any, margin: str = "") -> str:  # noqa: ANN401 - any JSON value
    """JSON with two spaces a level, but a list without objects in it on one line: columns are long."""
    inner = margin + "  "
    if isinstance(value, dict) and value:
        parts = [
            f"{json.dumps(key, ensure_ascii=False)}: {_lay_out(part, inner)}" for key, part in value.items()
        ]
        opening, closing = "{}"
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = [_lay_out(part, inner) for part in value]
        opening, closing = "[]"
    else:
        return json.dumps(value, ensure_ascii=False)
    return f"{opening}\n{inner}" + f",\n{inner}".join(parts) + f"\n{margin}{closing}"


def load_report(directory: Path) -> Report:
    """Read ``report.json`` of an output directory.

    Args:
        directory: An output of tokensurgeon.

    Returns:
        The report in it.

    Raises:
        InputError: It is missing or not of this schema.
    """
    path = directory / "report.json"
    if not path.is_file():
        raise InputError(f"{directory}: no report.json", "an output directory of tokensurgeon")
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise InputError(
            f"{path}: not a report of schema {SCHEMA_VERSION} ({error.error_count()} errors)",
            "a report this version can read",
            "run tokensurgeon again, or read it with the version it names",
        ) from error
