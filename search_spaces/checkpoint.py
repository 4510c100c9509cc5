"""Saving an extracted subnet and loading it again, without running any code from the folder.

`from_pretrained` cannot rebuild blocks of different widths, so `subnet.json` beside the weights says what stands where.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from search_spaces.canonical import canonical
from search_spaces.elastic import LinearWeights
from search_spaces.families import ModelFamily, ModelShape, blocks_of, family_of, projection_weights
from search_spaces.layout import layouts
from search_spaces.subnet import BlockConfig, SubnetConfig
from search_spaces.supernet import keep_blocks, set_head_counts

SUBNET_FILE = "subnet.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "hwnas-subnet"
VERSION = 1
_KEYS = {"format", "version", "architecture", "shape", "subnet", "metadata"}


def save_subnet(
    model: Any,
    subnet: SubnetConfig,
    shape: ModelShape,
    directory: Path,
    *,
    tokenizer: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write an extracted model: configuration, safetensors, `subnet.json`, and the tokenizer where there is one.

    The folder is written aside and then renamed, so that a half-written one never looks finished; an older folder of
    the same name is replaced.

    Args:
        model: What `Supernet.extract` returned.
        subnet: The architecture that was extracted.
        shape: The teacher's sizes.
        directory: Where to.
        tokenizer: Anything with `save_pretrained`.
        metadata: Plain data to keep beside it.
    """
    aside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(aside)
    save_model(model, str(aside / WEIGHTS_FILE), metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(aside)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": type(model).__name__,
        "shape": asdict(shape),
        "subnet": canonical(shape, subnet).to_dict(),
        "metadata": dict(metadata or {}),
    }
    (aside / SUBNET_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)


def load_subnet(directory: Path) -> Any:
    """Rebuild the model that `save_subnet` wrote, bit for bit, in evaluation mode.

    Raises:
        ValueError: A file is missing, damaged, of another format, or does not fit the others.
    """
    description = read_description(directory)
    shape = _shape(description["shape"], directory)
    try:
        subnet = canonical(shape, SubnetConfig.from_dict(description["subnet"]))
    except ValueError as error:
        raise ValueError(f"{directory / SUBNET_FILE}: {error}") from error
    model = _empty_model(directory, description["architecture"], shape, subnet)
    family = family_of(model)
    for block, index in zip(blocks_of(model), subnet.kept, strict=True):
        _reshape(block, family, shape, subnet.blocks[index])
    _load_weights(model, directory / WEIGHTS_FILE)
    return model.eval()


def read_description(directory: Path) -> dict[str, Any]:
    """The checked contents of a folder's `subnet.json`.

    Raises:
        ValueError: It is missing, damaged, or has missing or unknown keys.
    """
    path = directory / SUBNET_FILE
    if not path.is_file():
        raise ValueError(f"{directory}: has no {SUBNET_FILE}; is it a folder that `nas export` wrote?")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(description, dict):
        raise ValueError(f"{path}: must be a JSON object, but got {type(description).__name__}.")
    if missing := sorted(_KEYS - set(description)):
        raise ValueError(f"{path}: key {missing[0]!r} is missing.")
    if extra := sorted(set(description) - _KEYS):
        raise ValueError(f"{path}: unknown key {extra[0]!r}; known keys are {', '.join(sorted(_KEYS))}.")
    if (description["format"], description["version"]) != (FORMAT, VERSION):
        found = f"{description['format']!r} version {description['version']!r}"
        raise ValueError(f"{path}: must be {FORMAT!r} version {VERSION}, but got {found}.")
    return description


def _shape(data: Any, directory: Path) -> ModelShape:
    names = {field.name for field in fields(ModelShape)}
    if not isinstance(data, dict) or set(data) != names:
        wrong = sorted(names.symmetric_difference(data if isinstance(data, dict) else ()))
        raise ValueError(f"{directory / SUBNET_FILE}: `shape` has missing or unknown keys: {', '.join(wrong)}.")
    return ModelShape(**data)


def _empty_model(directory: Path, architecture: Any, shape: ModelShape, subnet: SubnetConfig) -> Any:
    """A model of the stock class with the blocks that are left, of full size, and weights still to come."""
    cls = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        rule = "`architecture` must be a model class of transformers"
        raise ValueError(f"{directory / SUBNET_FILE}: {rule}, but got {architecture!r}.")
    try:
        config: Any = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory}: config.json cannot be read ({error}).") from error
    if config.num_hidden_layers != subnet.depth:
        blocks = f"config.json has {config.num_hidden_layers} blocks"
        raise ValueError(f"{directory}: {blocks}, but {SUBNET_FILE} leaves {subnet.depth}.")
    # Some families treat a block by its place in the full model (ModernBERT's first has no norm before attention), so
    # all blocks are made and some are left out.
    types = getattr(config, "layer_types", None)
    if types is not None:
        kept = iter(types)
        types = [next(kept) if index in subnet.kept else "full_attention" for index in range(shape.num_blocks)]
    full = {"num_hidden_layers": shape.num_blocks} | ({"layer_types": types} if types is not None else {})
    model = cls(type(config).from_dict({**config.to_dict(), **full}))
    keep_blocks(model, list(blocks_of(model)), subnet.kept, types)
    return model


def _reshape(block: nn.Module, family: ModelFamily, shape: ModelShape, config: BlockConfig) -> None:
    """Give every projection of a full block the sizes of its variant; the weights are loaded afterwards."""
    for path, layout in layouts(family, shape, config).items():
        weight, bias = projection_weights(block, path)
        bias = None if bias is None else torch.empty(layout.outputs)
        inputs, outputs, rank = layout.inputs, layout.outputs, layout.rank
        if weight.shape == (outputs, inputs) and not rank:
            continue
        if rank:
            weights = LinearWeights(torch.empty(outputs, rank), bias, torch.empty(rank, inputs))
        else:
            weights = LinearWeights(torch.empty(outputs, inputs), bias)
        block.set_submodule(path, weights.module(transposed=isinstance(block.get_submodule(path), Conv1D)))
    set_head_counts(block, family, config, shape)


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from error
    if getattr(model, "pooler", None) is not None and not any(name.startswith("pooler.") for name in tensors):
        model.pooler = None  # type: ignore[assignment]
    expected = model.state_dict()
    for name, tensor in tensors.items():
        if name not in expected:
            raise ValueError(f"{path}: unknown tensor {name!r}; is it from another model?")
        if tensor.shape != expected[name].shape:
            found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            raise ValueError(f"{path}: tensor {name!r} must be {wanted}, but got {found}.")
    # Tied tensors are stored once, so what is missing must share memory with what is there.
    present = {expected[name].data_ptr() for name in tensors}
    if missing := sorted(name for name, t in expected.items() if name not in tensors and t.data_ptr() not in present):
        raise ValueError(f"{path}: tensor {missing[0]!r} is missing.")
    dtype = next(iter(tensors.values())).dtype
    model.to(dtype)
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.state_dict()[name].copy_(tensor)
