"""TensorRT: engines built from ONNX graphs.

Networks are strongly typed: TensorRT 11 has no FP16 and INT8 switches, a tensor's precision is the graph's own. Device
memory and the stream are torch's, which needs its CUDA build for it.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from latency_models.backends.graph_file import graph_bytes, input_names
from latency_models.backends.quantize import at_precision
from latency_models.backends.tensorrt_operators import PARSER_VERSION, unsupported
from latency_models.device import Device

ENGINE_SUFFIX = ".engine"
_OPTIONS: Mapping[str, type] = {
    "optimization_level": int,
    "workspace_mb": int,
    "timing_cache": str,
    "cuda_graph": bool,
    "tf32": bool,
    "max_batch_size": int,
    "max_sequence_length": int,
}
# Where engines' inputs and outputs lie.
_PLACE = "cuda"


class TensorRtBackend:
    """Builds and runs engines.

    Options: ``optimization_level`` (0 to 5: the builder's effort), ``workspace_mb``, ``timing_cache`` (a file that
    makes the next build faster), ``cuda_graph`` (replay a recorded run), ``tf32`` (let fp32 products run in TF32; off
    unless asked for), ``max_batch_size`` and ``max_sequence_length`` (of the engine's dynamic shapes; those of the
    inputs unless given).

    Args:
        device: A device whose provider is ``cuda``.

    Raises:
        BackendError: TensorRT or a CUDA device is missing, or the precision or an option is unknown.
    """

    def __init__(self, device: Device) -> None:
        check_options(device, _OPTIONS)
        check_precision(device, ("fp32", "fp16", "int8", "int4"))
        if device.provider != "cuda":
            raise BackendError(
                f"device {device.name!r}: `provider` must be cuda for tensorrt, but got {device.provider!r}."
            )
        self._device = device
        self._trt = import_tensorrt(device)
        if not torch.cuda.is_available():
            raise BackendError(f"device {device.name!r}: torch sees no CUDA device; install a CUDA build of torch.")
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)

    def compile(self, model: Any, inputs: Inputs) -> Run:
        """Build an engine for a graph, or load one from a path that ends in ``.engine``; see `Backend.compile`."""
        arrays = as_arrays(inputs)
        if isinstance(model, str | Path) and Path(model).suffix == ENGINE_SUFFIX:
            engine = _read(Path(model), self._device)
        else:
            engine = self.build(model, arrays)
        run = _TensorRtRun(self._trt, self._load(engine), arrays, self._device)
        run()
        return run

    def build(self, model: Any, inputs: Inputs) -> bytes:
        """The serialised engine of a graph: for this GPU and this version of TensorRT.

        Args:
            model: An fp32 ONNX graph, or one that already has the device's precision.
            inputs: Inputs of the shapes to optimise for.

        Raises:
            BackendError: TensorRT cannot build it.
        """
        trt, device, arrays = self._trt, self._device, as_arrays(inputs)
        check_inputs(device, input_names(model), arrays)
        graph = at_precision(model, device.precision, form="qdq", calibration=(arrays,))
        if refused := unsupported(graph):
            raise BackendError(
                f"device {device.name!r}: TensorRT's ONNX parser does not list {refused[0]} (as of {PARSER_VERSION})."
            )
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(graph_bytes(graph)):
            reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
            raise BackendError(f"device {device.name!r}: TensorRT refuses the graph: {reason}")
        config = builder.create_builder_config()
        self._configure(config)
        profile = builder.create_optimization_profile()
        self._add_shapes(network, profile, arrays)
        config.add_optimization_profile(profile)
        return self._serialized(builder, network, config)

    def _configure(self, config: Any) -> None:
        trt, options = self._trt, self._device.options
        # Layers' names and precisions stay in the engine: `layers` tells them.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.builder_optimization_level = int(options.get("optimization_level", 3))
        if options.get("tf32", False):
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        if "workspace_mb" in options:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options["workspace_mb"]) * 2**20)

    def _add_shapes(self, network: Any, profile: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The range of every dynamic axis: from 1 to the option's size, at its best at the inputs' sizes."""
        entries = [network.get_input(index) for index in range(network.num_inputs)]
        options = self._device.options
        limits = [int(options.get("max_batch_size", 0)), int(options.get("max_sequence_length", 0))]
        for entry in entries:
            sizes = tuple(arrays[entry.name].shape)
            dynamic = [size == -1 for size in tuple(entry.shape)]
            low = tuple(1 if free else size for free, size in zip(dynamic, sizes, strict=True))
            wanted = [*limits, *([0] * len(sizes))]
            high = tuple(max(s, w) if free else s for free, s, w in zip(dynamic, sizes, wanted, strict=False))
            profile.set_shape(entry.name, low, sizes, high)

    def _serialized(self, builder: Any, network: Any, config: Any) -> bytes:
        """Build, with the timing cache of earlier builds where there is one."""
        name = self._device.options.get("timing_cache")
        path = None if name is None else Path(str(name))
        if path is not None:
            known = path.read_bytes() if path.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise BackendError(f"device {self._device.name!r}: TensorRT could not build an engine; its log says why.")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f"{path.name}.{os.getpid()}")
            aside.write_bytes(bytes(config.get_timing_cache().serialize()))
            aside.replace(path)
        return bytes(engine)

    def _load(self, engine: bytes) -> Any:
        loaded = self._trt.Runtime(self._logger).deserialize_cuda_engine(engine)
        if loaded is None:
            raise BackendError(
                f"device {self._device.name!r}: the engine was built for another GPU or another version of TensorRT; "
                "build it again on this machine."
            )
        return loaded


