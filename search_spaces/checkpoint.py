"""Saving an extracted subnet and loading it again, without running any code from the folder.

`subnet.json` beside the weights says what stands where. For those who load the folder with plain `transformers`, it
holds what `search_spaces.stock` writes.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from search_spaces.canonical import canonical
from search_spaces.families import FAMILIES, family_of, tied_stem
from search_spaces.modeling_subnet import shrink, whole
from search_spaces.shapes import ModelShape
from search_spaces.stock import stock_config, write_modeling
from search_spaces.subnet import SubnetConfig
from search_spaces.surgery import subnet_changes

SUBNET_FILE = "subnet.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "hwnas-subnet"
VERSION = 1
_RULES = {"int": "a whole number", "bool": "true or false", "str": "a text"}
_POSITIVE = ("hidden_size", "num_blocks", "heads", "kv_heads", "head_dim", "ffn")
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
    family, subnet = family_of(model), canonical(shape, subnet)
    config = stock_config(model, family, shape, subnet)
    if config is None:
        config = copy.deepcopy(model.config)
        layer_types = getattr(config, "layer_types", None)
        changes = subnet_changes(family, shape, subnet, layer_types, tied_stem(model))
        write_modeling(aside, config, type(model).__name__, changes)
    config.architectures = [type(model).__name__]
    config.save_pretrained(aside)
    if model.can_generate():
        model.generation_config.save_pretrained(aside)
    save_file(_tensors(model), aside / WEIGHTS_FILE, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save_pretrained(aside)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": type(model).__name__,
        "shape": asdict(shape),
        "subnet": subnet.to_dict(),
        "metadata": dict(metadata or {}),
    }
    (aside / SUBNET_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)


def _tensors(model: Any) -> dict[str, Tensor]:
    """The model's tensors, tied ones once, under the name by which `transformers` looks for them."""
    state: dict[str, Tensor] = model.state_dict()
    sources = {name: state.get(source) for name, source in model.all_tied_weights_keys.items()}
    return {
        name: tensor.contiguous()
        for name, tensor in state.items()
        if (source := sources.get(name)) is None or source.data_ptr() != tensor.data_ptr()
    }


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
    if len(subnet.blocks) != shape.num_blocks:
        raise ValueError(
            f"{directory / SUBNET_FILE}: `subnet.blocks` must be {shape.num_blocks} (`shape.num_blocks`), but are "
            f"{len(subnet.blocks)}."
        )
    model = _empty_model(directory, description["architecture"], shape, subnet)
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
    # Older folders lack what has a default.
    optional = {field.name for field in fields(ModelShape) if field.default is not MISSING}
    if not isinstance(data, dict) or set(data) | optional != names:
        found = set(data if isinstance(data, dict) else ())
        wrong = sorted((names - optional - found) | (found - names))
        raise ValueError(f"{directory / SUBNET_FILE}: `shape` has missing or unknown keys: {', '.join(wrong)}.")
    for field in fields(ModelShape):
        value = data.get(field.name, field.default)
        if type(value).__name__ != field.type or (isinstance(value, int) and value < (field.name in _POSITIVE)):
            rule = f"{_RULES[str(field.type)]}{' > 0' if field.name in _POSITIVE else ''}"
            raise ValueError(f"{directory / SUBNET_FILE}: `shape.{field.name}` must be {rule}, but got {value!r}.")
    return ModelShape(**data)


def _empty_model(directory: Path, architecture: Any, shape: ModelShape, subnet: SubnetConfig) -> Any:
    """A model of the stock class with the subnet's sizes and weights still to come."""
    cls = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    # Those of that name are what the models are made of, and are none themselves.
    is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if cls is None or not is_model or cls.__name__.endswith("PreTrainedModel"):
        rule = "`architecture` must be a model class of transformers"
        raise ValueError(f"{directory / SUBNET_FILE}: {rule}, but got {architecture!r}.")
    try:
        config: Any = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassFieldValidationError) as error:
        raise ValueError(f"{directory}: config.json cannot be read ({error}).") from error
    if config.num_hidden_layers != subnet.depth:
        blocks = f"config.json has {config.num_hidden_layers} blocks"
        raise ValueError(f"{directory}: {blocks}, but {SUBNET_FILE} leaves {subnet.depth}.")
    family = next((row for row in FAMILIES if config.model_type in row.model_types), None)
    if family is None or family.name != shape.family:
        raise ValueError(f"{directory}: config.json must be of the family {shape.family}, but is {config.model_type}.")
    layer_types = getattr(config, "layer_types", None)
    # Some families treat a block by its place in the whole model (ModernBERT's first has no norm before attention), so
    # all blocks are made and some are left out.
    changed = whole(config, subnet_changes(family, shape, subnet, layer_types))
    try:
        model = cls(changed)
        shrink(model, subnet_changes(family, shape, subnet, layer_types, tied_stem(model)))
    except Exception as error:  # The class may stumble over anything in it.
        raise ValueError(
            f"{directory}: {architecture} cannot be made of its config.json ({type(error).__name__}: {error})."
        ) from error
    return model


def _load_weights(model: Any, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from error
    if getattr(model, "pooler", None) is not None and not any(name.startswith("pooler.") for name in tensors):
        model.pooler = None
    expected = model.state_dict()
    for name, tensor in tensors.items():
        if name not in expected:
            raise ValueError(f"{path}: unknown tensor {name!r}; is it from another model?")
        if tensor.shape != expected[name].shape:
            found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            raise ValueError(f"{path}: tensor {name!r} must be {wanted}, but got {found}.")
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{path}: tensor {name!r} must be of {expected[name].dtype}, but got {tensor.dtype}.")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor {name!r} must be finite, but holds NaN or infinity.")
    # Tied tensors are stored once, so what is missing must share memory with what is there.
    present = {expected[name].data_ptr() for name in tensors}
    if missing := sorted(name for name, t in expected.items() if name not in tensors and t.data_ptr() not in present):
        raise ValueError(f"{path}: tensor {missing[0]!r} is missing.")
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    model.to(dtype)
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.state_dict()[name].copy_(tensor)
