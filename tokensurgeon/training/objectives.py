"""What a transplant is trained for: the next token, or what its base makes of the same text.

*Chunks* are the stretches of text between two neighbouring places where a token ends in both tokenizations.

- B. Minixhofer et al., "Cross-Tokenizer Distillation via Approximate Likelihood Matching", arXiv:2503.20083:
  the student shall give every chunk the probability that the teacher gives it.
- K. Dobler et al., "Token Distillation: Attention-Aware Input Embeddings for New Tokens", arXiv:2505.20133:
  after a new token the student's hidden states shall be those of the teacher after its pieces.

A teacher reads each text once. Which texts it reads beside each other is settled before the first is asked
for: a run that goes on where a killed one was hears the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

_TEMPERATURE = 100.0
# Logits that are there in float32 at once: few enough for a processor's cache, enough to keep a GPU at work.
_CACHED_LOGITS, _LOGITS = 1 << 20, 1 << 26
# First pieces of what a teacher expects that are kept.
_LIKELY = 32
# Probability of all others, at least.
_LEAST = 1e-6
# Nats that a state costs of which nothing is left: about what guessing costs among some ten thousand tokens.
_ALL_LOST = 10.0
# Log-probabilities stay this far below 0 after division by the temperature.
_MARGIN = 1e-6

# What a teacher says of a text.
Heard = TypeVar("Heard")


@dataclass(frozen=True, eq=False)
class Example:
    """One text as student and teacher read it.

    Attributes:
        ids: ``(n,)`` int64 tokens of the student, first what opens a text, if anything does.
        teacher_ids: ``(m,)`` int64 tokens of the teacher.
        chunks: ``(n - 1,)`` int64 chunk that each predicted token lies in; -1 for a chunk that is not
            predicted as a whole.
        teacher_chunks: ``(m - 1,)`` int64, the same of the teacher's tokens.
        places: ``(a,)`` int64 tokens of the student after which its states are compared.
        teacher_places: ``(a,)`` int64 tokens of the teacher that end where those do.
        bytes: Length of the text that the predicted tokens of the student stand for.
    """

    ids: Tensor
    teacher_ids: Tensor
    chunks: Tensor
    teacher_chunks: Tensor
    places: Tensor
    teacher_places: Tensor
    bytes: int


class Body:
    """A causal language model that reads texts with tables it is given, in the dtype of its own weights.

    Args:
        model: Of transformers, in one dtype; frozen here, and put in evaluation mode.
        layer: Whose hidden states it tells; -1 for the last.
    """

    def __init__(self, model: Any, layer: int = -1) -> None:  # noqa: ANN401 - a model of transformers
        self.model = model.eval().requires_grad_(False)
        # Its id need not be in another vocabulary.
        model.get_input_embeddings().padding_idx = None
        self._layer = layer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.model.device
        return device

    def checkpoint(self) -> None:
        """Compute the activations of a layer again when they are needed, instead of keeping them."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        # Transformers does that in training mode only, with dropout.
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.forward = partial(checkpoint, module.forward, use_reentrant=False)

    def logits(self, texts: Sequence[Tensor], tables: Mapping[str, Tensor]) -> Tensor:
        """Read texts.

        Args:
            texts: ``(n,)`` int64 tokens of each.
            tables: Parameters to use instead of the model's own, by name.

        Returns:
            ``(texts, longest - 1, V)`` logits of every token but the first, in the dtype of the weights.
        """
        logits: Tensor = self._read([ids[:-1] for ids in texts], tables).logits
        return logits

    def states(
        self, texts: Sequence[Tensor], tables: Mapping[str, Tensor], logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Read texts, and look inside.

        Args:
            texts: ``(n,)`` int64 tokens of each.
            tables: Parameters to use instead of the model's own, by name.
            logits: Whether they are needed, too.

        Returns:
            ``(texts, longest, d)`` hidden states, and logits of every token but the first or None.
        """
        with nullcontext() if logits else _without_logits(self.model):
            told = self._read(texts, tables, output_hidden_states=True)
        return told.hidden_states[self._layer], told.logits[:, :-1] if logits else None

    def _read(self, texts: Sequence[Tensor], tables: Mapping[str, Tensor], **options: Any) -> Any:  # noqa: ANN401
        # On the right, where no real position of a causal model can see it.
        ids = pad_sequence(list(texts), batch_first=True).to(self.device)
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True).to(self.device)
        given = {"input_ids": ids, "attention_mask": mask, "use_cache": False, **options}
        # What trains is float32; tied ends are cast, and led back, once.
        cast = {id(part): part.to(self.model.dtype) for part in tables.values()}
        named = {name: cast[id(part)] for name, part in tables.items()}
        return functional_call(self.model, named, (), given, tie_weights=False)


@contextmanager
def _without_logits(model: Any) -> Iterator[None]:  # noqa: ANN401 - a model of transformers
    """Give an lm_head nothing to multiply, until the block ends.

    The last positions of several texts in bfloat16, the least that models can be asked for, take a CPU longer
    than all of them.
    """
    head = model.get_output_embeddings()
    watch = head.register_forward_pre_hook(lambda _, given: (given[0][:, :0], *given[1:]))
    try:
        yield
    finally:
        watch.remove()


class Objective(Protocol):
    """A loss that is a sum over what a text holds."""

    def group(self, parts: Sequence[Sequence[Example]]) -> None:
        """Settle which texts a teacher reads together.

        Args:
            parts: Groups of texts, best of like length; a text in none of them is read alone.
        """

    def items(self, example: Example) -> int:
        """Number of summands that a text has."""

    def loss(self, student: Body, tables: Mapping[str, Tensor], examples: Sequence[Example]) -> Tensor:
        """The loss of some texts, summed.

        Args:
            student: Reads with the tables.
            tables: Its vocabulary tensors by name.
            examples: At least one.

        Returns:
            A float32 number.
        """


class NextToken:
    """Surprise at the next token, in nats."""

    def group(self, parts: Sequence[Sequence[Example]]) -> None:
        """Nothing to settle: there is no teacher."""

    def items(self, example: Example) -> int:
        """Number of summands that a text has."""
        return len(example.ids) - 1

    def loss(self, student: Body, tables: Mapping[str, Tensor], examples: Sequence[Example]) -> Tensor:
        """The loss of some texts, summed."""
        texts = [example.ids for example in examples]
        return token_losses(student.logits(texts, tables), texts).sum()


class _Taught(ABC, Generic[Heard]):
    """An objective with a teacher, who reads every text once.

    Args:
        teacher: Reads with its own tables.
    """

    def __init__(self, teacher: Body) -> None:
        self._teacher = teacher
        self._known: dict[Example, Heard] = {}
        self._beside: dict[Example, Sequence[Example]] = {}

    def group(self, parts: Sequence[Sequence[Example]]) -> None:
        """Settle which texts the teacher reads together."""
        self._beside = {example: part for part in parts for example in part}

    def _ask(self, example: Example) -> Heard:
        """What the teacher says of a text; what it says of those beside it is kept."""
        if example not in self._known:
            group = self._beside.get(example, [example])
            with torch.no_grad():
                self._known |= zip(group, self._listen(group), strict=True)
        return self._known[example]

    @abstractmethod
    def _listen(self, examples: Sequence[Example]) -> list[Heard]:
        """Let the teacher read texts together, and tell what it says of each."""


class ChunkLikelihood(_Taught[tuple[Tensor, Tensor, Tensor]]):
    """How far the student's probability of a chunk is from the teacher's, and what else both expect there.

    Before every chunk both have read the same. Whatever token the teacher expects, its first piece is what
    the student should expect: the distance of those two distributions (Kullback-Leibler, in nats) over the
    pieces that the teacher thinks likeliest, with all others as one.

    Args:
        teacher: Reads with its own tables.
        firsts: ``(W,)`` int64, for each of the teacher's tokens the student's that its text begins with; -1
            for one that has no place among the student's.
        weight: Of what is expected, beside the probability of what comes.
        alpha: Weight of the next-token loss, which knows what comes where the teacher only expects.
    """

    def __init__(
        self, teacher: Body, firsts: Tensor | None = None, weight: float = 0.0, alpha: float = 0.0
    ) -> None:
        super().__init__(teacher)
        self._alpha = alpha
        self._firsts = None if firsts is None else firsts.to(teacher.device)
        self._weight = weight if firsts is not None else 0.0

    def items(self, example: Example) -> int:
        """Number of summands that a text has."""
        return int(example.chunks.max()) + 1 if len(example.chunks) else 0

    def loss(self, student: Body, tables: Mapping[str, Tensor], examples: Sequence[Example]) -> Tensor:
        """The loss of some texts, summed."""
        texts = [example.ids for example in examples]
        told = [self._ask(example) for example in examples]
        logits = student.logits(texts, tables)
        wanted = _following(texts, logits.device)
        # What comes, and then what the teacher expects there.
        asked = wanted.clamp(min=0)[..., None].repeat(1, 1, 1 + told[0][1].shape[1])
        for row, (example, (_, likely, _)) in enumerate(zip(examples, told, strict=True)):
            asked[row, _starts(example.chunks), 1:] = likely.to(asked.device)
        found = log_shares(logits, asked)
        parts = []
        for row, (example, (theirs, _, shares)) in enumerate(zip(examples, told, strict=True)):
            ours = _by_chunk(found[row, : len(example.chunks), 0], example.chunks, self.items(example))
            parts.append(chunk_losses(ours, theirs).sum())
            if self._alpha:
                parts.append(-self._alpha * found[row, : len(example.chunks), 0].sum())
            if self._weight:
                expected = found[row, _starts(example.chunks), 1:]
                parts.append(self._weight * divergence(shares.to(expected.device), expected))
        return torch.stack(parts).sum()

    def _listen(self, examples: Sequence[Example]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """``(c,)`` log-probabilities of chunks; before each of them ``(c, k)`` likely pieces, and shares."""
        texts = [example.teacher_ids for example in examples]
        logits = self._teacher.logits(texts, {})
        losses = token_losses(logits, texts)
        heard = []
        for row, example in enumerate(examples):
            chunks = example.teacher_chunks
            theirs = _by_chunk(-losses[row, : len(chunks)], chunks, self.items(example))
            likely, shares = self._expect(logits[row, _starts(chunks)])
            heard.append((theirs, likely, shares))
        return heard

    def _expect(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """``(c, k)`` likeliest first pieces, and their probabilities."""
        if not self._weight:
            none = logits.new_empty(len(logits), 0)
            return none.long(), none.float()
        assert self._firsts is not None
        # The last column is for what has no place.
        count = int(self._firsts.max()) + 2
        column = torch.where(self._firsts < 0, count - 1, self._firsts)
        kept = []
        for part in logits.split(_at_once(logits)):
            shares = part.float().softmax(dim=1)
            sums = shares.new_zeros(len(part), count).scatter_add_(1, column.expand_as(shares), shares)
            best = sums[:, :-1].topk(min(_LIKELY, count - 1))
            kept.append((best.indices, best.values))
        return torch.cat([ids for ids, _ in kept]), torch.cat([values for _, values in kept])


class TokenDistillation(_Taught[Tensor]):
    """Squared distance of the student's states to the teacher's, in nats.

    The states compared are those of a text from its first trained token on, wherever both have read the same.

    Args:
        teacher: Reads with its own tables.
        alpha: Weight of the next-token loss.
    """

    def __init__(self, teacher: Body, alpha: float) -> None:
        super().__init__(teacher)
        self._alpha = alpha

    def items(self, example: Example) -> int:
        """Number of summands that a text has."""
        return len(example.places)

    def loss(self, student: Body, tables: Mapping[str, Tensor], examples: Sequence[Example]) -> Tensor:
        """The loss of some texts, summed."""
        texts = [example.ids for example in examples]
        states, logits = student.states(texts, tables, logits=self._alpha > 0)
        parts = []
        for row, example in enumerate(examples):
            wanted = self._ask(example).to(states.device, torch.float32)
            missed = states[row, example.places.to(states.device)].float() - wanted
            parts.append(missed.square().sum() / wanted.square().mean(dim=0).sum().clamp(min=1e-12))
        distance = _ALL_LOST * torch.stack(parts).sum()
        return distance if logits is None else distance + self._alpha * token_losses(logits, texts).sum()

    def _listen(self, examples: Sequence[Example]) -> list[Tensor]:
        """``(a, d)`` states of each, kept in main memory as they come."""
        states = self._teacher.states([example.teacher_ids for example in examples], {}, logits=False)[0]
        return [
            states[row, example.teacher_places.to(states.device)].cpu()
            for row, example in enumerate(examples)
        ]


def token_losses(logits: Tensor, texts: Sequence[Tensor]) -> Tensor:
    """Surprise at each token.

    Args:
        logits: ``(texts, longest - 1, V)``.
        texts: ``(n,)`` int64 tokens of each; the first is not predicted.

    Returns:
        ``(texts, longest - 1)`` float32 nats, 0 where a text has ended.
    """
    wanted = _following(texts, logits.device)
    found = log_shares(logits, wanted.clamp(min=0)[..., None])[..., 0]
    return torch.where(wanted < 0, 0.0, -found)


def log_shares(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of some tokens at each place.

    Args:
        logits: ``(..., V)`` in any dtype.
        ids: ``(..., k)`` int64.

    Returns:
        ``(..., k)`` float32.
    """
    found: Tensor = _LogShares.apply(logits.flatten(0, -2), ids.flatten(0, -2))  # type: ignore[no-untyped-call]
    return found.view(ids.shape)


def divergence(shares: Tensor, ours: Tensor) -> Tensor:
    """Kullback-Leibler divergence over some outcomes, with all others as one more; summed over places.

    Args:
        shares: ``(c, k)`` probabilities that are right.
        ours: ``(c, k)`` log-probabilities that are judged.

    Returns:
        Nats, a number.
    """
    rest, other = ((1 - part.sum(dim=1)).clamp(min=_LEAST) for part in (shares, ours.exp()))
    known = shares * (shares.clamp(min=1e-12).log() - ours)
    return known.sum() + (rest * (rest.log() - other.log())).sum()


def _following(texts: Sequence[Tensor], device: torch.device) -> Tensor:
    """``(texts, longest - 1)`` tokens that are predicted, -100 where a text has ended."""
    return pad_sequence([ids[1:] for ids in texts], batch_first=True, padding_value=-100).to(device)


def _starts(chunks: Tensor) -> Tensor:
    """``(c,)`` where each chunk has its first token."""
    return torch.searchsorted(chunks, torch.arange(int(chunks.max()) + 1 if len(chunks) else 0))


class _LogShares(torch.autograd.Function):
    """Log-softmax in float32 of logits in any dtype, of some tokens, a few places at a time.

    Logits are by far the largest thing in memory: no copy of them is made but their slope.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:  # noqa: ANN401 - of autograd
        totals = torch.cat([part.float().logsumexp(dim=1) for part in logits.split(_at_once(logits))])
        ctx.save_for_backward(logits, ids, totals)
        return logits.gather(1, ids).float() - totals[:, None]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - of autograd
        logits, ids, totals = ctx.saved_tensors
        found = torch.empty_like(logits)
        parts = (part.split(_at_once(logits)) for part in (logits, ids, totals, slope, found))
        for some, chosen, total, steep, out in zip(*parts, strict=True):
            shares = (some.float() - total[:, None]).exp_()
            out.copy_(shares.mul_(-steep.sum(dim=1, keepdim=True)).scatter_add_(1, chosen, steep))
        return found, None


def _at_once(logits: Tensor) -> int:
    """Places whose probabilities are there in float32 together."""
    most = _CACHED_LOGITS if logits.device.type == "cpu" else _LOGITS
    return max(most // logits.shape[1], 1)


def chunk_losses(ours: Tensor, theirs: Tensor) -> Tensor:
    """Binary cross-entropy of tempered chunk probabilities, less what no student can do without.

    Both are ``p ** (1 / tau)``, tau 100 as in the paper. The teacher's entropy, a constant, is left out, so
    that 0 is the best there is, and the loss is multiplied with tau, so that its gradient by ``log p`` is of
    the size that a next-token loss has.

    Args:
        ours: ``(c,)`` log-probabilities of the student.
        theirs: ``(c,)`` log-probabilities of the teacher.

    Returns:
        ``(c,)`` losses.
    """
    student, teacher = (part.clamp(max=0) / _TEMPERATURE - _MARGIN for part in (ours, theirs))
    other_student, other_teacher = ((-part.expm1()).log() for part in (student, teacher))
    likely = teacher.exp()
    return _TEMPERATURE * (likely * (teacher - student) - teacher.expm1() * (other_teacher - other_student))


def _by_chunk(values: Tensor, chunks: Tensor, count: int) -> Tensor:
    """``(count,)`` sums of ``(n,)`` values by their chunk; those of no chunk are left out."""
    places = chunks.to(values.device)
    kept = places >= 0
    return values.new_zeros(count).index_add(0, places[kept], values[kept])
