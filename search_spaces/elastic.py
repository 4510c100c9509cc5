"""Layers of which a part is active: the leaves of the supernet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from search_spaces.modeling_subnet import Constant
from search_spaces.quantized import Padding, QuantizedMatrix, QuantizedProjection


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """The tensors of one variant of a projection: ``y = weight @ (down @ x) + bias``, without ``down`` when dense.

    Args:
        weight: ``(out, in)``, or ``(out, rank)`` when there are two factors.
        bias: ``(out,)`` or None.
        down: ``(rank, in)`` or None.
    """

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return (self.weight if self.down is None else self.down).shape[1]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.weight.shape[0]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> LinearWeights:
        """The same variant with every tensor changed, such as moved to another device."""
        bias, down = (None if tensor is None else change(tensor) for tensor in (self.bias, self.down))
        return LinearWeights(change(self.weight), bias, down)

    def quantized(self, precision: str, padding: Padding) -> QuantizedProjection | None:
        """The variant as it computes at a precision of `search_spaces.quantized`; None where it has no inputs."""
        if not self.in_features:
            return None
        down = None if self.down is None else QuantizedMatrix.of(self.down, precision)
        return QuantizedProjection(QuantizedMatrix.of(self.weight, precision), down, padding)

    def module(self, *, transposed: bool = False) -> nn.Module:
        """A plain module with its own copy of the tensors: one ``nn.Linear``, or two in an ``nn.Sequential``.

        A projection without inputs is a `Constant`.

        Args:
            transposed: Make a dense one the ``Conv1D`` of `transformers`, as GPT-2 has it.
        """
        if not self.in_features:
            constant = Constant(self.out_features, bias=self.bias is not None)
            if self.bias is not None:
                constant.bias = nn.Parameter(self.bias.detach().clone())
            return constant
        if self.down is not None:
            return nn.Sequential(_linear(self.down, None), _linear(self.weight, self.bias))
        return _conv1d(self.weight, self.bias) if transposed else _linear(self.weight, self.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear


def _conv1d(weight: Tensor, bias: Tensor | None) -> Conv1D:
    with torch.device("meta"):
        module = Conv1D(*weight.shape)  # type: ignore[no-untyped-call]
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    module.weight = nn.Parameter(weight.detach().T.clone(memory_format=torch.contiguous_format))
    module.bias = nn.Parameter(bias.detach().clone())
    return module


class ElasticLinear(nn.Module):
    """A projection that runs whichever variant is active.

    It owns no weights: the supernet's library does, and `activate` points at slices of it. So activating costs
    microseconds, and many widths and ranks share their tensors.

    Args:
        weights: The variant that is active first.
        transposed: Whether the teacher's module stores its weight transposed (``Conv1D``).
    """

    def __init__(self, weights: LinearWeights, *, transposed: bool = False) -> None:
        super().__init__()
        self.active = weights
        self.quantized: QuantizedProjection | None = None
        self._transposed = transposed

    def plain(self) -> nn.Module:
        """The active variant as the module that the teacher would have in its place."""
        return self.active.module(transposed=self._transposed)

    def activate(self, weights: LinearWeights, quantized: QuantizedProjection | None = None) -> None:
        """Make a variant the one that `forward` runs, as it is or quantised."""
        self.active = weights
        self.quantized = quantized

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        active = self.active
        if not active.in_features:
            return inputs.new_zeros(()) if active.bias is None else active.bias
        if self.quantized is not None:
            return self.quantized(inputs, active.bias)
        if active.down is not None:
            inputs = functional.linear(inputs, active.down)
        return functional.linear(inputs, active.weight, active.bias)

    @property
    def weight(self) -> Tensor:
        """The active weight: some models look at a projection's dtype through it."""
        return self.active.weight

    @property
    def bias(self) -> Tensor | None:
        """The active bias."""
        return self.active.bias
