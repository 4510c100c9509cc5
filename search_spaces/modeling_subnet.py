"""Builds a model whose blocks have sizes of their own: the stock class, changed as `subnet` in its configuration says.

This file needs nothing but torch and transformers. A saved subnet carries a copy of it, with the classes that
transformers is to load at its end; hwnas itself never runs that copy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D


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
            is left, ``linears`` (path to inputs, outputs and rank) and ``attributes`` (path to names and values).
    """
    base = getattr(model, model.base_model_prefix, model)
    blocks = [base.get_submodule(subnet["blocks"])[index] for index in subnet["kept"]]
    for block, changes in zip(blocks, subnet["changes"], strict=True):
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
    for position, block in enumerate(blocks):
        for name in cached:
            set_existing(block.get_submodule(name), {"layer_idx": position})
    model.config.num_hidden_layers = len(blocks)
    if layer_types is not None:
        model.config.layer_types = list(layer_types)


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
