"""Hide shared tokens, make their rows again, compare: what a method is worth on the pair at hand.

Which tokens are hidden no text decides, and neither labels nor gradients are needed. A hidden token is
missing from both vocabularies, so no method meets its row; it is spelt by what it is made of. Shared tokens
are easier than missing ones, whose donor rows lie farther from every anchor: errors are weighted so that the
hidden tokens are as far away as the missing ones are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.errors import InputError
from tokensurgeon.lexicon import make_lexicon
from tokensurgeon.plan import Plan
from tokensurgeon.recipe.schema import Methods
from tokensurgeon.resources import FileResources
from tokensurgeon.rows import NewTensor, mean_row
from tokensurgeon.solvers.nearest import build_index
from tokensurgeon.sourcing import donor_counterpart
from tokensurgeon.surgery import operate
from tokensurgeon.vocab.decompose import Pieces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

_BLOCK = 32
_SAMPLE = 4096
# A hidden token that few others are like must not decide alone.
_MOST_WEIGHT = 10.0

Ends = Literal["embedding", "lm_head", "both"]
ENDS: tuple[Ends, ...] = ("embedding", "lm_head", "both")


@dataclass(frozen=True)
class Hidden:
    """Shared tokens that are treated as missing.

    Attributes:
        plan: The transplant with no target tokens but shared ones; the hidden ones are wanted.
        ids: Their target ids, ascending.
        twins: Their base ids.
        similarity: ``(n,)`` float32 largest centred cosine of each donor row to an anchor that is left; None
            without a donor.
        edges: Quartiles of the same for the missing tokens; empty without a donor.
        weights: ``(n,)`` float32, what each counts so that a quarter of the weight lies between two edges.
    """

    plan: Plan
    ids: list[int]
    twins: list[int]
    similarity: Tensor | None
    edges: list[float]
    weights: Tensor

    @property
    def bins(self) -> Tensor:
        """``(n,)`` int64 quarter of each token, the farthest from all anchors first; zero without a donor."""
        if self.similarity is None:
            return torch.zeros(len(self.ids), dtype=torch.int64)
        return torch.bucketize(self.similarity, torch.tensor(self.edges))


@dataclass(frozen=True)
class RowErrors:
    """How far made rows are from the true ones: squared distances, 1 for the mean row.

    Attributes:
        weighted: With the weights of the hidden tokens.
        by_similarity: For each quarter, the farthest from all anchors first; None where no token is.
    """

    weighted: float
    by_similarity: list[float | None]


def hide_anchors(plan: Plan, share: float = 0.3, seed: int = 0) -> Hidden:
    """Treat a share of the anchors as missing, the same share of those with low ids and with high ones.

    Args:
        plan: A transplant with anchors.
        share: Of the anchors that can be spelt without themselves.
        seed: Which ones.

    Returns:
        The hidden tokens.

    Raises:
        InputError: There are too few anchors to hide any.
    """
    parts = make_lexicon(plan.match, plan.inputs.layout.rows).base_parts
    able = [index for index, twin in plan.anchors.items() if twin in parts]
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    # Large enough for one of each block.
    size = max(_BLOCK, round(1 / share))
    for start in range(0, len(able), size):
        block = able[start : start + size]
        order = torch.randperm(len(block), generator=generator).tolist()
        chosen += sorted(block[place] for place in order[: round(share * len(block))])
    if not chosen:
        raise InputError(
            f"{len(able)} anchors that can be spelt without themselves", f"enough to hide {share:.0%} of them"
        )
    smaller = treat_as_missing(plan, set(chosen))
    similarity, edges, weights = _weigh(smaller, plan, chosen)
    return Hidden(smaller, chosen, [plan.anchors[i] for i in chosen], similarity, edges, weights)


def treat_as_missing(plan: Plan, hidden: set[int]) -> Plan:
    """The transplant in which only hidden tokens are wanted, and the base does not have them.

    Args:
        plan: A transplant.
        hidden: Target ids of anchors.

    Returns:
        One with no target tokens but shared ones.
    """
    parts = make_lexicon(plan.match, plan.inputs.layout.rows).base_parts
    twins = {plan.anchors[index] for index in hidden}
    base = replace(
        plan.match.base, tokens={i: t for i, t in plan.match.base.tokens.items() if i not in twins}
    )
    sources = {
        index: source
        for index, source in plan.match.sources.items()
        if index in hidden or not twins & {*source.embedding, *source.head}
    }
    target = replace(
        plan.match.target, tokens={i: t for i, t in plan.match.target.tokens.items() if i in sources}
    )
    kept = {index: source for index, source in sources.items() if index not in hidden}
    wanted = sorted(hidden)
    spelt = [tuple(i for i in parts.get(plan.anchors[index], ()) if i not in twins) for index in wanted]
    return replace(
        plan,
        match=replace(plan.match, base=base, target=target, sources=kept, collisions=()),
        wanted=wanted,
        unserved=[],
        pieces=[Pieces(ids, exact=True) for ids in spelt],
        anchors={index: twin for index, twin in plan.anchors.items() if index in kept},
    )


def _weigh(smaller: Plan, plan: Plan, hidden: Sequence[int]) -> tuple[Tensor | None, list[float], Tensor]:
    donor = donor_counterpart(plan, plan.inputs.layout.embedding)
    missing = [index for index in plan.match.missing if donor is not None and index < len(donor)]
    if donor is None or not missing:
        return None, [], torch.ones(len(hidden))
    anchors = donor[torch.tensor(list(smaller.anchors))].float()
    centre = anchors.mean(dim=0)
    index = build_index(anchors - centre)

    def nearest(ids: Sequence[int]) -> Tensor:
        rows = donor[torch.tensor(ids)].float() - centre
        return index.search(rows.nan_to_num(), 1).similarities[:, 0]

    similarity = nearest(hidden)
    step = -(-len(missing) // _SAMPLE)
    edges = nearest(missing[::step]).quantile(torch.tensor([0.25, 0.5, 0.75]))
    bins = torch.bucketize(similarity, edges)
    counts = torch.bincount(bins, minlength=4).clamp(min=1)
    weights = (len(hidden) / 4 / counts.float()).clamp(max=_MOST_WEIGHT)[bins]
    return similarity, edges.tolist(), weights


def make_hidden(
    hidden: Hidden, method: Methods, resources: FileResources, batches: Batches
) -> list[NewTensor]:
    """Make the rows of hidden tokens.

    Args:
        hidden: The tokens.
        method: As in a recipe.
        resources: What the recipe brings besides the models.
        batches: How the work is shared.

    Returns:
        One entry for each vocabulary tensor.
    """
    recipe = hidden.plan.recipe
    rules = recipe.new_rows
    # What is chosen by running the base is chosen on the transplant: hidden tokens have no tokenizer.
    scale = 1.0 if rules.head_scale == "auto" else rules.head_scale
    ours = {"head_scale": scale, "head_fit": 0.0, "last_piece": {}, "unigrams": False}
    rules = rules.model_copy(update=ours)
    recipe = recipe.model_copy(update={"method": method, "new_rows": rules})
    return operate(replace(hidden.plan, recipe=recipe), batches, resources)


def row_errors(hidden: Hidden, new: NewTensor) -> RowErrors:
    """Compare made rows with the true ones.

    Args:
        hidden: The tokens.
        new: A tensor with their rows.

    Returns:
        Errors, over all and by similarity.
    """
    base = map_tensor(new.tensor.ref)
    used = torch.tensor([i for i in hidden.plan.match.base.tokens if i < len(base)], dtype=torch.int64)
    mean = mean_row(base, used)
    true = base[torch.tensor(hidden.twins)].double()
    wrong = (new.data[torch.tensor(hidden.ids)].double() - true).square().sum(dim=1)
    energy = (true - mean).square().sum(dim=1)
    weights, bins = hidden.weights.double(), hidden.bins

    def share(some: Tensor) -> float:
        return float((weights[some] * wrong[some]).sum() / (weights[some] * energy[some]).sum())

    quarters = [bins == number for number in range(len(hidden.edges) + 1)]
    return RowErrors(
        share(torch.ones(len(bins), dtype=torch.bool)),
        [share(some) if some.any() else None for some in quarters],
    )


@contextmanager
def put_back(
    model: PreTrainedModel, hidden: Hidden, tensors: Sequence[NewTensor], ends: Ends
) -> Iterator[None]:
    """Let the base read or write with the made rows of the hidden tokens, until the block ends.

    Args:
        model: The base, with its own tokenizer.
        hidden: The tokens.
        tensors: Their rows.
        ends: Where they are used.

    Yields:
        Nothing.
    """
    made = {new.tensor.role: new.data for new in tensors}
    modules = {
        TensorRole.EMBEDDING: model.get_input_embeddings(),
        TensorRole.HEAD: model.get_output_embeddings(),
    }
    wanted = {"embedding": [TensorRole.EMBEDDING], "lm_head": [TensorRole.HEAD]}.get(ends, list(modules))
    before = {role: module.weight for role, module in modules.items()}
    try:
        for role in wanted:
            rows = before[role].detach().clone()
            # A tied base stores one table.
            source = made.get(role, made[TensorRole.EMBEDDING])
            rows[hidden.twins] = source[torch.tensor(hidden.ids)].to(rows)
            modules[role].weight = torch.nn.Parameter(rows, requires_grad=False)
        yield
    finally:
        for role, weight in before.items():
            modules[role].weight = weight
