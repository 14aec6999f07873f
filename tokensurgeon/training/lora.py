"""Low-rank changes of a body's linear layers, which train beside rows and end as plain weights.

A layer's weight ``W`` becomes ``W + alpha / rank * B @ A``, with ``B`` zero at the start (E. Hu et al.,
"LoRA", arXiv:2106.09685). Which layers there are, how each one stores its weight and how it reads with its
adapter is peft's business.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokensurgeon.errors import RecipeError

_NAME = "default"


def inject_adapters(
    model: Any,  # noqa: ANN401 - a model of transformers
    rank: int,
    alpha: float,
    targets: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Put adapters into a model, in the dtype of its weights. It reads as before, and none of them trains.

    Args:
        model: In one dtype.
        rank: Of every change.
        alpha: Over ``rank``, what changes are multiplied with.
        targets: Endings of names of linear layers; none for all but the lm_head.
        seed: Of the random half of every adapter.

    Returns:
        Peft's layers by their name.

    Raises:
        RecipeError: The model has no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets) or "all-linear")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Peft sees by itself which layers have their weight the other way round, and says so.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, _NAME)
        except ValueError as error:
            raise RecipeError(
                f"heal.lora.targets: {', '.join(targets) or 'all linear layers'}: {error}",
                "endings of names of linear layers, such as q_proj",
            ) from error
    model.to(model.dtype).requires_grad_(False)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


class Adapters:
    """What trains of injected adapters, apart from the model, which never moves.

    Args:
        layers: Peft's layers by their name.
        stored: ``(out, in)``, or as the layer has it: the weight of each as a file holds it.
        learning_rate: The largest.
    """

    def __init__(self, layers: Mapping[str, Any], stored: Mapping[str, Tensor], learning_rate: float) -> None:
        self._layers = layers
        self._stored = stored
        self.learning_rate = learning_rate
        self._halves = {
            f"{name}.{half}.{_NAME}.weight": getattr(layer, half)[_NAME].weight.detach().float().clone()
            for name, layer in layers.items()
            for half in ("lora_A", "lora_B")
        }
        for half in self._halves.values():
            half.requires_grad_()

    @property
    def leaves(self) -> list[Tensor]:
        """``(rank, in)`` and ``(out, rank)`` float32 of each layer, in turn."""
        return list(self._halves.values())

    def parameters(self) -> dict[str, Tensor]:
        """What the model reads with, by name."""
        return dict(self._halves)

    def as_written(self) -> dict[str, Tensor]:
        """Weights of the layers as a file will hold them, by their name in the model."""
        return {
            f"{name}.base_layer.weight": self.merge(name, self._stored[name]).to(layer.weight.device)
            for name, layer in self._layers.items()
        }

    @torch.no_grad()
    def merge(self, name: str, weight: Tensor) -> Tensor:
        """Add its change to the weight of a layer.

        Args:
            name: Of the layer.
            weight: As a file holds it.

        Returns:
            The sum, rounded to the dtype of the weight, on the CPU.
        """
        layer = self._layers[name]
        down, up = (self._halves[f"{name}.{half}.{_NAME}.weight"] for half in ("lora_A", "lora_B"))
        change = layer.scaling[_NAME] * (up @ down).cpu()
        merged: Tensor = weight.float() + (change.mT if layer.fan_in_fan_out else change)
        return merged.to(weight.dtype)