class _TensorRtRun:
    """An engine's one context with its inputs and outputs bound."""

    def __init__(self, trt: Any, engine: Any, inputs: Mapping[str, NDArray[Any]], device: Device) -> None:
        self._trt, self._engine, self._device = trt, engine, device
        self._context = engine.create_execution_context()
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._inputs: dict[str, torch.Tensor] = {}
        self._outputs: dict[str, torch.Tensor] = {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        taken = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        check_inputs(device, taken, inputs)
        for name in taken:
            self._bind_input(name, inputs[name])
        for name in names:
            if name not in taken:
                self._bind_output(name)
        self._enqueue = self._recorded() if device.options.get("cuda_graph", False) else self._execute

    def __call__(self) -> None:
        self._enqueue()
        self._stream.synchronize()

    def outputs(self) -> dict[str, NDArray[Any]]:
        """The engine's outputs by name, half precision as float32, copied to the host."""
        self()
        found = {name: value.detach().cpu() for name, value in self._outputs.items()}
        return {n: np.array((v.float() if v.is_floating_point() else v).numpy()) for n, v in found.items()}

    def feed(self, inputs: Inputs) -> None:
        """Copy other inputs into the bound memory."""
        for name, array in as_arrays(inputs).items():
            self._inputs[name].copy_(torch.as_tensor(array))

    def layers(self) -> list[Any]:
        """What the builder made of the graph, layer by layer, as the engine inspector tells it."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        found = json.loads(text).get("Layers", [])
        return list(found)

    def _bind_input(self, name: str, array: NDArray[Any]) -> None:
        dtype = _torch_dtype(self._trt, self._engine.get_tensor_dtype(name), self._device)
        self._inputs[name] = torch.as_tensor(array).to(device=_PLACE, dtype=dtype).contiguous()
        if not self._context.set_input_shape(name, tuple(array.shape)):
            low, _, high = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, 0))
            raise BackendError(
                f"device {self._device.name!r}: {name} must be between {low} and {high} for this engine, "
                f"but is {tuple(array.shape)}."
            )
        self._context.set_tensor_address(name, self._inputs[name].data_ptr())

    def _bind_output(self, name: str) -> None:
        dtype = _torch_dtype(self._trt, self._engine.get_tensor_dtype(name), self._device)
        shape = tuple(self._context.get_tensor_shape(name))
        self._outputs[name] = torch.empty(shape, dtype=dtype, device=_PLACE)
        self._context.set_tensor_address(name, self._outputs[name].data_ptr())

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise BackendError(f"device {self._device.name!r}: the engine does not run; TensorRT's log says why.")

    def _recorded(self) -> Callable[[], None]:
        """One run as a CUDA graph: replaying it costs one launch instead of one per kernel."""
        self._execute()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._execute()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay


def import_tensorrt(device: Device) -> Any:
    """The Python binding; the wheel of the binding alone has another name.

    Raises:
        BackendError: There is none, or its libraries are missing.
    """
    reasons = []
    for name in ("tensorrt", "tensorrt_bindings"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            reasons.append(str(error).splitlines()[0])
    why = f"its libraries cannot be loaded ({reasons[0]})" if reasons else "it is not installed"
    raise BackendError(f"device {device.name!r}: TensorRT: {why}; run `pip install hwnas[tensorrt]`.")


def _torch_dtype(trt: Any, kind: Any, device: Device) -> torch.dtype:
    """The tensor type in which an engine's input or output is handed over."""
    kinds = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
        trt.DataType.INT8: torch.int8,
        trt.DataType.UINT8: torch.uint8,
        trt.DataType.BOOL: torch.bool,
    }
    if kind not in kinds:
        raise BackendError(f"device {device.name!r}: an engine's input or output cannot be of type {kind}.")
    return kinds[kind]


def _read(path: Path, device: Device) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BackendError(f"device {device.name!r}: {path}: {error.strerror}.") from error
