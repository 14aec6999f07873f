"""Rows trained through the base's body: what trains, on which texts, and what came of it.

The body is frozen, but for low-rank changes of it where the recipe wants them; those end in its weights.

The teacher is the base with its own tokenizer, and so is whoever writes the texts where the recipe brings
none. Of a transplant that is healed as it is, the teacher is the base of that transplant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokensurgeon.adjust import load_target_tokenizer
from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.expectation import MADE, load_expectation
from tokensurgeon.checkpoint.index import TensorRef
from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.console import logger
from tokensurgeon.errors import InputError, RecipeError, ResourceError
from tokensurgeon.evaluation.boundaries import shared_ends, token_ends
from tokensurgeon.evaluation.windows import encode, find_bos
from tokensurgeon.lessons import healing_texts
from tokensurgeon.notices import Notice
from tokensurgeon.parallel import Processes
from tokensurgeon.plan import Plan
from tokensurgeon.recipe.schema import HealRules
from tokensurgeon.resources import FileResources
from tokensurgeon.rows import NewTensor, follow_twins, spread_root, train_rows
from tokensurgeon.solvers.dictionary import fast_dtype
from tokensurgeon.solvers.omp import is_out_of_memory
from tokensurgeon.training.corpus import check_corpus, read_pieces
from tokensurgeon.training.heal import Healed, Healer, Settings, Table, fingerprint
from tokensurgeon.training.lora import Adapters, inject_adapters
from tokensurgeon.training.objectives import (
    Body,
    ChunkLikelihood,
    Example,
    NextToken,
    Objective,
    TokenDistillation,
)
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.decompose import decompose
from tokensurgeon.vocab.vocabulary import load_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Logits and their gradient.
_BYTES_A_LOGIT = 8
_LEAST_PART, _MOST_PART = 64, 2048
# Of the occurrences of a token, those of others that the teacher takes for it.
_RARE = 0.02
# Of its layers, those after which a body has read a token and does not write yet what follows: states after
# 10 of SmolLM2's 30 taught rows more than those after 5 or 30.
_WHERE_READ = 1 / 3
# Held-out text is scored ten times in a run.
_MOST_HELD_OUT = 4


@dataclass(frozen=True)
class Healing:
    """Vocabulary tensors after training.

    Attributes:
        tensors: All of them, in their order.
        told: How training went; None where there was nothing to train, or to train on.
        rows: Rows that trained, over all tensors.
        texts: Texts to learn from.
        held_out: Texts to judge by.
        tokens: Tokens of the output in the texts to learn from.
        teacher_bits: Bits per byte of the texts to judge by, read by the teacher with its own tokenizer.
        body: How body tensors change, by name: from what the base holds to what the output holds.
        layers: Of the body, that trained.
        parameters: That trained in them.
    """

    tensors: list[NewTensor]
    told: Healed | None = None
    rows: int = 0
    texts: int = 0
    held_out: int = 0
    tokens: int = 0
    teacher_bits: float = 0.0
    body: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    layers: int = 0
    parameters: int = 0


def check_healing(plan: Plan) -> None:
    """Refuse what would fail after rows are made.

    Args:
        plan: A plan whose recipe may heal.

    Raises:
        InputError: The corpus cannot be read, or an earlier transplant does not say what was made in it.
        RecipeError: A transplant is to be healed and changed at once.
    """
    rules = plan.recipe.heal
    if rules is None:
        return
    check_corpus([Path(path).expanduser() for path in rules.corpus])
    if any(tensor.role is TensorRole.PER_LAYER for tensor in plan.inputs.layout.tensors):
        raise InputError("heal, for a base with a per-layer table", "a base that can be run with other rows")
    if rules.lora is not None and find_spec("peft") is None:
        raise RecipeError(
            "heal.lora needs peft, which is not installed", next_step="pip install 'tokensurgeon[lora]'"
        )
    if plan.inputs.teacher is None:
        return
    if not plan.is_identity or plan.recipe.untie:
        raise RecipeError(
            "heal.teacher, and another tokenizer or table for the base",
            "the base's own tokenizer as the target: an earlier transplant is healed as it is",
        )
    if load_expectation(plan.inputs.base) is None:
        raise InputError(
            f"{plan.inputs.base}: no provenance.json, which tells the rows that were made",
            "an output of tokensurgeon",
            "name the model that was transplanted, or transplant it first",
        )


def heal_rows(
    plan: Plan,
    tensors: list[NewTensor],
    resources: FileResources,
    batches: Batches,
    processes: Processes,
) -> Healing:
    """Train rows as the recipe says.

    Args:
        plan: What to do.
        tensors: All vocabulary tensors, with their rows made.
        resources: Where the base's body is.
        batches: Where the state is kept.
        processes: Who takes part.

    Returns:
        The tensors, those that moved with new contents; all as they were where training gained nothing.

    Raises:
        InputError: The body cannot be run, or reads no text.
        RecipeError: It has no such layer.
        ResourceError: There is not enough memory, or no room for the state.
    """
    rules = plan.recipe.heal
    if rules is None:
        return Healing(tensors)
    free = {new.tensor.name: _free_ids(plan, new) for new in tensors if _may_train(plan, new)}
    free = {name: ids for name, ids in free.items() if ids}
    if not free and rules.lora is None:
        return _unchanged(plan, tensors, "no row was made")
    student = _body(resources.reload_body(), rules)
    teachers, teacher = _find_teacher(plan, resources, student)
    trained = sorted({index for ids in free.values() for index in ids})
    texts = _Texts(plan, teachers, trained, min(map(_limit, (student, teacher))))
    # What a model writes need not be the same on every device.
    read = processes.exchange(texts.read() if processes.is_main else [])[0]
    examples, held_out = _divide(read, rules, plan.recipe.runtime.seed)
    if not examples or not held_out:
        return _unchanged(plan, tensors, "too few texts, or none with a new token")
    if rules.checkpointing:
        student.checkpoint()
    tables, fixed = _tables(plan, tensors, free, student)
    layers, adapters = _adapt(plan, student)
    settings = _settings(plan, max(len(new.data) for new in tensors), _width(teacher))
    folder = None
    if plan.recipe.runtime.work_dir is not None:
        facts = (rules, settings, resources.digest, teachers.digest, torch.__version__)
        name = fingerprint(list(tables.values()), [*examples, *held_out], facts, adapters)
        folder = batches.folder(f"heal-{name}")
    count = sum(map(len, free.values()))
    logger.info(
        "Healing %d rows and %d layers by %s on %d texts", count, len(layers), rules.objective, len(examples)
    )
    objective = _objective(plan, teacher, examples)
    healer = Healer(
        student, list(tables.values()), fixed, objective, settings, processes, folder, adapters=adapters
    )
    try:
        told = healer.train(examples, held_out)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"heal: {error}",
            "enough memory for one text, its gradient and all rows",
            "lower runtime.memory_gb, or set heal.checkpointing: true",
        ) from error
    if told.ended == "diverged":
        plan.notices.append(Notice("TS025", f"after {told.steps} steps"))
    if told.best_step:
        healed = follow_twins([_healed(plan, new, tables.get(new.tensor.name), told) for new in tensors])
    else:
        healed = _unchanged(plan, tensors, _gain(told)).tensors
    return Healing(
        tensors=healed,
        told=told,
        body=_body_changes(layers, adapters) if told.best_step else {},
        layers=len(layers),
        parameters=sum(leaf.numel() for leaf in adapters.leaves) if adapters is not None else 0,
        rows=count,
        texts=len(examples),
        held_out=len(held_out),
        tokens=sum(len(example.ids) for example in examples),
        teacher_bits=_score(teacher, held_out),
    )


@torch.inference_mode()
def _score(teacher: Body, held_out: list[Example]) -> float:
    """Bits per byte of texts as the teacher reads them."""
    own = [replace(example, ids=example.teacher_ids) for example in held_out]
    nats = math.fsum(float(NextToken().loss(teacher, {}, [example])) for example in own)
    return nats / math.log(2) / sum(example.bytes for example in held_out)


def _unchanged(plan: Plan, tensors: list[NewTensor], why: str) -> Healing:
    plan.notices.append(Notice("TS026", why))
    note = f"heal left rows as they were: {why}"
    return Healing(
        [replace(new, note=_join(new.note, note)) if _may_train(plan, new) else new for new in tensors]
    )


def _join(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _gain(told: Healed) -> str:
    """What held-out text says."""
    best = min(bits for _, bits in told.held_out[1:]) if told.held_out[1:] else told.before
    return f"held-out text takes {told.before:.3f} bits per byte before, {best:.3f} after"


def _may_train(plan: Plan, new: NewTensor) -> bool:
    """Whether a tensor is one of the two ends, and no copy."""
    ends = (plan.inputs.layout.embedding.name, plan.inputs.layout.head.name)
    return new.equal_to is None and new.tensor.name in ends


def _free_ids(plan: Plan, new: NewTensor) -> list[int]:
    """Target ids of the rows that train, ascending."""
    rules = plan.recipe.heal
    assert rules is not None
    return sorted(plan.match.target.tokens if rules.train == "vocabulary" else _made_ids(plan, new))


def _reach(plan: Plan, new: NewTensor, ids: list[int], device: torch.device) -> Tensor | None:
    """``(F,)`` how far a row goes by the same move: one that was copied is the base's own, and hardly off."""
    rules = plan.recipe.heal
    assert rules is not None
    if rules.train == "new":
        return None
    made = _made_ids(plan, new)
    return torch.tensor([1.0 if index in made else rules.copied for index in ids], device=device)


