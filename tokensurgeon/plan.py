"""Recipe -> plan: every fact of a run, known from headers, configs and tokenizers before a weight is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokensurgeon.checkpoint.configs import (
    ConfigChange,
    IdRemap,
    complete_config,
    read_config,
    rewrite_config,
    rewrite_generation_config,
    text_levels,
    untie_config,
)
from tokensurgeon.checkpoint.layout import TensorRole, VocabTensor
from tokensurgeon.checkpoint.sidefiles import carried_files, tokenizer_files
from tokensurgeon.device import available_memory, find_device
from tokensurgeon.edits.chain import EditedTokenizer, edit_tokenizer
from tokensurgeon.errors import InputError, PolicyError, RecipeError
from tokensurgeon.evaluation.draft import Side, judge_draft, load_side, make_side, refuse_unfit
from tokensurgeon.inputs import Inputs, read_inputs
from tokensurgeon.methods.params import Cost
from tokensurgeon.methods.registry import find_method
from tokensurgeon.notices import Notice, some_tokens
from tokensurgeon.recipe.schema import Auto, Recipe, RowMultiple
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.decompose import Pieces, decompose
from tokensurgeon.vocab.digits import digit_scheme, keep_digits
from tokensurgeon.vocab.match import VocabMatch, match_edited, match_vocabularies
from tokensurgeon.vocab.special import Origin, Source
from tokensurgeon.vocab.usable import is_reachable, is_reserved
from tokensurgeon.vocab.vocabulary import Vocabulary, load_vocabulary

# More tokens at a time make a CPU no faster, and other kernels run below 64.
_MOST_TOKENS = {"cpu": 256, "cuda": 4096}
_LEAST_TOKENS = 64
_PROGRAM_BYTES = 800_000_000
# Base tokens a row is combined from, at most; each is kept with its coefficient.
_SOURCES = 64


@dataclass(frozen=True)
class Plan:
    """Everything that will be done.

    Attributes:
        recipe: The recipe.
        inputs: Directories and headers.
        match: Which target token is which base token.
        rows: Rows of the output.
        wanted: Target ids whose rows a method makes, ascending.
        unserved: Those of ``wanted`` that the donor has no row for, and those that the user spelt out.
        pieces: For each of ``wanted`` its base pieces.
        anchors: Target id to base id of the matched tokens that may be anchors.
        excluded: Matched target ids that are no anchors, by reason.
        config: The new ``config.json``.
        generation_config: The new ``generation_config.json``.
        config_changes: What differs from the base in both.
        copied_files: Where each copied file comes from, by its name in the output.
        rewritten: New text of those that do not stay as they are, by name.
        notices: Warnings so far.
        edited: What the recipe's edits made of the target's tokenizer; None without edits.
        donor_ids: Target id to the donor's id of the same token; None where they are equal.
        asked: The recipe as a user gave it, before candidates and methods were filled in; None outside a run.
    """

    recipe: Recipe
    inputs: Inputs
    match: VocabMatch = field(repr=False)
    rows: int
    wanted: list[int] = field(repr=False)
    unserved: list[int] = field(repr=False)
    pieces: list[Pieces] = field(repr=False)
    anchors: dict[int, int] = field(repr=False)
    excluded: dict[str, list[int]] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    generation_config: dict[str, Any] = field(repr=False)
    config_changes: list[ConfigChange]
    copied_files: dict[str, Path]
    rewritten: dict[str, str] = field(repr=False)
    notices: list[Notice]
    edited: EditedTokenizer | None = None
    donor_ids: dict[int, int] | None = field(default=None, repr=False)
    asked: Recipe | None = None

    @property
    def output(self) -> Path:
        """Where the output will appear."""
        return Path(self.recipe.output).expanduser().resolve()

    @property
    def lost_ids(self) -> list[str]:
        """Config fields whose token has no counterpart in the target."""
        lost = (change for change in self.config_changes if change.new is None and change.old is not None)
        return list(dict.fromkeys(change.field for change in lost))

    @property
    def method_names(self) -> str:
        """Names of the methods without the fallback; a slash stands between those of the two ends."""
        if isinstance(self.recipe.method, Auto):
            return "auto"
        chains = dict.fromkeys((self.recipe.methods("embedding"), self.recipe.methods("lm_head")))
        return " / ".join(", ".join(params.name for params in chain) for chain in chains)

    @property
    def is_anchored(self) -> bool:
        """Whether a method builds rows from anchors."""
        return any(find_method(params.name).anchors for params in self.recipe.all_methods)

    def new_shape(self, tensor: VocabTensor) -> tuple[int, ...]:
        """Shape of a vocabulary tensor in the output."""
        shape = list(tensor.ref.shape)
        shape[tensor.axis] = self.rows_of(tensor)
        return tuple(shape)

    @property
    def is_identity(self) -> bool:
        """Whether the target is the base's own tokenizer and no row moves."""
        return self.match.is_identity and self.rows == self.inputs.layout.rows

    @property
    def only_adds(self) -> bool:
        """Whether the base's own tokenizer was edited and lost nothing: rows without a token stay as well."""
        return self.recipe.edits_itself and self.edited is not None and self.edited.keeps_ids

    def rows_of(self, tensor: VocabTensor) -> int:
        """Rows of a vocabulary tensor in the output; Gemma 3n's per-layer table has fewer than the others."""
        return tensor.rows if self.is_identity else self.rows

    @property
    def bytes_to_write(self) -> int:
        """Size of the weights of the output."""
        total = sum(ref.nbytes for ref in self.inputs.base_index.tensors.values())
        for tensor in self.inputs.layout.tensors:
            total += tensor.ref.nbytes // tensor.rows * (self.rows_of(tensor) - tensor.rows)
        return total

    @property
    def added_bytes(self) -> int:
        """Size of the tensors that the base does not store because it is tied."""
        return sum(
            tensor.ref.nbytes // tensor.rows * self.rows_of(tensor)
            for tensor in self.inputs.layout.tensors
            if tensor.name in self.inputs.added
        )

    @property
    def parameters_before(self) -> int:
        """Parameters of the base."""
        tensors = self.inputs.base_index.tensors
        return sum(math.prod(ref.shape) for name, ref in tensors.items() if name not in self.inputs.added)

    @property
    def parameters_after(self) -> int:
        """Parameters of the output."""
        tensors, vocab = self.inputs.base_index.tensors, self.inputs.layout.tensors
        body = sum(math.prod(tensors[name].shape) for name in tensors.keys() - self.inputs.layout.names)
        return body + sum(math.prod(self.new_shape(tensor)) for tensor in vocab)

    @property
    def cost(self) -> Cost:
        """What making the missing rows of one tensor takes."""
        layout = self.inputs.donor_layout or self.inputs.layout
        width = layout.embedding.ref.shape[1]
        device = find_device(self.recipe.runtime.device).type
        costs = [
            params.cost(len(self.wanted), len(self.anchors), width, device)
            for params in self.recipe.all_methods
        ]
        return Cost(
            bytes_per_token=max(cost.bytes_per_token for cost in costs),
            fixed_bytes=max(cost.fixed_bytes for cost in costs) + self._body_bytes,
            operations=max(cost.operations for cost in costs),
        )

    @property
    def _body_bytes(self) -> int:
        """The base in float32, where a method or a choice runs it."""
        needs = {need for params in self.recipe.all_methods for need in find_method(params.name).needs}
        if "forward passes" not in needs and not self.recipe.runs_base:
            return 0
        body = 4 * sum(math.prod(ref.shape) for ref in self.inputs.base_index.tensors.values())
        if self.recipe.heal is None:
            return body
        # Rows, their gradient, two moments and the moves themselves, at both ends; then a batch.
        tables = 2 * 4 * 6 * self.rows * self.inputs.layout.embedding.ref.shape[1]
        # With changes of the body its new weights are there, too, while held-out text is scored.
        bodies = 1 + (self.inputs.teacher is not None) + (self.recipe.heal.lora is not None)
        return bodies * body + tables + int(self.recipe.runtime.memory_gb * 1e9)

    @property
    def batch_size(self) -> int:
        """Missing tokens solved at a time: the recipe's, or as many as fit its memory and help."""
        runtime = self.recipe.runtime
        if runtime.batch_size is not None:
            return runtime.batch_size
        fitting = int(runtime.memory_gb * 1e9) // self.cost.bytes_per_token
        return max(min(fitting, _MOST_TOKENS[find_device(runtime.device).type]), _LEAST_TOKENS)

    @property
    def memory_bytes(self) -> int:
        """Estimated peak memory: program and tokenizers, old and new rows, then the larger of two stages.

        Donor rows are looked through for untrained ones in float32; later anchors, made rows and one batch of
        the solver are there together.
        """
        embedding = self.inputs.layout.embedding.ref
        rows, width = embedding.shape
        # Each table old and new, and the new one that is being adjusted twice.
        total = _PROGRAM_BYTES + embedding.nbytes // rows * self.rows
        for tensor in self.inputs.layout.tensors:
            total += tensor.ref.nbytes // tensor.rows * (tensor.rows + self.rows_of(tensor))
        made = len(self.wanted) * (4 * width + 12 * _SOURCES)
        cost = self.cost
        solving = made + min(self.batch_size, len(self.wanted)) * cost.bytes_per_token + cost.fixed_bytes
        looking = 0
        if self.inputs.donor_layout is not None:
            donor = self.inputs.donor_layout.embedding.ref
            total += donor.nbytes
            looking = 8 * math.prod(donor.shape)
            solving += len(self.anchors) * (6 * donor.shape[1] + 4 * width)
        return total + max(looking, solving)

    @property
    def operations(self) -> int:
        """Floating-point operations of the method over all tensors."""
        return self.cost.operations * sum(t.role is not TensorRole.BIAS for t in self.inputs.layout.tensors)


