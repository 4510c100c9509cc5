"""torch: eager, `torch.compile` and recorded CUDA graphs, on CPU and CUDA."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latency_models.backends.base import BackendError, Inputs, Run, check_options, check_precision
from latency_models.backends.own_frame import own_frame
from latency_models.device import Device

# Libraries make their workspaces and choose their kernels in the first runs, which a recording must not hold.
_RUNS_BEFORE_RECORDING = 3
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """Runs an ``nn.Module`` whose forward takes its inputs by keyword and returns a tensor or a tuple of tensors.

    Options: ``compile`` (bool) runs it through ``torch.compile``; ``mode`` (str) is `torch.compile`'s own mode, e.g.
    ``max-autotune`` or ``reduce-overhead`` (CUDA graphs). ``cuda_graph`` (bool) records the eager kernels once and
    replays them: a run then costs the GPU's time alone, not Python's, and nothing is compiled.

    Args:
        device: A device whose backend is ``torch`` and whose provider is ``cpu`` or ``cuda``.

    Raises:
        BackendError: The provider, precision or an option is not torch's.
    """

    def __init__(self, device: Device) -> None:
        check_options(device, {"compile": bool, "mode": str, "cuda_graph": bool})
        check_precision(device, tuple(_DTYPES))
        if device.provider not in ("cpu", "cuda"):
            raise BackendError(
                f"device {device.name!r}: `provider` must be cpu or cuda for torch, but got {device.provider!r}."
            )
        if device.options.get("cuda_graph", False):
            _check_recordable(device)
        if device.provider == "cuda" and not torch.cuda.is_available():
            raise BackendError(f"device {device.name!r}: torch sees no CUDA device; install a CUDA build of torch.")
        self._device = device

    def compile(self, model: Any, inputs: Inputs) -> Run:
        """Prepare a module; see `Backend.compile`. With ``compile`` set, its kernels are made here."""
        device = self._device
        if not isinstance(model, nn.Module):
            raise BackendError(f"device {device.name!r}: torch takes an nn.Module, but got {type(model).__name__}.")
        module = _converted(model, device)
        place = torch.device(device.provider)
        # Copies: other inputs are written over them later.
        bound = {name: torch.as_tensor(value).to(place, copy=True) for name, value in inputs.items()}
        dtype = _DTYPES[device.precision]
        bound = {name: value.to(dtype) if value.is_floating_point() else value for name, value in bound.items()}
        try:
            with _quiet_compiler():
                run = _TorchRun(_prepared(module, bound, device), bound, device)
                run()
        except TypeError as error:
            raise BackendError(f"device {device.name!r}: the model refuses its inputs ({error}).") from error
        return run


class _TorchRun:
    """A module with its inputs bound."""

    def __init__(self, function: Callable[..., Any], inputs: Mapping[str, Tensor], device: Device) -> None:
        self._function = function
        self._inputs = dict(inputs)
        self._threads = device.threads
        self._synchronize = device.provider == "cuda"

    def __call__(self) -> None:
        self._forward()

    def outputs(self) -> dict[str, NDArray[Any]]:
        """The outputs as float32 arrays: by name where the model names them, else ``output_0, output_1, ...``."""
        return {name: _array(value) for name, value in _named(self._forward()).items()}

    def feed(self, inputs: Inputs) -> None:
        """Copy other inputs into the bound tensors: recorded kernels know their addresses."""
        for name, value in inputs.items():
            self._inputs[name].copy_(torch.as_tensor(value))

    def _forward(self) -> Any:
        with _threads(self._threads), torch.inference_mode():
            result = self._function(**self._inputs)
            if self._synchronize:
                torch.cuda.synchronize()
        return result


def _prepared(module: nn.Module, inputs: Mapping[str, Tensor], device: Device) -> Callable[..., Any]:
    """The module as it is, compiled, or recorded."""
    if device.options.get("cuda_graph", False):
        return _recorded(module, inputs, device)
    if device.options.get("compile", False):
        mode = device.options.get("mode")
        return torch.compile(own_frame(module), dynamic=False, mode=None if mode is None else str(mode))
    return module


def _check_recordable(device: Device) -> None:
    """Refuse CUDA graphs where there is none to record, or where the compiler records its own."""
    if device.provider != "cuda":
        raise BackendError(
            f"device {device.name!r}: `options.cuda_graph` needs provider cuda, but got {device.provider!r}."
        )
    if device.options.get("compile", False):
        raise BackendError(
            f"device {device.name!r}: give either `options.cuda_graph` or `options.compile`; the compiler records its "
            "own with `options.mode: reduce-overhead`."
        )


def _recorded(module: nn.Module, inputs: Mapping[str, Tensor], device: Device) -> Callable[..., Any]:
    """The module's kernels on these inputs as one CUDA graph; what it returns lies where it lay when recorded."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(_RUNS_BEFORE_RECORDING):
            module(**inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.inference_mode(), torch.cuda.graph(graph):
            result = module(**inputs)
    except RuntimeError as error:
        raise BackendError(
            f"device {device.name!r}: the model cannot be recorded as a CUDA graph "
            f"({str(error).strip().splitlines()[0]}); leave `options.cuda_graph` out."
        ) from error

    def replay(**_: Tensor) -> Any:
        graph.replay()
        return result

    # The graph knows the weights' addresses only, and does not keep them from being freed.
    replay.module = module  # type: ignore[attr-defined]
    return replay


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run with so many threads. The setting is the process's, so it is put back: training may go on beside it."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet_compiler() -> Iterator[None]:
    """The compiler of torch, which is imported and run lazily, warns of its own deprecated parts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
        yield


def _converted(model: nn.Module, device: Device) -> nn.Module:
    """The model in the device's precision and place, in evaluation mode; a copy wherever that means a change."""
    dtype, place = _DTYPES[device.precision], torch.device(device.provider)
    tensors = [*model.parameters(), *model.buffers()]
    fits = all(t.device.type == place.type and (t.dtype == dtype or not t.is_floating_point()) for t in tensors)
    if fits and not any(module.training for module in model.modules()):
        return model
    return copy.deepcopy(model).eval().to(device=place, dtype=dtype)


def _named(result: Any) -> dict[str, Tensor]:
    """The tensors that a forward pass returned, by name."""
    if isinstance(result, Tensor):
        return {"output_0": result}
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items() if isinstance(value, Tensor)}
    return {f"output_{index}": value for index, value in enumerate(result) if isinstance(value, Tensor)}


def _array(value: Tensor) -> NDArray[Any]:
    value = value.detach().cpu()
    return np.asarray((value.float() if value.is_floating_point() else value).numpy())