def _made_ids(plan: Plan, new: NewTensor) -> set[int]:
    """Target ids of the rows that methods made, here or in the transplant that is healed."""
    made = {index for index, method in new.made_by.items() if method != "map"}
    if plan.inputs.teacher is not None:
        earlier = load_expectation(plan.inputs.base)
        assert earlier is not None, "refused before"
        known = earlier.vocab[new.tensor.name]
        made |= {index for index, origin in enumerate(known.source) if origin == MADE} - set(known.mapped)
    return made


def _find_teacher(plan: Plan, resources: FileResources, student: Body) -> tuple[FileResources, Body]:
    """What the teacher's tokenizer and texts come from, and its body."""
    rules, place = plan.recipe.heal, plan.inputs.teacher
    assert rules is not None
    if place is None:
        return resources, student
    theirs = resources.of_model(place)
    return theirs, _body(theirs.load_body(), rules)


def _body(model: PreTrainedModel, rules: HealRules) -> Body:
    """A body that costs as little as it can: what it says is averaged over many tokens."""
    layers = model.config.get_text_config().num_hidden_layers
    layer = max(round(_WHERE_READ * layers), 1) if rules.layer is None else rules.layer
    if not -layers - 1 <= layer <= layers:
        raise RecipeError(f"heal.layer: {layer}", f"0 to {layers}, or counted from the end, -1 the last")
    return Body(model.to(fast_dtype(model.device)), layer)


