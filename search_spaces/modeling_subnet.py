"""Builds a model whose blocks have sizes of their own: the stock class, changed as `subnet` in its configuration says.

This file needs nothing but torch and transformers. A saved subnet carries a copy of it, with the classes that
transformers is to load at its end; hwnas itself never runs that copy.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D


class Constant(nn.Module):
    """What is left of a projection without inputs: its mean output."""

    def __init__(self, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        """``(outputs,)``, or 0 without a bias: whatever it is added to has the batch's shape."""
        return inputs.new_zeros(()) if self.bias is None else self.bias


class Absent(nn.Module):
    """An attention or FFN that is not there.

    Args:
        name: Name of the projection inside the sublayer that writes to the residual stream; empty if it is outside.
        out: That projection.
        pair: Whether callers expect attention weights as well.
    """

    def __init__(self, name: str, out: nn.Module, *, pair: bool) -> None:
        super().__init__()
        self._name, self._pair = name, pair
        if name:
            self.add_module(name, out)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """What the projection that writes makes of nothing."""
        result = getattr(self, self._name)(hidden_states) if self._name else hidden_states
        return (result, None) if self._pair else result


class Columns(nn.Embedding):
    """An embedding that gives some of its columns: all of them are kept where a head is tied to them.

    Args:
        embedding: The whole one, whose weight it shares.
        kept: Which columns it gives, ``(columns,)``.
    """

    kept: Tensor

    def __init__(self, embedding: nn.Embedding, kept: Tensor) -> None:
        rows, columns = embedding.weight.shape
        super().__init__(rows, columns, padding_idx=embedding.padding_idx, _weight=embedding.weight)
        self.weight = embedding.weight
        self.register_buffer("kept", kept)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as the whole one calls it
        """``(...)`` of token numbers to ``(..., columns)``."""
        return super().forward(input).index_select(-1, self.kept)


def whole(config: Any, subnet: Mapping[str, Any]) -> Any:
    """The configuration of the model before blocks were left out of it."""
    full = copy.deepcopy(config)
    full.num_hidden_layers = subnet["num_blocks"]
    if subnet["layer_types"] is not None:
        full.layer_types = list(subnet["layer_types"])
    return full


def shrink(model: Any, subnet: Mapping[str, Any]) -> None:
    """Leave blocks out of a whole model and give the others' projections their sizes; weights are loaded afterwards.

    Args:
        model: A model of transformers, made with the configuration that `whole` gives.
        subnet: ``blocks`` (path of the list of blocks), ``num_blocks`` and ``layer_types`` of the whole model, ``kept``
            (numbers of the blocks that are left), ``cached`` (see `keep_blocks`), and ``changes``: for each block that
            is left, ``absent`` (arguments of `leave_out`), ``linears`` (path to inputs, outputs and rank) and
            ``attributes`` (path to names and values); and where the residual stream is narrower, ``stream``
            (arguments of `narrow_stream`).
    """
    base = getattr(model, model.base_model_prefix, model)
    blocks = [base.get_submodule(subnet["blocks"])[index] for index in subnet["kept"]]
    if stream := subnet.get("stream"):
        narrow_stream(base, blocks, **stream)
    for block, changes in zip(blocks, subnet["changes"], strict=True):
        for sublayer in changes["absent"]:
            constant = constant_like(block.get_submodule(sublayer["out"]), stream and stream["size"])
            leave_out(block, **sublayer, constant=constant)
        for path, sizes in changes["linears"].items():
            block.set_submodule(path, resized(block.get_submodule(path), **sizes))
        for path, values in changes["attributes"].items():
            set_existing(block.get_submodule(path), values)
    types = subnet["layer_types"]
    types = None if types is None else [types[index] for index in subnet["kept"]]
    keep_blocks(model, subnet["blocks"], blocks, subnet["cached"], types)


def keep_blocks(
    model: Any, path: str, blocks: Sequence[nn.Module], cached: Sequence[str], layer_types: Sequence[str] | None
) -> None:
    """Make these the model's blocks, numbered from 0, or KV caches break where one is skipped.

    Args:
        model: A model of transformers.
        path: Path of the list of blocks in its base model.
        blocks: The blocks that are left.
        cached: Paths, in a block, of modules whose ``layer_idx`` names the block's place in the KV cache.
        layer_types: Their entries in the configuration (which blocks attend to a window only), where it has them.
    """
    base = getattr(model, model.base_model_prefix, model)
    base.set_submodule(path, nn.ModuleList(blocks))
    set_existing(base.get_submodule(path.rpartition(".")[0]), {"n_layers": len(blocks)})
    position = 0
    for block in blocks:
        holders = [block.get_submodule(name) for name in cached]
        for module in holders:
            set_existing(module, {"layer_idx": position})
        # A block without attention has no place in the cache, whose first place counts the tokens.
        position += any(hasattr(module, "layer_idx") for module in holders)
    model.config.num_hidden_layers = len(blocks)
    if layer_types is not None:
        model.config.layer_types = list(layer_types)