def make_plan(recipe: Recipe) -> Plan:
    """Find out everything a run will do. Reads headers, configs and tokenizers; no weights.

    Args:
        recipe: What to do.

    Returns:
        The plan.

    Raises:
        TokensurgeonError: Anything that would make the run fail or be refused.
    """
    find_device(recipe.runtime.device)
    if isinstance(recipe.method, Auto):
        rules = recipe.method.with_candidates(recipe.brings_donor and _brings_weights(recipe.donor.path))
        recipe = recipe.model_copy(update={"method": rules})
    inputs = read_inputs(recipe)
    edited = edit_tokenizer(inputs.target, recipe.edits) if recipe.edits else None
    if edited is not None:
        inputs = replace(inputs, target=edited.folder)
    target = edited.after if edited is not None else load_vocabulary(inputs.target)
    base = edited.before if edited is not None and recipe.edits_itself else load_vocabulary(inputs.base)
    donor_ids = _match_donor(inputs, target, edited)
    notices: list[Notice] = []
    raw = target
    if recipe.keep_digits:
        target = keep_digits(raw, base)
        notices.append(_note_digits(raw, target))
    base = _drop_rowless(base, inputs.layout.rows, notices)
    if edited is not None and recipe.edits_itself:
        match = match_edited(target, base, edited.origins, recipe.anchors.map)
    else:
        match = match_vocabularies(target, base, recipe.anchors.map, recipe.anchors.roles)
    served = load_side(inputs.served) if inputs.served else None
    rows = _choose_rows(recipe, inputs, target, edited, served)
    wanted = sorted({*match.missing, *(i for i, s in match.sources.items() if len(s.embedding) > 1)})
    known = _donor_knows(inputs, donor_ids)
    unserved = _unserved(wanted, match, known, notices)
    pieces = [_spell(index, match) for index in wanted]
    anchors, excluded = _plan_anchors(recipe, match, known)
    remap = _remap(inputs, match, target, rows, edited)
    config, changes = rewrite_config(inputs.base_config, remap)
    generation, more = rewrite_generation_config(
        read_config(inputs.base, "generation_config.json", optional=True), inputs.base_config, remap
    )
    if not remap.identity:
        config, added = complete_config(config, remap)
        changes += added
    if recipe.tie_policy == "keep-head" or inputs.untied:
        config, untied = untie_config(config)
        changes += untied
    plan = Plan(
        recipe=recipe,
        inputs=inputs,
        match=match,
        rows=rows,
        wanted=wanted,
        unserved=unserved,
        pieces=pieces,
        anchors=anchors,
        excluded=excluded,
        config=config,
        generation_config=generation,
        config_changes=[*changes, *more],
        copied_files={
            **{str(path): inputs.base / path for path in carried_files(inputs.base)},
            **{str(path): inputs.target / path for path in tokenizer_files(inputs.target)},
        },
        rewritten={} if target is raw else {"tokenizer.json": target.dump()},
        notices=notices,
        edited=edited,
        donor_ids=donor_ids,
    )
    if served is not None:
        refuse_unfit(judge_draft(served, make_side(target, config, rows)), served.path)
    _refuse_weak_overlap(plan)
    _note_config(plan)
    _note_untied(plan)
    return _choose_blindly(plan)


