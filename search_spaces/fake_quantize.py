"""A plain model judged as if its blocks were quantised: what a supernet does to its own, for extracted models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers.pytorch_utils import Conv1D

from search_spaces.elastic import ElasticLinear, LinearWeights
from search_spaces.families import blocks_of, family_of
from search_spaces.quantized import SIMULATED, Padding


@contextmanager
def fake_quantized(model: nn.Module, precisions: Sequence[str]) -> Iterator[nn.Module]:
    """Within this context a model computes as ONNX Runtime's quantised graphs of it do; its weights stay untouched.

    Args:
        model: A `transformers` model, a teacher or what `Supernet.extract` gives.
        precisions: Of each of its blocks, in order.

    Raises:
        ValueError: There are not as many precisions as blocks.
    """
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
            leaf = ElasticLinear(weights)
            leaf.activate(weights, weights.quantized(precision, padding))
            block.set_submodule(path, leaf)
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
