"""Exports of small modules, remembered: the exporter takes seconds for each, and tests export the same ones.

The first export of a module is the exporter's own; another of the same weights, attributes and options is a copy of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir
import torch
from torch import nn

LARGEST = 4_000_000  # Parameters; larger modules are exported anew.
Export = Callable[..., Any]


def remembering(export: Export, folder: Path) -> Export:
    """`torch.onnx.export`, but an export of the same module with the same options is read from a folder.

    Args:
        export: The true one.
        folder: Shared by all the test processes of a run.
    """

    def remembered(model: nn.Module, arguments: tuple[Any, ...] = (), **options: Any) -> Any:
        if arguments or not options.get("dynamo") or sum(p.numel() for p in model.parameters()) > LARGEST:
            return export(model, arguments, **options)
        path = folder / f"{fingerprint(model, options)}.onnx"
        if not path.exists():
            program = export(model, arguments, **options)
            if program is None:
                return program
            aside = path.with_suffix(f".{id(program)}.aside")
            onnx.save_model(onnx_ir.to_proto(program.model), aside)
            aside.replace(path)
            return program
        return SimpleNamespace(model=onnx_ir.from_proto(onnx.load_model(path)))

    return remembered


def fingerprint(model: nn.Module, options: Mapping[str, Any]) -> str:
    """Of everything that decides about the exported graph."""
    found = hashlib.sha256()
    for name, module in model.named_modules():
        found.update(json.dumps([name, described(type(module)), described(vars(module))]).encode())
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.update(json.dumps([name, described(tensor)]).encode())
    found.update(json.dumps(described(dict(options))).encode())
    return found.hexdigest()


def described(value: Any) -> Any:
    """As plain data: equal for equal values, and for other objects of the same class and attributes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        content = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return [str(value.dtype), list(value.shape), value.data_ptr() if not content else "", digest(content)]
    if isinstance(value, nn.Module):
        return described(type(value))  # Its own turn comes, or it is another module's.
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [described(part) for part in value]
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    inner = value.to_dict() if hasattr(value, "to_dict") else getattr(value, "__dict__", repr(value))
    return [type(value).__qualname__, described(inner)]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
