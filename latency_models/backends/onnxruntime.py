"""ONNX Runtime: the CPU by default, and any other execution provider by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from latency_models.backends.base import (
    BackendError,
    Inputs,
    Run,
    as_arrays,
    check_inputs,
    check_options,
    check_precision,
)
from latency_models.backends.graph_file import graph_bytes
from latency_models.backends.quantize import at_precision
from latency_models.device import Device

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ELEMENT_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeBackend:
    """Runs an ONNX graph: a ``ModelProto``, its bytes or its path.

    Options: ``graph_optimization`` (``all`` by default, ``extended``, ``basic``, ``disabled``).

    Args:
        device: A device whose provider is ``cpu``, ``cuda``, ``tensorrt``, ``openvino``, ... or the full name of an
            execution provider.

    Raises:
        BackendError: The provider is not in this build, or the precision or an option is unknown.
    """

    def __init__(self, device: Device) -> None:
        check_options(device, {"graph_optimization": str})
        check_precision(device, ("fp32", "fp16", "int8"))
        self._device = device
        self._level = str(device.options.get("graph_optimization", "all"))
        if self._level not in _LEVELS:
            raise BackendError(
                f"device {device.name!r}: `graph_optimization` must be one of {', '.join(_LEVELS)}, "
                f"but got {self._level!r}."
            )
        self._provider = _PROVIDERS.get(device.provider, device.provider)
        available = ort.get_available_providers()
        if self._provider not in available:
            raise BackendError(
                f"device {device.name!r}: this build of ONNX Runtime has no provider {device.provider!r}; "
                f"it has {', '.join(available)}."
            )

    def compile(self, model: Any, inputs: Inputs) -> Run:
        """Prepare a graph; see `Backend.compile`. An fp32 graph is converted to the device's precision first."""
        device = self._device
        arrays = as_arrays(inputs)
        # A graph that is already as it shall run is loaded from its path: external data lies beside it.
        ready = isinstance(model, str | Path) and device.precision == "fp32"
        source = str(model) if ready else graph_bytes(at_precision(model, device.precision))
        try:
            session = ort.InferenceSession(source, self._options(), providers=self._providers())
        except Exception as error:  # The runtime raises bare exceptions of its own hidden classes.
            raise BackendError(
                f"device {device.name!r}: ONNX Runtime refuses the graph: {first_line(error)}"
            ) from error
        if session.get_providers()[0] != self._provider:
            # ONNX Runtime only logs when a provider fails to load, and runs on the CPU: never a latency of this device.
            raise BackendError(
                f"device {device.name!r}: {self._provider} could not be loaded; check that its libraries are installed."
            )
        check_inputs(device, [entry.name for entry in session.get_inputs()], arrays)
        for entry in session.get_inputs():
            if entry.type in _ELEMENT_TYPES:
                arrays[entry.name] = arrays[entry.name].astype(_ELEMENT_TYPES[entry.type], copy=False)
        run = _CpuRun(session, arrays) if self._provider == _PROVIDERS["cpu"] else _BoundRun(session, arrays)
        try:
            run()
        except Exception as error:
            raise BackendError(f"device {device.name!r}: the graph does not run: {first_line(error)}") from error
        return run

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._device.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = _LEVELS[self._level]
        options.log_severity_level = 3
        # Threads of an idle session would go on spinning on the cores of the candidate that is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _providers(self) -> list[str]:
        """The wanted provider, and the CPU for what it cannot run."""
        cpu = _PROVIDERS["cpu"]
        return [cpu] if self._provider == cpu else [self._provider, cpu]


class _CpuRun:
    """A session on the CPU with its inputs bound."""

    def __init__(self, session: ort.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._session = session
        self._inputs = dict(inputs)
        self._names = [entry.name for entry in session.get_outputs()]

    def __call__(self) -> None:
        self._session.run(self._names, self._inputs)

    def outputs(self) -> dict[str, NDArray[Any]]:
        """The graph's outputs by name."""
        return dict(zip(self._names, self._session.run(self._names, self._inputs), strict=True))


class _BoundRun:
    """A session whose inputs and outputs stay on the provider's memory, so that no copies are timed."""

    def __init__(self, session: ort.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._session = session
        self._binding = session.io_binding()
        cuda = session.get_providers()[0] in (_PROVIDERS["cuda"], _PROVIDERS["tensorrt"])
        place = "cuda" if cuda else "cpu"
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, place, 0))
        self._names = [entry.name for entry in session.get_outputs()]
        for name in self._names:
            self._binding.bind_output(name, place, 0)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def outputs(self) -> dict[str, NDArray[Any]]:
        """The graph's outputs by name, copied to the host."""
        self()
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu(), strict=True))


def first_line(error: BaseException) -> str:
    """The first line of an exception's text: runtimes append pages of context."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