def _brings_weights(donor: str) -> bool:
    """Whether a directory holds weights; a hub id is taken to."""
    folder = Path(donor).expanduser()
    return not folder.is_dir() or any(folder.glob("*.safetensors"))


def _choose_blindly(plan: Plan) -> Plan:
    """Let ``auto`` take its first candidate where the base cannot be run and the recipe does not insist."""
    rules = plan.recipe.method
    if not isinstance(rules, Auto) or not plan.recipe.may_choose_blindly:
        return plan
    reason = _why_not_run(plan, rules) if plan.wanted else ""
    if plan.wanted and not reason:
        return plan
    blind = rules.model_copy(update={"calibrate": False})
    notices = [Notice("TS024", f"{reason}; {blind.tried[0].name} as it is")] if reason else []
    recipe = plan.recipe.model_copy(update={"method": blind})
    return replace(plan, recipe=recipe, notices=[*plan.notices, *notices])


def _why_not_run(plan: Plan, rules: Auto) -> str:
    """Why the base cannot be run on hidden anchors; empty if it can."""
    from tokensurgeon.evaluation.loading import check_architecture

    config = plan.inputs.base_config
    try:
        check_architecture("the base", config.get("architectures"), config.get("auto_map"))
    except InputError as error:
        return str(error).splitlines()[0]
    if config.get("auto_map") and not plan.recipe.trust_remote_code:
        return "the base needs code of its own"
    if plan.inputs.layout.find(TensorRole.PER_LAYER) is not None:
        return "the base has a per-layer table"
    if rules.share * len(plan.anchors) < 1:
        return f"{len(plan.anchors)} anchors are too few to hide any"
    available = available_memory()
    if available is not None and available < plan.memory_bytes:
        return f"the base takes {plan.memory_bytes / 1e9:.1f} GB of memory, {available / 1e9:.1f} are free"
    return ""


