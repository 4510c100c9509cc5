"""What an exported teacher depends on, as a name: where it is equal, the graph need not be exported again."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import search_spaces
from latency_models.backends.graph_places import GraphTemplateError, transformers_model
from latency_models.backends.onnx import DEFAULT_OPSET, dynamic_axes, plain_attention
from search_spaces.library import model_hash, model_settings

if TYPE_CHECKING:
    from torch import Tensor, nn

_EXPORTERS = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir")
_START_UP_S = 5  # Sources that are younger than a process by more are not what it runs.
_KNOWN = ("torch", "transformers", "builtins")  # Their versions stand for their code.
# Hooks that only look, and only where somebody collects what they see.
_IDLE_HOOKS = "transformers.utils.output_capturing"


class _UntoldError(Exception):
    """Something decides what a module computes and cannot be told in words."""


def template_key(model: nn.Module, inputs: Mapping[str, Tensor], output_names: Sequence[str]) -> str | None:
    """A name for the graph of a deployed teacher, in 32 hexadecimal digits.

    It follows from the teacher's weights, buffers, configuration, modules and their attributes; from names, types and
    fixed sizes of its inputs; and from the code that exports it: versions of libraries, sources of this project and
    of the packages that other modules' classes are of. Functions that those import from elsewhere are not followed.

    Args:
        model: The deployed teacher.
        inputs: Example tensors by input name.
        output_names: One name per tensor that the forward pass returns.

    Returns:
        None where not all of that can be told: modules with hooks or a forward of their own, attributes of a wrapper
        that are no plain data, sources that are gone or younger than this process, no model of `transformers`.
    """
    try:
        told = [list(output_names), DEFAULT_OPSET, {name: version(name) for name in _EXPORTERS}]
        told += [_inputs(model, inputs), _content(model), list(_modules(model)), _sources(model)]
    except (_UntoldError, GraphTemplateError, OSError, PackageNotFoundError):
        return None
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _inputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Types, and sizes along the axes that the graph does not leave open."""
    axes = dynamic_axes(model, inputs)
    return {
        name: [str(value.dtype), [axes.get(name, {}).get(axis, size) for axis, size in enumerate(value.shape)]]
        for name, value in inputs.items()
    }


def _content(model: nn.Module) -> list[str]:
    """Weights, buffers that are never saved, the configuration, and how attention is computed while exporting."""
    import torch

    stored, digest = model.state_dict(), hashlib.sha256()
    for name, buffer in model.named_buffers():
        if name not in stored:
            values = buffer.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(f"{name} {buffer.dtype} {tuple(buffer.shape)} ".encode() + values.tobytes())
    inner = transformers_model(model)[1]
    with plain_attention(model):
        attention = str(getattr(inner.config, "_attn_implementation", None))
    return [model_hash(model), digest.hexdigest(), model_settings(inner), attention, repr(model)]


def _modules(model: nn.Module) -> Iterator[Any]:
    """Attributes of the modules: of those of `transformers`, whose configuration says most, numbers and texts."""
    from torch import nn

    every = set(vars(nn.Module()))
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if "forward" in vars(module) or any(getattr(hook, "__module__", "") != _IDLE_HOOKS for hook in hooks):
            raise _UntoldError
        own = {key: value for key, value in vars(module).items() if key not in every}
        if _package(type(module)) in _KNOWN:
            own = {key: value for key, value in own.items() if isinstance(value, bool | int | float | str)}
        yield [name, type(module).__qualname__, _described(own)]


def _described(value: Any) -> Any:
    """An attribute, as JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    if isinstance(value, Mapping):
        return [[_described(key), _described(each)] for key, each in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, *(_described(getattr(value, field.name)) for field in fields(value))]
    raise _UntoldError


def _sources(model: nn.Module) -> list[str]:
    """Hashes of the code that exports, and of all classes that are neither torch's nor those of `transformers`."""
    kinds = {base for module in model.modules() for base in type(module).__mro__ if _package(base) not in _KNOWN}
    places = {Path(__file__).parents[1], *map(Path, search_spaces.__path__), *(_place(kind) for kind in kinds)}
    return sorted(_hash_of(sorted(place.rglob("*.py")) if place.is_dir() else [place]) for place in places)


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _place(kind: type) -> Path:
    """The package that a class is of; else the folder of its module where that has siblings, or its file."""
    package = sys.modules.get(_package(kind))
    found = getattr(package, "__file__", None)
    if found is not None and Path(found).name == "__init__.py":
        return Path(found).parent
    try:
        file = Path(inspect.getfile(kind))
    except TypeError as error:  # Written in a prompt.
        raise _UntoldError from error
    return file.parent if "." in kind.__module__ else file


def _hash_of(files: Iterable[Path]) -> str:
    digest, started = hashlib.sha256(), psutil.Process().create_time()
    for file in files:
        # What this process runs may be what stood there before; when it began is known to a second or two.
        if file.stat().st_mtime > started + _START_UP_S:
            raise _UntoldError
        digest.update(file.read_bytes())
    return digest.hexdigest()