def _limit(body: Body) -> int:
    """Tokens that a model can read at once."""
    limit: int | None = getattr(body.model.config.get_text_config(), "max_position_embeddings", None)
    return limit or 1 << 30


def _objective(plan: Plan, teacher: Body, examples: list[Example]) -> Objective:
    rules = plan.recipe.heal
    assert rules is not None
    if rules.objective == "ntp":
        return NextToken()
    if rules.objective == "chunk_likelihood":
        firsts = _first_pieces(plan, _width(teacher), examples) if rules.expected else None
        return ChunkLikelihood(teacher, firsts, rules.expected, rules.alpha)
    return TokenDistillation(teacher, rules.alpha)


def _adapt(plan: Plan, student: Body) -> tuple[dict[str, str], Adapters | None]:
    """The adapters of a recipe, and the body tensor that each layer's weight is, by the layer's name."""
    rules = plan.recipe.heal
    assert rules is not None
    lora = rules.lora
    if lora is None:
        return {}, None
    layers = inject_adapters(student.model, lora.rank, lora.alpha, lora.targets, plan.recipe.runtime.seed)
    body = {
        ref.name: ref
        for ref in plan.inputs.base_index.tensors.values()
        if ref.name not in plan.inputs.layout.names
    }
    refs = {name: _stored_as(name, layer.weight, body) for name, layer in layers.items()}
    stored = {name: map_tensor(ref) for name, ref in refs.items()}
    return {name: ref.name for name, ref in refs.items()}, Adapters(layers, stored, lora.learning_rate)