def leave_out(block: nn.Module, module: str, out: str, norm: str | None, constant: nn.Module, *, pair: bool) -> None:
    """Put nothing in the place of a sublayer, and what it adds to the residual stream on average.

    Args:
        block: The block.
        module: Path of the sublayer.
        out: Path of its projection that writes to the residual stream, inside it or beside it.
        norm: Path of the norm before it, which is of no use then; None where norms follow the sums.
        constant: What stands in the place of that projection.
        pair: Whether callers expect attention weights as well.
    """
    inside = out.removeprefix(f"{module}.") if out.startswith(f"{module}.") else ""
    block.set_submodule(module, Absent(inside, constant, pair=pair))
    if not inside:
        block.set_submodule(out, constant)
    if norm is not None:
        block.set_submodule(norm, nn.Identity())


def narrow_stream(
    base: nn.Module,
    blocks: Sequence[nn.Module],
    size: int,
    full: int,
    stem: Sequence[str],
    tied: Sequence[str],
    norms: Sequence[str],
    block_norms: Sequence[str],
    last: str,
) -> None:
    """Make the residual stream narrower outside the blocks' projections, and bring what leaves it back to full width.

    Args:
        base: The base model.
        blocks: The blocks that are left.
        size: Width of the stream.
        full: Width of the whole model's.
        stem: Paths of what the stream is made of.
        tied: Those of them that keep all columns, because a head is tied to them.
        norms: Paths of norms outside the blocks.
        block_norms: Paths of norms in every block.
        last: Path of the norm that an output projection follows: in the base model where it is one of ``norms``, else
            in the last block. Empty where it follows the whole base model.
    """
    for path in stem:
        replace_part(base, path, lambda part, path=path: narrowed(part, torch.arange(size), tied=path in tied))
    for module, paths in ((base, norms), *((block, block_norms) for block in blocks)):
        for path in paths:
            module.set_submodule(path, narrowed_norm(module.get_submodule(path), size))
    if not last:
        expand_output(base, nn.Linear(size, full))
        return
    holder = base if last in norms else blocks[-1]
    holder.set_submodule(last, expanded(holder.get_submodule(last), nn.Linear(size, full)))


def replace_part(base: nn.Module, path: str, change: Any) -> None:
    """Put what a function makes of a module or a parameter in its place; nothing where the model has none."""
    holder, _, name = path.rpartition(".")
    module = base.get_submodule(holder)
    if (part := getattr(module, name, None)) is not None:
        setattr(module, name, change(part))


def narrowed(part: Any, kept: Tensor, *, tied: bool = False) -> Any:
    """What writes to the residual stream before the first block, for some of the stream's coordinates.

    Args:
        part: An embedding, a convolution, or a parameter whose last axis is the stream.
        kept: The coordinates that are kept.
        tied: Whether an embedding keeps all its columns and gives some.
    """
    if isinstance(part, nn.Parameter):
        return nn.Parameter(part.detach().index_select(-1, kept.to(part.device)), requires_grad=part.requires_grad)
    kept = kept.to(part.weight.device)
    if isinstance(part, nn.Embedding):
        if tied:
            return Columns(part, kept)
        weight = part.weight.detach().index_select(1, kept)
        small = nn.Embedding(len(weight), len(kept), padding_idx=part.padding_idx, _weight=weight)
        return small.requires_grad_(part.weight.requires_grad)
    small = copy.deepcopy(part)
    small.out_channels = len(kept)
    for name, parameter in part.named_parameters():
        setattr(small, name, nn.Parameter(parameter.detach().index_select(0, kept)))
    return small.requires_grad_(part.weight.requires_grad)


def narrowed_norm(norm: Any, size: int) -> Any:
    """A norm like this one over so many features; what is no norm (an ``nn.Identity``) stays."""
    small = copy.deepcopy(norm)
    for name, parameter in norm.named_parameters():
        setattr(small, name, nn.Parameter(parameter.detach()[:size].clone()))
    set_existing(small, {"normalized_shape": (size,)})
    return small


def expanded(norm: nn.Module, projection: nn.Module) -> nn.Sequential:
    """A norm and the projection that brings its output back to the width that poolers and heads read."""
    return nn.Sequential(OrderedDict(norm=norm, expand=projection))


def expand_output(base: nn.Module, projection: nn.Module) -> RemovableHandle:
    """Let a projection follow a base model."""
    base.add_module("expand", projection)
    return base.register_forward_hook(_expand)


def _expand(base: Any, _: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (base.expand(output[0]), *output[1:])
    output.last_hidden_state = base.expand(output.last_hidden_state)
    return output


def constant_like(module: Any, outputs: int | None = None) -> Constant:
    """The constant that stands in the place of a projection; of another width where it is given."""
    full = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
    return Constant(outputs or full, bias=module.bias is not None)


def set_existing(module: nn.Module, values: Mapping[str, Any]) -> None:
    """Set attributes, where the module has them."""
    for name, value in values.items():
        if hasattr(module, name):
            setattr(module, name, value)


def resized(module: Any, inputs: int, outputs: int, rank: int) -> nn.Module:
    """A projection like this one of another size, or of two factors where the rank is not 0."""
    transposed, bias = isinstance(module, Conv1D), module.bias is not None
    if rank:
        return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))
    if transposed:
        return Conv1D(outputs, inputs)  # type: ignore[no-untyped-call]
    return nn.Linear(inputs, outputs, bias=bias)