def _match_donor(inputs: Inputs, target: Vocabulary, edited: EditedTokenizer | None) -> dict[int, int] | None:
    """Where the donor has the rows of target tokens; None where both count alike."""
    if inputs.donor is None:
        return None
    same = inputs.donor.resolve() == (inputs.target if edited is None else edited.source).resolve()
    if edited is not None and same:
        return edited.origins
    if same:
        return None
    donor = load_vocabulary(inputs.donor)
    if edited is None:
        _refuse_other_tokenizer(target, donor)
        return None
    sources = match_vocabularies(target, donor).sources
    return {index: source.embedding[0] for index, source in sources.items()}


def _donor_knows(inputs: Inputs, donor_ids: dict[int, int] | None) -> Callable[[int], bool]:
    """Whether the donor has a row for a target token; without a donor the question is not asked."""
    if inputs.donor_layout is None:
        return lambda _: True
    rows = inputs.donor_layout.rows
    if donor_ids is None:
        return lambda index: index < rows
    return lambda index: donor_ids.get(index, rows) < rows


def _refuse_other_tokenizer(target: Vocabulary, donor: Vocabulary) -> None:
    for index, token in target.tokens.items():
        other = donor.tokens.get(index)
        if other is None or other.content != token.content:
            found = "nothing" if other is None else repr(other.content)
            raise InputError(
                f"{donor.path}: token {index} is {found}, in the target {token.content!r}",
                "a donor that was trained with the target tokenizer",
                "leave donor out to use the target's own directory, or choose a method without a donor",
            )


