"""A network from the rows of a token's pieces to a row of its own, and how it is trained.

B. Minixhofer et al., "Zero-Shot Tokenizer Transfer", arXiv:2405.07883. The prediction is a linear one, of the
first, the last and the mean piece, plus a correction ``f(x_1, ..., x_n)`` by a small transformer, which is
zero before training. Two things are trained: known rows shall be predicted from their pieces, and a frozen
language model shall go on reading and writing well when a text is made of predicted tokens. Published
networks predict from scratch, which takes days; this one starts from the best linear answer, which has a
closed form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from tokensurgeon.console import logger, track
from tokensurgeon.solvers.linear import ridge
from tokensurgeon.training.sampling import Batch

_RAMP = 20
_HEADS = (8, 7, 6, 5, 4)


class Hypernetwork(nn.Module):
    """Predicts rows from pieces.

    Args:
        mean: ``(d,)`` float32, mean of the known rows.
        scale: ``(d,)`` float32, their standard deviations.
        pieces: Most pieces of a token.
        hidden: Width of the transformer.
        layers: Its layers.
        seed: For its first weights.
    """

    mean: Tensor
    scale: Tensor
    linear: Tensor

    def __init__(
        self, mean: Tensor, scale: Tensor, *, pieces: int, hidden: int, layers: int, seed: int
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", torch.where(scale > 0, scale, 1))
        nothing, same = torch.zeros(len(mean), len(mean)), torch.eye(len(mean))
        self.register_buffer("linear", torch.cat([nothing, nothing, same]))
        heads = next((count for count in _HEADS if hidden % count == 0), 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.places = nn.Parameter(torch.randn((pieces, hidden)) / 2)
            self.enter = nn.Linear(len(mean), hidden)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    hidden, heads, 2 * hidden, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )
            self.leave = nn.Linear(hidden, len(mean))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.to(mean.device)

    def start_from(self, rows: Tensor, present: Tensor, goals: Tensor, strength: float) -> None:
        """Let predictions start from the best linear one.

        Args:
            rows: ``(n, p, d)`` float32, the rows of the pieces in order.
            present: ``(n, p)`` bool, which of them there are; the first always.
            goals: ``(n, d)`` float32, rows to predict.
            strength: Of the ridge, in units of the mean variance of the features.
        """
        features = _features((rows - self.mean) / self.scale, present)
        wanted = (goals - self.mean) / self.scale
        self.linear = ridge(features - features.mean(dim=0), wanted - wanted.mean(dim=0), strength)
        with torch.no_grad():
            self.leave.bias.copy_(wanted.mean(dim=0) - features.mean(dim=0) @ self.linear)

    def forward(self, rows: Tensor, present: Tensor) -> Tensor:
        """Predict rows.

        Args:
            rows: ``(n, p, d)`` float32, the rows of the pieces in order.
            present: ``(n, p)`` bool, which of them there are; the first always.

        Returns:
            ``(n, d)`` float32. A token of a single piece has that piece's row.
        """
        several = (present.sum(dim=1) > 1).nonzero()[:, 0]
        if not len(several):
            return rows[:, 0]
        predicted: Tensor = rows[:, 0].index_put((several,), self._fuse(rows[several], present[several]))
        return predicted

    def _fuse(self, rows: Tensor, present: Tensor) -> Tensor:
        standard = (rows - self.mean) / self.scale
        weights = (present / present.sum(dim=1, keepdim=True))[:, :, None]
        states = self.enter(standard) + self.places[: rows.shape[1]]
        for block in self.blocks:
            states = block(states, src_key_padding_mask=~present)
        fused: Tensor = _features(standard, present) @ self.linear + self.leave((states * weights).sum(dim=1))
        return fused * self.scale + self.mean


def _features(standard: Tensor, present: Tensor) -> Tensor:
    """``(n, 3 d)``: the first piece, the last one, the mean of all."""
    counts = present.sum(dim=1)
    last = standard[torch.arange(len(standard), device=standard.device), counts - 1]
    mean = (standard * present[:, :, None]).sum(dim=1) / counts[:, None]
    return torch.cat([standard[:, 0], last, mean], dim=1)


def lexical_loss(predicted: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """Squared distance to known rows, 1 for always predicting the mean row.

    Args:
        predicted: ``(n, d)``.
        rows: ``(n, d)``.
        scale: ``(d,)``, standard deviations of the known rows.

    Returns:
        A number.
    """
    return (predicted - rows).square().mean() / scale.square().mean()


class FrozenBody:
    """A causal language model that reads and writes whatever rows it is given.

    Args:
        model: Of transformers; its weights are frozen, and stay so.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - a model of transformers
        self._model = model.eval().requires_grad_(False)
        self.embedding: Tensor = model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        self.head: Tensor = head.weight
        self.bias: Tensor | None = getattr(head, "bias", None)
        self._head_name = next(name for name, module in model.named_modules() if module is head)
        # A copy that does without a padding token, whose id need not be in a small vocabulary.
        self._reader = copy.copy(model.get_input_embeddings())
        self._reader.padding_idx = None

    def loss(self, batch: Batch, embedding: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
        """How badly the next tokens are predicted, among those of the batch's vocabulary.

        Args:
            batch: Texts.
            embedding: ``(m, d)`` float32 rows to read with.
            head: ``(m, d)`` float32 rows to write with.
            bias: ``(m,)`` float32; None where the model has none.

        Returns:
            Mean cross entropy.
        """
        # The model's own modules, so that it scales what goes in and out as it always does.
        states = functional_call(self._reader, {"weight": embedding}, (batch.ids,))
        given = {f"{self._head_name}.weight": head}
        if bias is not None:
            given[f"{self._head_name}.bias"] = bias
        told = {"inputs_embeds": states, "use_cache": False}
        logits = functional_call(self._model, given, (), told, tie_weights=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten())


def train(
    network: Hypernetwork, steps: int, learning_rate: float, loss_of: Callable[[int], Tensor]
) -> list[float]:
    """Train a network, and stop at the last good weights where the loss is no number.

    Args:
        network: Changed in place; left in evaluation mode.
        steps: At most so many.
        learning_rate: Of AdamW, after a short linear rise.
        loss_of: The loss of a step.

    Returns:
        The loss of each step that was made.
    """
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _RAMP))
    good = _weights(network)
    losses: list[float] = []
    for step in track(range(steps), "training the hypernetwork"):
        loss = loss_of(step)
        if not isfinite(loss.item()):
            break
        # Weights are good once a loss was computed with them.
        good = _weights(network)
        losses.append(loss.item())
        if not loss.requires_grad:
            continue  # single pieces only, which say nothing about the network
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rise.step()
    if len(losses) < steps or not all(part.isfinite().all() for part in network.parameters()):
        logger.warning(
            "the hypernetwork's loss is no number after %d steps; its training ends there", len(losses)
        )
        network.load_state_dict(good, strict=False)
    network.eval()
    return losses


def _weights(network: Hypernetwork) -> dict[str, Tensor]:
    """Copies of what is trained; buffers stay as they are."""
    return {name: part.detach().clone() for name, part in network.named_parameters()}