def _body_changes(layers: dict[str, str], adapters: Adapters | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """What becomes of body tensors, by name."""
    if adapters is None:
        return {}
    return {tensor: partial(adapters.merge, layer) for layer, tensor in layers.items()}


def _stored_as(layer: str, weight: Tensor, body: Mapping[str, TensorRef]) -> TensorRef:
    """The body tensor that is a layer's weight: of equal contents, and name but for what stands before it.

    Args:
        layer: Name of the layer in the model.
        weight: Its weight there.
        body: Body tensors by name.

    Returns:
        Where it is.

    Raises:
        RecipeError: There is none: the loader puts the weight together from several, or takes it apart.
    """
    name = f".{layer}.weight"
    for ref in body.values():
        if not (f".{ref.name}".endswith(name) or name.endswith(f".{ref.name}")):
            continue
        if torch.equal(map_tensor(ref).to(weight.dtype), weight.cpu()):
            return ref
    raise RecipeError(
        f"heal.lora: {layer} is no tensor of the checkpoint",
        "layers whose weights are stored as they are used",
        "name others in heal.lora.targets",
    )


def _width(teacher: Body) -> int:
    """Rows of what the teacher writes with."""
    return len(teacher.model.get_output_embeddings().weight)


def _first_pieces(plan: Plan, rows: int, examples: list[Example]) -> Tensor:
    """``(rows,)`` int64 target token that the text of each of the teacher's tokens begins with, or -1.

    A target token that is no first piece of any has its mass where the teacher's first piece of it has:
    where it is not rare beside that one, nobody can tell them apart, and both are left out. So is white
    space, which is cut by what follows it.
    """
    place, target = plan.inputs.teacher, plan.match.target
    base = plan.match.base if place is None else load_vocabulary(place)
    firsts = torch.full((rows,), -1)
    for token in base:
        if token.kind is not Kind.SPECIAL and token.data.strip() and token.id < rows:
            pieces = decompose(token.data, target)
            if pieces.exact:
                firsts[token.id] = pieces.ids[0]
    counts = Counter(index for example in examples for index in example.ids.tolist())
    reached, hidden = set(firsts.tolist()), Counter[int]()
    for token in target:
        if token.id in counts and token.id not in reached and token.kind is not Kind.SPECIAL:
            pieces = decompose(token.data, base)
            hidden.update({int(firsts[piece]): counts[token.id] for piece in pieces.ids[:1]})
    unclear = [index for index, count in hidden.items() if count > _RARE * counts[index]]
    unclear += [token.id for token in target if not token.data.strip()]
    firsts[torch.isin(firsts, torch.tensor(unclear))] = -1
    return firsts


def _settings(plan: Plan, *widths: int) -> Settings:
    rules, runtime = plan.recipe.heal, plan.recipe.runtime
    assert rules is not None
    fitting = int(runtime.memory_gb * 1e9 / (_BYTES_A_LOGIT * max(widths)))
    return Settings(
        steps=rules.steps,
        minutes=rules.minutes,
        batch_tokens=rules.batch_tokens,
        part_tokens=max(_LEAST_PART, min(_MOST_PART, fitting)),
        learning_rate=rules.learning_rate,
        patience=rules.patience,
        seed=runtime.seed,
    )


class _Texts:
    """Texts as student and teacher read them.

    Args:
        plan: A transplant that is to be healed.
        teachers: Where the teacher is.
        trained: Target ids whose rows train.
        longest: Tokens that both models can read at once.
    """

    def __init__(self, plan: Plan, teachers: FileResources, trained: list[int], longest: int) -> None:
        self._plan = plan
        self._teachers = teachers
        self._trained = trained
        self._student_tokenizer = load_target_tokenizer(plan)
        self._longest = longest

    def read(self) -> list[Example]:
        """As many as all steps can read; where tokens are learnt from states, of those that have one.

        Both tokenizers cut every text anyway, and only they can tell whether a token is in it: its bytes may
        lie there in other tokens. So nothing is searched for by bytes before.
        """
        rules = self._plan.recipe.heal
        assert rules is not None
        wanted = rules.steps * rules.batch_tokens / (1 - rules.held_out)
        examples: list[Example] = []
        skipped, tokens = 0, 0
        for number, text in enumerate(self._find()):
            example = self._example(f"text {number}", text)
            if len(example.ids) < 2 or max(len(example.ids), len(example.teacher_ids)) > self._longest:
                skipped += 1
                continue
            if rules.objective == "token_distillation" and not len(example.places):
                continue
            examples.append(example)
            tokens += len(example.ids)
            if tokens >= wanted:
                break
        if skipped:
            logger.warning("heal: %d texts have too few tokens, or too many for the model", skipped)
        return examples

    def _find(self) -> Iterator[str]:
        rules = self._plan.recipe.heal
        assert rules is not None
        if rules.corpus:
            return read_pieces([Path(path).expanduser() for path in rules.corpus])
        place = self._plan.inputs.teacher
        base = self._plan.match.base if place is None else load_vocabulary(place)
        return iter(healing_texts(self._plan, self._teachers, base.tokens, rules.texts).values())

    def _example(self, name: str, text: str) -> Example:
        ids, ends, opened = _read(self._student_tokenizer, name, text)
        other_ids, other_ends, other_opened = _read(self._teachers.load_base_tokenizer(), name, text)
        shared = shared_ends(ends, other_ends)
        chunks, other_chunks = (np.searchsorted(shared, part) for part in (ends, other_ends))
        # Without a token before it, nobody predicts the first.
        unpredicted = {
            int(part[0]) for part, known in ((chunks, opened), (other_chunks, other_opened)) if not known
        }
        chunks, other_chunks = (_renumber(part, unpredicted) for part in (chunks, other_chunks))
        # The last of several tokens that end there.
        places = np.searchsorted(ends, shared, side="right") - 1
        other_places = np.searchsorted(other_ends, shared, side="right") - 1
        first = np.flatnonzero(np.isin(ids[opened:], self._trained))
        later = places >= (first[0] if len(first) else len(ends))
        return Example(
            ids=torch.tensor(ids),
            teacher_ids=torch.tensor(other_ids),
            chunks=torch.from_numpy(chunks if opened else chunks[1:]),
            teacher_chunks=torch.from_numpy(other_chunks if other_opened else other_chunks[1:]),
            places=torch.from_numpy(places[later]) + opened,
            teacher_places=torch.from_numpy(other_places[later]) + other_opened,
            bytes=int(ends[-1]) - (0 if opened else int(ends[0])),
        )


def _read(
    tokenizer: PreTrainedTokenizerFast, name: str, text: str
) -> tuple[list[int], NDArray[np.int64], bool]:
    """Tokens with what opens a text, where each of the others ends, and whether anything opens it."""
    encoded = encode(tokenizer, name, text)
    start = find_bos(tokenizer)
    ends = token_ends(tokenizer, encoded, text.encode())
    return ([] if start is None else [start]) + encoded.ids, ends, start is not None


def _renumber(chunks: NDArray[np.int64], unpredicted: set[int]) -> NDArray[np.int64]:
    """Chunks counted from 0 without those that are not predicted as a whole, which become -1."""
    first = 1 + max(unpredicted, default=-1)
    return np.where(chunks < first, -1, chunks - first)


def _divide(examples: list[Example], rules: HealRules, seed: int) -> tuple[list[Example], list[Example]]:
    """Texts to learn from, and texts to judge by."""
    if len(examples) < 2:
        return examples, []
    count = min(max(round(rules.held_out * len(examples)), 1), len(examples) - 1)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    sizes = np.cumsum([len(examples[place].ids) for place in order[:count]])
    count = max(int(np.searchsorted(sizes, _MOST_HELD_OUT * rules.batch_tokens, side="right")), 1)
    return [examples[place] for place in sorted(order[count:])], [examples[place] for place in order[:count]]


def _tables(
    plan: Plan, tensors: list[NewTensor], free: dict[str, list[int]], student: Body
) -> tuple[dict[str, Table], dict[str, Tensor]]:
    """What trains, by tensor, and the parameters that the body needs besides to use the new tokens."""
    rules, layout = plan.recipe.heal, plan.inputs.layout
    assert rules is not None
    model, device = student.model, student.device
    writes = model.get_output_embeddings()
    reading, writing = (f"{_name_of(model, end)}.weight" for end in (model.get_input_embeddings(), writes))
    by_name = {new.tensor.name: new for new in tensors}
    head = by_name[layout.head.name]
    places = {layout.embedding.name: (reading,)}
    owner = head.equal_to or head.tensor.name
    places[owner] = (*places.get(owner, ()), writing)
    tables: dict[str, Table] = {}
    fixed: dict[str, Tensor] = {}
    for name, names in places.items():
        new = by_name[name]
        rows = new.data.to(device, torch.float32)
        if name in free:
            ids = torch.tensor(free[name], device=device)
            root = _root(plan, new, rules.prior, device)
            reach = _reach(plan, new, free[name], device)
            tables[name] = Table(names, rows, ids, root, new.data.dtype, reach)
        else:
            fixed |= dict.fromkeys(names, rows)
    for new in tensors:
        if new.tensor.role is TensorRole.BIAS and getattr(writes, "bias", None) is not None:
            fixed[f"{_name_of(model, writes)}.bias"] = new.data.to(device, torch.float32).flatten()
    return tables, fixed


def _name_of(model: Any, module: Any) -> str:  # noqa: ANN401 - modules of transformers
    return next(str(name) for name, part in model.named_modules() if part is module)


def _root(plan: Plan, new: NewTensor, prior: float, device: torch.device) -> Tensor | float:
    """What moves are multiplied with: the spread of the base's rows, in each direction or on average."""
    base = map_tensor(new.tensor.ref)
    root = spread_root(base, torch.tensor([i for i in plan.match.base.tokens if i < len(base)]))
    if prior:
        return (prior * root).to(device, torch.float32)
    return float(root.square().sum().div(len(root)).sqrt())


def _healed(plan: Plan, new: NewTensor, table: Table | None, told: Healed) -> NewTensor:
    """A tensor with its trained rows, and what has to be said of them."""
    if table is None:
        return new
    rules = plan.recipe.heal
    assert rules is not None
    healed = train_rows(new, table.free.tolist(), table.rows().detach())
    moved = int((healed.data != new.data).any(dim=1).sum())
    note = f"heal ({rules.objective}) moved {moved:,} rows: {_gain(told)}"
    return replace(healed, note=_join(new.note, note))
