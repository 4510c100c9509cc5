"""OpenVINO: a second CPU runtime, fed with the same ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import properties

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
from latency_models.backends.openvino_graph import compress_weights, input_sizes, quantize, read_graph
from latency_models.device import Device

# What a product computes in; quantised ones say so in the graph.
_HINTS = {
    "fp32": openvino.Type.f32,
    "bf16": openvino.Type.bf16,
    "fp16": openvino.Type.f16,
    "int8": openvino.Type.f32,
    "int4": openvino.Type.f32,
}
_QUANTIZATIONS = ("dynamic", "static")


class OpenVinoBackend:
    """Runs an ONNX graph, or a model in OpenVINO's own files, through OpenVINO.

    Option ``quantization`` of int8: ``dynamic`` (the default: weights in int8, activations scaled as they come) or
    ``static`` (activations' scales from the inputs at hand).

    Args:
        device: A device whose provider is ``cpu`` or ``gpu``.

    Raises:
        BackendError: OpenVINO has no such device here, or the precision or an option is unknown.
    """

    def __init__(self, device: Device) -> None:
        check_options(device, {"quantization": str})
        check_precision(device, tuple(_HINTS))
        if (found := device.options.get("quantization", "dynamic")) not in _QUANTIZATIONS:
            raise BackendError(
                f"device {device.name!r}: `quantization` must be one of {', '.join(_QUANTIZATIONS)}, but got {found!r}."
            )
        self._device = device
        self._core = openvino.Core()
        self._place = device.provider.upper()
        available = self._core.available_devices
        if self._place not in {name.partition(".")[0] for name in available}:
            raise BackendError(
                f"device {device.name!r}: OpenVINO finds no {device.provider!r} here; it finds {', '.join(available)}."
            )

    def compile(self, model: Any, inputs: Inputs) -> Run:
        """Prepare a graph; see `Backend.compile`. Shapes are fixed to those of the inputs."""
        device = self._device
        arrays = as_arrays(inputs)
        try:
            graph, quantized = read_graph(model)
            arrays = with_cache(input_sizes(graph), arrays)
            graph = self._converted(graph, arrays, quantized=quantized)
            graph.reshape({name: openvino.PartialShape(list(array.shape)) for name, array in arrays.items()})
            compiled = self._core.compile_model(graph, self._place, self._settings())
        except RuntimeError as error:
            if isinstance(error, BackendError):
                raise
            line = str(error).strip().splitlines()[-1][:300]
            raise BackendError(f"device {device.name!r}: OpenVINO refuses the graph: {line}") from error
        run = _OpenVinoRun(compiled, arrays)
        run()
        return run

    def _converted(self, graph: Any, arrays: Mapping[str, NDArray[Any]], *, quantized: bool) -> Any:
        """The model in the device's precision; one that is quantised already stays as it is."""
        check_inputs(self._device, [entry.get_any_name() for entry in graph.inputs], arrays)
        precision = self._device.precision
        if quantized or precision not in ("int8", "int4"):
            return graph
        if precision == "int8" and self._device.options.get("quantization") == "static":
            return quantize(graph, (arrays,))
        return compress_weights(graph, precision)

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            properties.hint.performance_mode(): properties.hint.PerformanceMode.LATENCY,
            properties.num_streams(): 1,
            # Unasked, OpenVINO runs fp32 graphs in bf16 on CPUs that have it.
            properties.hint.inference_precision(): _HINTS[self._device.precision],
        }
        if self._place == "CPU":
            settings[properties.inference_num_threads()] = self._device.threads
            settings[properties.hint.enable_cpu_pinning()] = False
        return settings


class _OpenVinoRun:
    """A compiled model's one request with its inputs bound."""

    def __init__(self, compiled: Any, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._request = compiled.create_infer_request()
        # The tensors share the arrays' memory, so these must live as long as the request, and be nobody else's.
        self._inputs = {name: np.array(array) for name, array in inputs.items()}
        for name, array in self._inputs.items():
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        self._names = [output.get_any_name() for output in compiled.outputs]

    def __call__(self) -> None:
        self._request.infer()

    def outputs(self) -> dict[str, NDArray[Any]]:
        """The graph's outputs by name."""
        self._request.infer()
        return {name: np.array(self._request.get_output_tensor(index).data) for index, name in enumerate(self._names)}

    def feed(self, inputs: Inputs) -> None:
        """Copy other inputs into the bound memory."""
        for name, array in as_arrays(inputs).items():
            np.copyto(self._inputs[name], array)
