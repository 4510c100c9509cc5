"""TensorRT without a GPU: the real binding over stub libraries, and objects that check every call against it.

The binding's docstrings hold the signature of every method. An object made here has a class's real attributes and no
others; a call is checked against the documented signatures, and gives an object of the class that is documented.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

# What the binding asks its libraries for when it is loaded; nothing of it is called.
_FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    *("getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins"),
)
_LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
_DISTRIBUTIONS = ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings")
_kept: list[ctypes.CDLL] = []


def load_binding(folder: Path) -> Any:
    """The real binding; skips where it or a compiler is missing."""
    found = [d for d in importlib.metadata.distributions() if d.metadata["Name"].replace("_", "-") in _DISTRIBUTIONS]
    compiler = shutil.which("cc")
    if not found or compiler is None:
        pytest.skip("needs tensorrt-cu13-bindings and a C compiler")
    if not _kept:
        source = folder / "stub.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
        major = found[0].version.split(".")[0]
        for library in _LIBRARIES:
            file = folder / f"{library}.so.{major}"
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file.name}", "-o", str(file), str(source)]
            subprocess.run(command, check=True)
            # Once a library of that name is loaded, the loader looks no further.
            _kept.append(ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL))
    import tensorrt_bindings

    return tensorrt_bindings


class ContractError(AssertionError):
    """The backend uses something that the binding does not have."""


def signatures(function: Any) -> list[tuple[list[tuple[str, bool]], str]]:
    """Documented signatures of a method: parameters with whether they have a default, and the type of the result."""
    text = function.__doc__ or ""
    found = []
    for line in text.splitlines():
        match = re.match(r"^(?:\d+\. )?\w+\((self: .*)\) -> (.+)$", line.strip())
        if match is None:
            continue
        parts = re.split(r", (?=\w+: )", match[1])[1:]
        parameters = [(part.partition(":")[0], " = " in part) for part in parts]
        found.append((parameters, match[2].rpartition(".")[2]))
    return found


def check_call(name: str, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The documented type of a call's result.

    Raises:
        ContractError: No documented signature takes these arguments.
    """
    known = signatures(function)
    for parameters, result in known:
        names = [parameter for parameter, _ in parameters]
        given = [*names[: len(args)], *kwargs]
        missing = [parameter for parameter, default in parameters if not default and parameter not in given]
        if len(args) <= len(names) and set(kwargs) <= set(names[len(args) :]) and not missing:
            return result
    raise ContractError(f"{name} takes none of {args} {dict(kwargs)}; it is {[p for p, _ in known]}.")


class Double:
    """An object of a class of the binding, as far as its documentation goes.

    Args:
        world: What calls answer with, and where they are recorded.
        kind: The class's name.
    """

    def __init__(self, world: World, kind: str) -> None:
        self.__dict__.update(_world=world, _kind=kind, _class=getattr(world.binding, kind))

    def __getattr__(self, name: str) -> Any:
        world, kind, cls = self._world, self._kind, self._class
        if not hasattr(cls, name):
            raise ContractError(f"{kind} has no {name!r}.")
        member = getattr(cls, name)
        if isinstance(member, property):
            return world.answers.get(f"{kind}.{name}", 0)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = check_call(f"{kind}.{name}", member, args, kwargs)
            world.calls.append((f"{kind}.{name}", args, kwargs))
            return world.answer(f"{kind}.{name}", result, args)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        member = getattr(self._class, name, None)
        if not isinstance(member, property) or member.fset is None:
            raise ContractError(f"{self._kind}.{name} cannot be set.")
        self._world.calls.append((f"{self._kind}.{name} =", (value,), {}))


class World:
    """The module `tensorrt` with doubles for what needs a GPU; everything else is the real binding's.

    Args:
        binding: The real binding.
        answers: ``Class.method`` -> a value, or a function of the call's arguments; doubles and True elsewhere.
    """

    DOUBLED = ("Builder", "OnnxParser", "Runtime")

    def __init__(self, binding: Any, answers: Mapping[str, Any]) -> None:
        self.binding = binding
        self.answers = dict(answers)
        self.calls: list[tuple[str, tuple[Any, ...], Mapping[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not hasattr(self.binding, name):
            raise ContractError(f"tensorrt has no {name!r}.")
        if name not in self.DOUBLED:
            return getattr(self.binding, name)

        def make(*args: Any, **kwargs: Any) -> Double:
            check_call(name, getattr(self.binding, name).__init__, args, kwargs)
            return Double(self, name)

        return make

    def answer(self, name: str, kind: str, args: tuple[Any, ...]) -> Any:
        """What a call gives: as told, an object of the documented class, or True."""
        if name in self.answers:
            found = self.answers[name]
            return found(*args) if callable(found) else found
        return Double(self, kind) if hasattr(self.binding, kind) else True

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of the calls of a method."""
        return [args for called, args, _ in self.calls if called == name]
