"""What a backend is: one method that turns a model and its inputs into something that runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from latency_models.device import Device, library_version

if TYPE_CHECKING:
    from torch import Tensor

# What the names of a graph's cached keys and values begin with: as `optimum` calls them.
PAST = "past_key_values."
# A model's inputs by keyword, as the tokenizer names them.
Inputs: TypeAlias = Mapping[str, "Tensor | NDArray[Any]"]


class BackendError(RuntimeError):
    """A device cannot do what it is asked for; the message is one line that says what would help."""


@runtime_checkable
class Run(Protocol):
    """A compiled model with its inputs bound."""

    def __call__(self) -> None:
        """Run once; return when the work is done, on a GPU too."""

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Run once and return what came out, by the outputs' names."""

    def feed(self, inputs: Inputs) -> None:
        """Bind other inputs of the same names and shapes."""


class Backend(Protocol):
    """A runtime on a device."""

    def compile(self, model: Any, inputs: Inputs) -> Run:
        """Prepare a model for the device.

        Args:
            model: What the runtime takes: an ``nn.Module`` for torch, an ONNX graph (a ``ModelProto``, its bytes or its
                path) for the others. It is not changed.
            inputs: Tensors or arrays by input name, of the shapes that will be run.

        Raises:
            BackendError: The device cannot run this model, or the model has other inputs.
        """


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """Where a backend lives, what installs it, what it takes, and which precisions single blocks can have on it."""

    module: str
    factory: str
    distributions: tuple[str, ...]
    install: str
    takes: str
    block_precisions: tuple[str, ...] = ("fp32",)


# Imported only when a device of theirs is used: all but torch and onnxruntime are optional.
BACKENDS: Mapping[str, BackendEntry] = {
    "torch": BackendEntry("latency_models.backends.torch", "TorchBackend", ("torch",), "torch", "module"),
    "onnxruntime": BackendEntry(
        "latency_models.backends.onnxruntime",
        "OnnxRuntimeBackend",
        ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
        "onnxruntime",
        "onnx",
        ("fp32", "int8", "int4"),
    ),
    "openvino": BackendEntry(
        "latency_models.backends.openvino", "OpenVinoBackend", ("openvino",), "hwnas[openvino]", "onnx"
    ),
    "tensorrt": BackendEntry(
        "latency_models.backends.tensorrt",
        "TensorRtBackend",
        ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings"),
        "hwnas[tensorrt]",
        "onnx",
        ("fp32", "int8", "int4"),
    ),
}


def backend_entry(name: str) -> BackendEntry:
    """The table's row of a backend.

    Raises:
        ValueError: There is no backend of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"`device.backend` must be one of {', '.join(sorted(BACKENDS))}, but got {name!r}.")
    return BACKENDS[name]


def check_installed(device: Device) -> BackendEntry:
    """Refuse a device of this machine whose runtime is not there, before anything is done for it.

    Raises:
        ValueError: There is no backend of that name.
        BackendError: It is not installed.
    """
    entry = backend_entry(device.backend)
    if device.transport == "local" and all(library_version(name) is None for name in entry.distributions):
        raise BackendError(
            f"device {device.name!r}: {device.backend} is not installed; run `pip install {entry.install}`."
        )
    return entry


def make_backend(device: Device) -> Backend:
    """The backend of a device.

    Raises:
        ValueError: There is no backend of that name.
        BackendError: It is not installed, or has no such provider, precision or option.
    """
    entry = check_installed(device)
    if device.transport != "local":
        raise BackendError(f"device {device.name!r}: is another machine; only a bundle can be measured on it.")
    backend: Backend = getattr(importlib.import_module(entry.module), entry.factory)(device)
    return backend


def check_options(device: Device, known: Mapping[str, type | tuple[type, ...]]) -> None:
    """Refuse options that a backend does not have.

    Raises:
        BackendError: An option is unknown or of the wrong type.
    """
    for key, value in device.options.items():
        if key not in known:
            names = ", ".join(sorted(known)) or "none"
            raise BackendError(f"device {device.name!r}: unknown option {key!r}; {device.backend} has {names}.")
        if not isinstance(value, known[key]):
            raise BackendError(f"device {device.name!r}: option {key!r} has the wrong type: {value!r}.")


def check_precision(device: Device, known: tuple[str, ...]) -> None:
    """Refuse a precision that a backend does not have.

    Raises:
        BackendError: The device's precision is not among the known ones.
    """
    if device.precision not in known:
        raise BackendError(
            f"device {device.name!r}: `precision` must be one of {', '.join(known)} for {device.backend}, "
            f"but got {device.precision!r}."
        )


def check_inputs(device: Device, expected: list[str], inputs: Mapping[str, Any]) -> None:
    """Refuse inputs that are not exactly those of the model.

    Raises:
        BackendError: One is missing or unknown.
    """
    if missing := [name for name in expected if name not in inputs]:
        raise BackendError(f"device {device.name!r}: the model needs input {missing[0]!r}, which is not given.")
    if extra := [name for name in inputs if name not in expected]:
        raise BackendError(
            f"device {device.name!r}: the model has no input {extra[0]!r}; its inputs are {', '.join(expected)}."
        )


def with_cache(shapes: Mapping[str, Sequence[Any]], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A causal model's inputs with zeros for those parts of its KV cache that are not given.

    As many tokens are cached as the attention mask is longer than the new tokens. Others' inputs stay as they are.

    Args:
        shapes: The graph's inputs: name -> ``(batch, heads, tokens, head_dim)`` of the cache's parts.
        inputs: What is given.
    """
    missing = [name for name in shapes if name.startswith(PAST) and name not in inputs]
    if not missing or not {"input_ids", "attention_mask"} <= set(inputs):
        return dict(inputs)
    (batch, new), total = inputs["input_ids"].shape, inputs["attention_mask"].shape[1]
    sizes = {name: (batch, int(shapes[name][1]), total - new, int(shapes[name][3])) for name in missing}
    return {**inputs, **{name: np.zeros(size, dtype=np.float32) for name, size in sizes.items()}}


def as_arrays(inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Inputs as contiguous arrays."""
    arrays = {}
    for name, value in inputs.items():
        array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
        arrays[name] = np.ascontiguousarray(array)
    return arrays
