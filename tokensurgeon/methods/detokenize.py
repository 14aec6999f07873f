"""What the base has in mind after it has read a token's pieces, mapped back to a row.

G. Kaplan et al., "From Tokens to Words: On the Inner Lexicon of LLMs", arXiv:2410.05864: early layers fuse
the pieces of a word into one state at its last piece. With ``h_l`` that state after ``l`` layers, a row is
``mean row + (h_l - mean h_l) V_l``. ``V_l`` is a ridge map fitted to tokens of the base that are read as
other tokens of it, onto their own rows; and ``l`` is where held-out tokens are met best. The paper fits
its maps to whole tokens read as themselves, which are not what is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

import torch
from torch import Tensor, nn

from tokensurgeon.console import logger
from tokensurgeon.errors import InputError
from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.params import DetokenizeParams
from tokensurgeon.solvers.linear import ridge

_MOST_PIECES = 16
_FEWEST_EXAMPLES = 16
_TEXTS_AT_A_TIME = 256

Pieces = tuple[int, ...]


class Detokenize:
    """Read hidden states of the base and map them to rows."""

    def __init__(self, params: DetokenizeParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Fit the map to the base's own tokens, read the wanted ones; without pieces none is served."""
        known = self.examples(context)
        if len(known) < _FEWEST_EXAMPLES:
            count = len(context.wanted)
            context.advance(count)
            return InitRows(context.base_mean.repeat(count, 1), served=torch.zeros(count, dtype=torch.bool))
        reader = Reader(context.resources.load_body(), context.device)
        goals = context.base(torch.tensor(list(known)))
        layers = self.layers(reader.depth)
        states = reader.read(list(known.values()), layers)
        errors = [held_out_error(part, goals, self.params.ridge) for part in states]
        best = errors.index(min(errors))
        logger.info("detokenize: reads after layer %d of %d", layers[best], reader.depth)
        features = states[best]
        centre, mean = features.mean(dim=0), goals.mean(dim=0)
        way_back = ridge(features - centre, goals - mean, self.params.ridge)

        def solve(span: slice) -> InitRows:
            spelt = [pieces[-_MOST_PIECES:] for pieces in context.pieces[span]]
            # Each spelling once: equal ones get equal rows, to the last bit.
            places = {pieces: place for place, pieces in enumerate(dict.fromkeys(filter(None, spelt)))}
            made = reader.read(list(places), layers[best : best + 1])[0]
            table = torch.cat([mean + (made - centre) @ way_back, context.base_mean[None]])
            chosen = torch.tensor([places.get(pieces, -1) for pieces in spelt], dtype=torch.int64)
            return InitRows(table[chosen], served=(chosen >= 0).to(context.device))

        return context.in_batches(solve)

    def examples(self, context: MethodContext) -> dict[int, Pieces]:
        """A random sample of base tokens that other base tokens spell.

        Args:
            context: Where they are.

        Returns:
            Their pieces by id, in random order.
        """
        usable = set(context.base_ids.tolist())
        spelt = [
            (token, parts[-_MOST_PIECES:])
            for token, parts in context.lexicon.base_parts.items()
            if token in usable and usable.issuperset(parts)
        ]
        order = torch.randperm(len(spelt), generator=context.generator)[: self.params.sample]
        return dict(spelt[place] for place in order.tolist())

    def layers(self, depth: int) -> list[int]:
        """Depths to try.

        Args:
            depth: Layers of the body.

        Returns:
            Numbers of layers passed, 0 for none.
        """
        if self.params.layer is not None:
            return [round(self.params.layer * depth)]
        return list(range(floor(depth * 2 / 3) + 1))


def held_out_error(features: Tensor, goals: Tensor, strength: float) -> float:
    """How far a ridge map fitted to the first four fifths is off on the last fifth.

    Args:
        features: ``(n, f)`` float32.
        goals: ``(n, t)`` float32.
        strength: Of the ridge.

    Returns:
        Mean squared distance.
    """
    fitted = len(goals) - len(goals) // 5
    centre, mean = features[:fitted].mean(dim=0), goals[:fitted].mean(dim=0)
    way_back = ridge(features[:fitted] - centre, goals[:fitted] - mean, strength)
    missed = goals[fitted:] - mean - (features[fitted:] - centre) @ way_back
    return float(missed.square().sum(dim=1).mean())


class _Enough(Exception):  # noqa: N818 - ends a forward pass, which is no error
    """The last layer that is wanted has been reached."""


class Reader:
    """Reads short texts with a causal language model and stops where nothing more is wanted.

    Args:
        model: Of transformers.
        device: Where it is.

    Attributes:
        depth: Number of layers.

    Raises:
        InputError: Its layers cannot be told.
    """

    def __init__(self, model: Any, device: torch.device) -> None:  # noqa: ANN401 - a model of transformers
        self._model = model
        self._device = device
        config = model.config.get_text_config()
        self.depth: int = config.num_hidden_layers
        self._width: int = config.hidden_size
        lists = [
            module
            for module in model.get_decoder().modules()
            if isinstance(module, nn.ModuleList) and len(module) == self.depth
        ]
        if not lists:
            raise InputError(
                f"{type(model).__name__}: no list of {self.depth} layers to read after",
                "a causal language model that keeps its layers in one list",
                "choose another method, such as piece_regression",
            )
        self._layers = lists[0]
        start = config.bos_token_id
        self._start: list[int] = [] if not isinstance(start, int) else [start]

    @torch.no_grad()
    def read(self, texts: Sequence[Pieces], layers: Sequence[int]) -> Tensor:
        """Hidden states at the last token of each text.

        Args:
            texts: Token ids, at least one each; the token that begins a text is put before them.
            layers: Numbers of layers passed, ascending.

        Returns:
            ``(len(layers), n, d)`` float32.
        """
        groups: dict[int, list[int]] = {}
        for place, text in enumerate(texts):
            groups.setdefault(len(text), []).append(place)
        states = torch.zeros((len(layers), len(texts), self._width), device=self._device)
        # Texts of one length need no padding, so what else is read does not matter.
        for group in groups.values():
            for places in torch.tensor(group).split(_TEXTS_AT_A_TIME):
                ids = torch.tensor([[*self._start, *texts[place]] for place in places.tolist()])
                states[:, places.to(self._device)] = self._read_equal(ids.to(self._device), layers)
        return states

    def _read_equal(self, ids: Tensor, layers: Sequence[int]) -> Tensor:
        """Look at what goes into a layer, or comes out of the last; then leave, before any logits."""
        seen: dict[int, Tensor] = {}

        def note(layer: int, states: Tensor) -> None:
            seen[layer] = states[:, -1].to(torch.float32)
            if layer == layers[-1]:
                raise _Enough

        def watch(layer: int) -> Any:  # noqa: ANN401 - a handle of torch
            if layer == self.depth:
                return self._layers[-1].register_forward_hook(
                    lambda _, __, out: note(layer, out[0] if isinstance(out, tuple) else out)
                )
            return self._layers[layer].register_forward_pre_hook(
                lambda _, given, named: note(layer, given[0] if given else named["hidden_states"]),
                with_kwargs=True,
            )

        handles = [watch(layer) for layer in layers]
        try:
            self._model(input_ids=ids, use_cache=False)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack([seen[layer] for layer in layers])
