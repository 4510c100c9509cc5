"""ONNX Runtime: the CPU by default, and any other execution provider by name.

Bundles carry this file to machines that have nothing but Python, numpy and ONNX Runtime: nothing else is imported here.
"""

from __future__ import annotations

import re
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
    with_cache,
)
from latency_models.backends.byte_products import suited
from latency_models.backends.graph_file import graph_bytes, input_names
from latency_models.backends.quantize import at_precision, is_quantized
from latency_models.device import Device

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
_OPTIONS: Mapping[str, type] = {
    "graph_optimization": str,
    "quantization": str,
    "cuda_graph": bool,
    "tf32": bool,
    "engine_cache": str,
    "openvino_device": str,
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

    Options: ``graph_optimization`` (``all`` by default, ``extended``, ``basic``, ``disabled``); ``quantization`` of
    int8 (``dynamic`` by default, or ``static``: activations' scales from the inputs at hand, as unsigned integers);
    ``cuda_graph``, ``tf32`` and ``engine_cache`` (a folder for TensorRT's engines) on NVIDIA's providers;
    ``openvino_device`` (``CPU`` by default, ``GPU``, ``NPU``).

    Args:
        device: A device whose provider is ``cpu``, ``cuda``, ``tensorrt``, ``openvino``, ... or the full name of an
            execution provider.

    Raises:
        BackendError: The provider is not in this build, or the precision or an option is unknown.
    """

    def __init__(self, device: Device) -> None:
        check_options(device, _OPTIONS)
        check_precision(device, ("fp32", "fp16", "int8", "int4"))
        self._device = device
        self._level = _choice(device, "graph_optimization", tuple(_LEVELS))
        self._static = _choice(device, "quantization", ("dynamic", "static")) == "static"
        self._provider = PROVIDERS.get(device.provider, device.provider)
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
        source = str(model) if ready else self.deployed(model, arrays)
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
        arrays = with_cache({entry.name: entry.shape for entry in session.get_inputs()}, arrays)
        check_inputs(device, [entry.name for entry in session.get_inputs()], arrays)
        for entry in session.get_inputs():
            if entry.type in _ELEMENT_TYPES:
                arrays[entry.name] = arrays[entry.name].astype(_ELEMENT_TYPES[entry.type], copy=False)
        try:
            run = _CpuRun(session, arrays) if self._provider == PROVIDERS["cpu"] else _BoundRun(session, arrays)
            run()
        except Exception as error:
            raise BackendError(f"device {device.name!r}: the graph does not run: {first_line(error)}") from error
        return run

    def deployed(self, model: Any, inputs: Inputs) -> bytes:
        """A graph as this device runs it, in its precision, serialised: what a file of it would hold.

        Raises:
            BackendError: It is not an ONNX graph, or too large for one piece of bytes.
        """
        return graph_bytes(self._converted(model, as_arrays(inputs)))

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

    def _providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """The wanted provider with its settings, and the CPU for what it cannot run."""
        cpu = PROVIDERS["cpu"]
        return [cpu] if self._provider == cpu else [(self._provider, provider_options(self._device)), cpu]

    def _converted(self, model: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """The graph in the device's precision, in the form that the provider has kernels for."""
        precision = self._device.precision
        if (
            precision == "int8"
            and not is_quantized(model)
            and (self._static or self._provider == PROVIDERS["openvino"])
        ):
            from latency_models.backends.quantize_static import quantize_static

            check_inputs(self._device, input_names(model), arrays)
            quantized = quantize_static(model, (arrays,))
            # OpenVINO knows signed weights, and keeps them from overflowing itself.
            return suited(quantized, unsigned=False) if self._provider == PROVIDERS["openvino"] else quantized
        return at_precision(
            model,
            precision,
            form="qdq" if self._provider == PROVIDERS["tensorrt"] else "operators",
            calibration=(arrays,),
        )


def provider_options(device: Device) -> dict[str, str]:
    """Settings of a device's execution provider, as ONNX Runtime takes them: texts by name."""
    options, provider = device.options, PROVIDERS.get(device.provider, device.provider)
    if provider == PROVIDERS["cuda"]:
        return {
            "enable_cuda_graph": _flag(options.get("cuda_graph", False)),
            # Unasked, the provider runs fp32 products with TF32's ten bits of mantissa.
            "use_tf32": _flag(options.get("tf32", False)),
        }
    if provider == PROVIDERS["tensorrt"]:
        found = {
            "trt_fp16_enable": _flag(device.precision == "fp16"),
            "trt_int8_enable": _flag(device.precision == "int8"),
            "trt_cuda_graph_enable": _flag(options.get("cuda_graph", False)),
        }
        if (folder := options.get("engine_cache")) is not None:
            found |= dict.fromkeys(("trt_engine_cache_enable", "trt_timing_cache_enable"), "1")
            found |= dict.fromkeys(("trt_engine_cache_path", "trt_timing_cache_path"), str(folder))
        return found
    if provider == PROVIDERS["openvino"]:
        place = str(options.get("openvino_device", "CPU"))
        found = {"device_type": place, "num_of_threads": str(device.threads), "num_streams": "1"}
        # Unasked, OpenVINO runs fp32 graphs in half precision where the processor has it.
        return found | {"precision": "FP16" if device.precision == "fp16" else "FP32"}
    return {}


def _choice(device: Device, name: str, known: tuple[str, ...]) -> str:
    """One of the values that an option may have; its default is ``all`` or the first."""
    value = str(device.options.get(name, "all" if "all" in known else known[0]))
    if value not in known:
        raise BackendError(f"device {device.name!r}: `{name}` must be one of {', '.join(known)}, but got {value!r}.")
    return value


def _flag(value: Any) -> str:
    return "1" if value else "0"


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

    def feed(self, inputs: Inputs) -> None:
        """Bind other inputs."""
        given = {name: array.astype(self._inputs[name].dtype) for name, array in as_arrays(inputs).items()}
        self._inputs = {**self._inputs, **given}


class _BoundRun:
    """A session whose inputs and outputs stay in the provider's memory, so that no copies are timed."""

    def __init__(self, session: ort.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._session = session
        self._binding = session.io_binding()
        cuda = session.get_providers()[0] in (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
        place = "cuda" if cuda else "cpu"
        # On the CPU the values share the arrays' memory, so these must live as long, and be nobody else's.
        self._arrays = {name: np.array(array) for name, array in inputs.items()}
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array, place, 0) for name, array in self._arrays.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._names = [entry.name for entry in session.get_outputs()]
        for name in self._names:
            self._binding.bind_output(name, place, 0)
        session.run_with_iobinding(self._binding)
        # From here on into the same memory: nothing is allocated in a timed run, and CUDA graphs need fixed addresses.
        for name, value in zip(self._names, self._binding.get_outputs(), strict=True):
            self._values[name] = value
            self._binding.bind_ortvalue_output(name, value)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def outputs(self) -> dict[str, NDArray[Any]]:
        """The graph's outputs by name, copied to the host."""
        self()
        return dict(zip(self._names, (np.array(a) for a in self._binding.copy_outputs_to_cpu()), strict=True))

    def feed(self, inputs: Inputs) -> None:
        """Copy other inputs into the bound memory."""
        for name, array in as_arrays(inputs).items():
            self._values[name].update_inplace(array.astype(self._arrays[name].dtype))


def first_line(error: BaseException) -> str:
    """What an exception of ONNX Runtime says, in one line: without its codes, source files and pages of context."""
    text = str(error).strip() or type(error).__name__
    if found := re.search(r"Opset (\d+) is under development.* till opset (\d+)", text):
        return f"it is of opset {found[1]}, this runtime knows up to {found[2]}; export it with an older one."
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text.splitlines()[0])
    return re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", line)[:300]