def _drop_rowless(base: Vocabulary, rows: int, notices: list[Notice]) -> Vocabulary:
    """Forget base tokens whose id lies past the base's embedding (Gemma 3 has such)."""
    lost = [token.text for token in base if token.id >= rows]
    if not lost:
        return base
    notices.append(Notice("TS016", some_tokens(sorted(lost))))
    kept = {index: token for index, token in base.tokens.items() if index < rows}
    return replace(base, tokens=kept, roles={r: i for r, i in base.roles.items() if i in kept})


def _choose_rows(
    recipe: Recipe, inputs: Inputs, target: Vocabulary, edited: EditedTokenizer | None, served: Side | None
) -> int:
    bound = target.bound
    policy = recipe.rows
    if served is not None:
        if served.size < bound:
            raise InputError(
                f"{served.path}: vocab_size {served.size}, and a token with id {bound - 1}",
                "a model with a row for every token (match_vocab_of)",
            )
        return served.size
    if isinstance(policy, RowMultiple):
        return -(-bound // policy.multiple) * policy.multiple
    if isinstance(policy, int):
        if policy < bound:
            raise RecipeError(f"rows: {policy}", f"at least {bound}, one more than the target's highest id")
        return policy
    if policy == "exact":
        return bound
    if edited is not None and edited.after.bound < edited.before.bound:
        return bound
    if recipe.edits_itself:
        return max(bound, inputs.layout.rows)
    return max(bound, _target_rows(inputs, inputs.target if edited is None else edited.source))


def _target_rows(inputs: Inputs, target: Path) -> int:
    """Rows of the target's own model: from its headers where they are read, else from its config."""
    if inputs.donor_layout is not None:
        return inputs.donor_layout.rows
    config = read_config(target, optional=True)
    sizes = [size for level in text_levels(config) if isinstance(size := level.get("vocab_size"), int)]
    return max(sizes, default=0)


def _unserved(
    wanted: list[int], match: VocabMatch, known: Callable[[int], bool], notices: list[Notice]
) -> list[int]:
    """Wanted ids that the donor has no row for, and those that the user spelt out in base tokens."""
    spelt = {index for index in wanted if index in match.sources}
    beyond = [index for index in wanted if not known(index)]
    if beyond:
        names = some_tokens([match.target.tokens[index].text for index in beyond])
        notices.append(Notice("TS003", f"without a row in the donor: {names}"))
    return sorted({*spelt, *beyond})


def _spell(index: int, match: VocabMatch) -> Pieces:
    source = match.sources.get(index)
    if source is not None:
        return Pieces(source.embedding, exact=True)
    return decompose(match.target.tokens[index].data, match.base)


def _plan_anchors(
    recipe: Recipe, match: VocabMatch, known: Callable[[int], bool]
) -> tuple[dict[int, int], dict[str, list[int]]]:
    """Anchors as far as tokens alone can tell; rows are looked at when they are read."""
    chooses = isinstance(recipe.method, Auto)
    if not chooses and not any(find_method(params.name).anchors for params in recipe.all_methods):
        return {}, {}
    rules = set(recipe.anchors.exclude)
    anchors: dict[int, int] = {}
    excluded: dict[str, list[int]] = {}
    for index, source in match.sources.items():
        if not known(index) or len(source.embedding) > 1:
            continue
        reason = _exclusion(index, source, match) if rules else None
        if reason is not None and reason.split(" ")[0] in rules:
            excluded.setdefault(reason, []).append(index)
        else:
            anchors[index] = source.embedding[0]
    return anchors, excluded


def _exclusion(index: int, source: Source, match: VocabMatch) -> str | None:
    token, twin = match.target.tokens[index], match.base.tokens[source.embedding[0]]
    for side, one, vocabulary in (("target", token, match.target), ("base", twin, match.base)):
        if is_reserved(one):
            return f"reserved ({side})"
        if one.kind is Kind.SPECIAL or source.origin is not Origin.MATCHED:
            return "special"
        if not is_reachable(one, vocabulary):
            return f"unreachable ({side})"
    return None


def _remap(
    inputs: Inputs, match: VocabMatch, target: Vocabulary, rows: int, edited: EditedTokenizer | None
) -> IdRemap:
    stops = [target.roles["eos"]] if "eos" in target.roles else []
    place = inputs.target if edited is None else edited.source
    own = read_config(place, "generation_config.json", optional=True).get("eos_token_id")
    named = [index for index in (own if isinstance(own, list) else [own]) if type(index) is int]
    if edited is not None:
        new_ids = {old: new for new, old in edited.origins.items()}
        named = [new_ids[index] for index in named if index in new_ids]
    stops += [index for index in named if index in target.tokens]
    declared = {
        size for level in text_levels(inputs.base_config) if isinstance(size := level.get("vocab_size"), int)
    }
    per_layer = inputs.layout.find(TensorRole.PER_LAYER)
    old_sizes = declared | {inputs.layout.rows}
    identity = match.is_identity and rows == inputs.layout.rows
    if per_layer is not None and not identity:
        old_sizes.add(per_layer.rows)
    return IdRemap(match.successors, target.roles, stops, rows, frozenset(old_sizes), identity)


def _refuse_weak_overlap(plan: Plan) -> None:
    rules = plan.recipe.anchors
    if not plan.is_anchored or not plan.wanted:
        return
    share = len(plan.match.sources) / len(plan.match.target)
    if len(plan.anchors) < rules.minimum:
        raise PolicyError(
            f"{len(plan.anchors)} anchors: tokens that both vocabularies share and both models have learnt",
            f"at least {rules.minimum} (anchors.minimum)",
            "choose a method without anchors, such as pieces, or lower anchors.minimum",
        )
    if share < rules.min_coverage:
        raise PolicyError(
            f"{share:.1%} of the target's tokens are in the base",
            f"at least {rules.min_coverage:.1%} (anchors.min_coverage)",
            "choose a method without anchors, such as pieces, or lower anchors.min_coverage",
        )


def _note_digits(raw: Vocabulary, target: Vocabulary) -> Notice:
    old, new = digit_scheme(raw), digit_scheme(target)
    if target is raw:
        return Notice("TS023", f"base and target both cut numbers into {new}")
    others = [path.name for path in tokenizer_files(raw.path) if path.name.endswith((".model", ".tiktoken"))]
    unpatched = f"; readers of {', '.join(others)} still cut them the old way" if others else ""
    return Notice("TS022", f"{new} as in the base, not {old}{unpatched}")


def _note_untied(plan: Plan) -> None:
    inputs = plan.inputs
    if inputs.untied:
        added = [tensor for tensor in inputs.layout.tensors if tensor.name in inputs.added]
        count = sum(math.prod(plan.new_shape(tensor)) for tensor in added)
        cost = f"{', '.join(inputs.added)}: {count:,} parameters and {plan.added_bytes:,} bytes more"
        stored = f"{inputs.layout.head.name} is stored already: no bytes more"
        plan.notices.append(Notice("TS020", cost if added else stored))
    elif plan.recipe.untie:
        plan.notices.append(Notice("TS021", f"the base has an lm_head of its own, {inputs.layout.head.name}"))


def _note_config(plan: Plan) -> None:
    if plan.lost_ids:
        plan.notices.append(Notice("TS006", ", ".join(plan.lost_ids)))
    declared = [
        level["vocab_size"] for level in text_levels(plan.inputs.base_config) if "vocab_size" in level
    ]
    if declared and plan.inputs.layout.rows not in declared:
        plan.notices.append(
            Notice("TS007", f"{declared[0]} in the config, {plan.inputs.layout.rows} rows stored")
        )
