"""Multiply-accumulates of a model's linear layers, counted while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# Two lengths tell what grows with the tokens from what each sequence costs once.
_LENGTHS = (2, 3)


def linear_macs(model: nn.Module, outside: Sequence[nn.Module] = ()) -> tuple[int, int]:
    """MACs of the linear layers and convolutions that run: (per token, once per sequence).

    A pooler and a classifier see one token, a language model's head all of them; an image's patches are one sequence.

    Args:
        model: A `transformers` model; it runs twice on one short input.
        outside: Leave out the layers inside these modules.
    """
    left_out = {id(module) for root in outside for module in root.modules()}
    short, longer = (_macs(model, length, left_out) for length in _LENGTHS)
    per_token = (longer - short) // (_LENGTHS[1] - _LENGTHS[0])
    return per_token, short - per_token * _LENGTHS[0]


@torch.inference_mode()
def _macs(model: nn.Module, length: int, left_out: set[int]) -> int:
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Inputs per output: a row of the matrix, or a filter of the convolution.
        fan_in = weight.shape[0] if isinstance(module, Conv1D) else weight[0].numel()
        total += output.numel() * fan_in

    counted = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D | nn.Conv2d) and id(m) not in left_out]
    handles = [module.register_forward_hook(count) for module in counted]
    try:
        model(**example(model, length))
    finally:
        for handle in handles:
            handle.remove()
    return total


def example(model: nn.Module, length: int) -> dict[str, Tensor]:
    """One input that the model accepts: so many tokens, or one image of its size."""
    config: Any = model.config
    device = next(model.parameters()).device
    if (size := getattr(config, "image_size", None)) is not None:
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(1, config.num_channels, height, width, device=device)}
    return {"input_ids": torch.zeros(1, length, dtype=torch.long, device=device)}
