"""What an exported teacher depends on, as a name: equal names, equal graphs."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_models.backends.graph_places import GraphTemplateError, transformers_model
from latency_models.backends.onnx import DEFAULT_OPSET, dynamic_axes
from search_spaces import library
from search_spaces.library import model_fingerprint, model_hash

if TYPE_CHECKING:
    from torch import Tensor, nn

_EXPORTERS = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir")
_KNOWN = ("torch", "transformers")  # Their versions stand for their code.


class _UntoldError(Exception):
    """Something decides what a module computes and cannot be told in words."""


def template_key(model: nn.Module, inputs: Mapping[str, Tensor], output_names: Sequence[str]) -> str | None:
    """A name for the graph of a deployed teacher, in 32 hexadecimal digits.

    It follows from the teacher's weights, configuration and modules, from names, types and fixed sizes of its inputs,
    and from the code that exports it: versions of libraries, sources of this project and of the user's own modules.

    Args:
        model: The deployed teacher.
        inputs: Example tensors by input name.
        output_names: One name per tensor that the forward pass returns.

    Returns:
        None where modules have hooks, or wrappers attributes, that cannot be told, and where there is no model of
        `transformers`.
    """
    try:
        told = [list(output_names), DEFAULT_OPSET, {name: version(name) for name in _EXPORTERS}]
        told += [_inputs(model, inputs), list(_modules(model)), _sources(model)]
    except (_UntoldError, GraphTemplateError):
        return None
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _inputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Types, and sizes along the axes that the graph does not leave open."""
    axes = dynamic_axes(model, inputs)
    return {
        name: [str(value.dtype), [axes.get(name, {}).get(axis, size) for axis, size in enumerate(value.shape)]]
        for name, value in inputs.items()
    }


def _modules(model: nn.Module) -> Iterator[Any]:
    """What decides what the modules compute."""
    prefix, inner = transformers_model(model)
    yield [model_fingerprint(inner), model_hash(model), repr(model)]
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise _UntoldError
        if not f"{name}.".startswith(prefix) and _package(type(module)) not in _KNOWN:
            own = {key: value for key, value in vars(module).items() if key not in vars(_plain())}
            yield [name, _described(own)]


def _plain() -> nn.Module:
    from torch import nn

    return nn.Module()


def _described(value: Any) -> Any:
    """An attribute, as JSON."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_described(each) for each in value]
    if isinstance(value, Mapping):
        return [[_described(key), _described(each)] for key, each in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, *(_described(getattr(value, field.name)) for field in fields(value))]
    raise _UntoldError


def _sources(model: nn.Module) -> list[str]:
    """Hashes of the code that exports, and of every module's that is neither torch's nor that of `transformers`."""
    kinds = {type(module) for module in model.modules() if _package(type(module)) not in _KNOWN}
    places = {Path(__file__).parents[1], Path(library.__file__).parent, *(_place(kind) for kind in kinds)}
    return sorted(_hash_of(place) for place in places)


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
    except (TypeError, OSError) as error:  # Written in a prompt.
        raise _UntoldError from error
    return file.parent if "." in kind.__module__ else file


def _hash_of(place: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
