"""A plain model judged, or trained, as if its blocks were quantised: what a supernet does to its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from search_spaces.elastic import ElasticLinear, LinearWeights
from search_spaces.families import blocks_of, family_of
from search_spaces.quantized import SIMULATED, Padding, QuantizedMatrix, quantize_activations


def fake_quantized(model: nn.Module, precisions: Sequence[str]) -> AbstractContextManager[nn.Module]:
    """Within this context a model computes as ONNX Runtime's quantised graphs of it do; its weights stay untouched.

    Args:
        model: A `transformers` model, a teacher or what `Supernet.extract` gives.
        precisions: Of each of its blocks, in order.

    Raises:
        ValueError: There are not as many precisions as blocks.
    """

    def quantised(_: nn.Module, weights: LinearWeights, precision: str, padding: Padding) -> nn.Module:
        leaf = ElasticLinear(weights)
        leaf.activate(weights, weights.quantized(precision, padding))
        return leaf

    return _replaced(model, precisions, quantised)


def quantization_aware(model: nn.Module, precisions: Sequence[str]) -> AbstractContextManager[nn.Module]:
    """Within this context a model can be trained for its quantised graphs: it computes as they do.

    Rounding passes gradients on as if it were not there (the straight-through estimator; Bengio et al. 2013,
    arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877). The parameters are the model's own.

    Args:
        model: A `transformers` model, such as `Supernet.extract` gives.
        precisions: Of each of its blocks, in order.

    Raises:
        ValueError: There are not as many precisions as blocks.
    """
    return _replaced(model, precisions, lambda module, _, *rounding: StraightThrough(module, *rounding))


class StraightThrough(nn.Module):
    """A projection that rounds its weights and, at int8, its inputs, and lets gradients through.

    Args:
        module: The projection, dense or of two factors; its parameters are trained.
        precision: One of `search_spaces.quantized.SIMULATED`.
        padding: Tells which tokens count.
    """

    def __init__(self, module: nn.Module, precision: str, padding: Padding) -> None:
        super().__init__()
        self.module = module
        self._precision, self._padding = precision, padding

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        weights = _weights(self.module)
        assert weights is not None
        if weights.down is not None:
            inputs = self._product(inputs, weights.down, None)
        return self._product(inputs, weights.weight, weights.bias)

    @property
    def weight(self) -> Tensor:
        """The last factor's: some models look at a projection's dtype through it."""
        weights = _weights(self.module)
        assert weights is not None
        return weights.weight

    def _product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        matrix = QuantizedMatrix.of(weight, self._precision)
        rounded = _passed_through(weight, matrix.dequantized())
        if matrix.dynamic:
            with torch.no_grad():
                integers, scale = quantize_activations(inputs, self._padding.real)
            inputs = _passed_through(inputs, (integers * scale).to(inputs.dtype))
        return functional.linear(inputs, rounded, bias)


def _passed_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """The rounded values, with the gradient of the exact ones."""
    return exact + (rounded - exact).detach()


@contextmanager
def _replaced(
    model: nn.Module, precisions: Sequence[str], make: Callable[[nn.Module, LinearWeights, str, Padding], nn.Module]
) -> Iterator[nn.Module]:
    """A model with its quantised projections replaced until the context ends."""
    blocks, family = list(blocks_of(model)), family_of(model)
    if len(precisions) != len(blocks):
        raise ValueError(f"`precisions` must be {len(blocks)}, one a block, but got {len(precisions)}.")
    padding = Padding()
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for block, precision in zip(blocks, precisions, strict=True):
        for path in family.projections if precision in SIMULATED else ():
            module = _found(block, path)
            if module is None or (weights := _weights(module)) is None:
                continue
            block.set_submodule(path, make(module, weights, precision, padding))
            replaced.append((block, path, module))
    handle = padding.watch(model) if replaced else None
    try:
        yield model
    finally:
        for block, path, module in replaced:
            block.set_submodule(path, module)
        if handle is not None:
            handle.remove()


def _found(block: nn.Module, path: str) -> nn.Module | None:
    """The projection at a path; None where its sublayer is not there."""
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None


def _weights(module: nn.Module) -> LinearWeights | None:
    """The tensors of a projection, dense or of two factors; None of what stands in the place of one."""
    if isinstance(module, nn.Sequential) and len(module) == 2:
        down, up = module
        assert isinstance(down, nn.Linear)
        assert isinstance(up, nn.Linear)
        return LinearWeights(up.weight, up.bias, down.weight)
    if isinstance(module, Conv1D):
        return LinearWeights(module.weight.T, module.bias)
    return LinearWeights(module.weight, module.bias) if isinstance(module, nn.Linear) else None
