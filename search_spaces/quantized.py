"""Arithmetic of quantised projections in floating point: what integer kernels compute, to the rounding of their scales.

Int8 is ONNX Runtime's dynamic quantisation: weights symmetric per output channel (its ``quantize_dynamic`` with
``per_channel``), activations asymmetric in one range a run (ONNX's ``DynamicQuantizeLinear``). Int4 is its
``MatMulNBits``: weights asymmetric in blocks of inputs, activations as they are.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from search_spaces.subnet import Precision

# Precisions whose loss of quality is simulated; that of fp16 is below what a metric can tell.
SIMULATED: tuple[Precision, ...] = ("int8", "int4")
# Inputs of a product that share a scale at int4: the smallest number that all runtimes have kernels for.
INT4_BLOCK = 32


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A weight as integers and scales.

    Args:
        integers: ``(out, in)`` of int8, zero points taken off.
        scale: ``(out, blocks)``.
        block: Inputs that share a scale; the last block may have fewer.
        dynamic: Whether the activations are quantised, too, as they come.
    """

    integers: Tensor
    scale: Tensor
    block: int
    dynamic: bool

    @classmethod
    def of(cls, weight: Tensor, precision: str) -> QuantizedMatrix:
        """Quantise a weight ``(out, in)``.

        Raises:
            ValueError: The precision is not one of `SIMULATED`.
        """
        if precision == "int8":
            return _int8(weight.detach().float())
        if precision == "int4":
            return _int4(weight.detach().float())
        raise ValueError(f"`precision` must be one of {', '.join(SIMULATED)}, but got {precision!r}.")

    def dequantized(self) -> Tensor:
        """The weight that the integers stand for, ``(out, in)`` of fp32."""
        scale = self.scale.repeat_interleave(self.block, dim=1)[:, : self.integers.shape[1]]
        return self.integers.float() * scale

    def product(self, inputs: Tensor, real: Tensor | None) -> Tensor:
        """``(..., in)`` to ``(..., out)``.

        Args:
            inputs: What the projection reads; the first axis is the sequences'.
            real: Which tokens are no padding, see `quantize_activations`.
        """
        if not self.dynamic:
            return functional.linear(inputs, self.dequantized().to(inputs.dtype))
        integers, scale = quantize_activations(inputs, real)
        # Integers up to 256 are exact in bf16, too, so autocast adds no error of its own to the operands.
        found = functional.linear(integers, self.integers.to(integers.dtype))
        return (found * (scale * self.scale[:, 0])).to(found.dtype)


def _int8(weight: Tensor) -> QuantizedMatrix:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    integers = (weight / scale).round_().clamp_(-127, 127).to(torch.int8)
    return QuantizedMatrix(integers, scale, weight.shape[1], dynamic=True)


def _int4(weight: Tensor) -> QuantizedMatrix:
    outputs, inputs = weight.shape
    blocks = functional.pad(weight, (0, -inputs % INT4_BLOCK)).reshape(outputs, -1, INT4_BLOCK)
    low, high = blocks.amin(dim=2, keepdim=True).clamp_(max=0), blocks.amax(dim=2, keepdim=True).clamp_(min=0)
    scale = (high - low) / 15
    scale = torch.where(scale == 0, 1.0, scale)
    zero = (-low / scale).round_()
    integers = (blocks / scale).add_(zero).round_().clamp_(0, 15).sub_(zero).to(torch.int8)
    return QuantizedMatrix(integers.reshape(outputs, -1)[:, :inputs], scale[..., 0], INT4_BLOCK, dynamic=False)


def quantize_activations(inputs: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Integers of 8 bits without their zero point, as fp32 of the inputs' shape, and scales ``(sequences, 1, ...)``.

    Every sequence has a range of its own, as if it were run alone: so results do not depend on what shares a batch.

    Args:
        inputs: ``(sequences, tokens, features)`` or ``(sequences, features)``.
        real: ``(sequences, tokens)`` of bool: padding does not widen the range, and saturates; None where all count.
    """
    values = inputs.float()
    low, high = torch.aminmax(values, dim=-1)
    if real is not None and values.dim() == 3 and real.shape[0] == values.shape[0]:
        # With a KV cache the mask also covers the tokens that are in it. The range always has 0.
        counted = real[:, -values.shape[1] :]
        low, high = torch.where(counted, low, 0.0), torch.where(counted, high, 0.0)
    shape = (-1, *[1] * (values.dim() - 1))
    low = low.reshape(len(values), -1).amin(dim=1).clamp_(max=0).reshape(shape)
    high = high.reshape(len(values), -1).amax(dim=1).clamp_(min=0).reshape(shape)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, 1.0, scale)
    zero = (-low / scale).round_().clamp_(0, 255)
    return (values / scale).round_().clamp_(-zero, 255 - zero), scale


class Padding:
    """Which tokens of the running batch are no padding, as the model is told it by its ``attention_mask``."""

    def __init__(self) -> None:
        self.real: Tensor | None = None

    def watch(self, model: nn.Module) -> RemovableHandle:
        """Look at every batch of a model from now on, until the handle is removed."""
        names = list(inspect.signature(model.forward).parameters)

        def look(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            mask = {**dict(zip(names, positional, strict=False)), **named}.get("attention_mask")
            self.real = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

        return model.register_forward_pre_hook(look, with_kwargs=True)


@dataclass(frozen=True, slots=True)
class QuantizedProjection:
    """What an elastic projection runs instead of its weights: one matrix, or two factors.

    Args:
        weight: ``(out, in)``, or ``(out, rank)`` where there are two.
        down: ``(rank, in)`` or None.
        padding: Tells which tokens count.
    """

    weight: QuantizedMatrix
    down: QuantizedMatrix | None
    padding: Padding

    def __call__(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """``(..., in)`` to ``(..., out)``; the bias stays as it is."""
        real = self.padding.real
        if self.down is not None:
            inputs = self.down.product(inputs, real)
        found = self.weight.product(inputs, real)
        return found if bias is None else found + bias.to(found.dtype)
