"""The devices of this machine, and whether each of them works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from latency_models.backends.base import BackendError, backend_entry, make_backend
from latency_models.device import Device, library_version

# Providers that ship inside ONNX Runtime's builds but run elsewhere or are no device of their own.
_NOT_DEVICES = {"AzureExecutionProvider", "CPUExecutionProvider"}
_WIDTH = 256


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """A device that this machine may have.

    Args:
        device: The device.
        problem: Why it cannot be used and what would help, in one line; None when it works.
        check_ms: Median time of the check's small product, in milliseconds; None when it was not run.
    """

    device: Device
    problem: str | None = None
    check_ms: float | None = None


def find_devices(threads: int = 1, *, check_seconds: float = 0.2) -> list[FoundDevice]:
    """Every device that the runtimes offer here, checked; a backend that is not installed says what to install.

    Args:
        threads: Threads of the devices on the CPU.
        check_seconds: How long each device runs a small product; 0 only compiles it.
    """
    return [check_device(device, seconds=check_seconds) for device in _candidates(threads)]


def check_device(device: Device, *, seconds: float = 0.2) -> FoundDevice:
    """Compile and run a small product on a device, and compare what comes out with numpy's."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(_WIDTH, _WIDTH)).astype(np.float32) / np.float32(_WIDTH) ** 0.5
    values = generator.normal(size=(8, _WIDTH)).astype(np.float32)
    try:
        run = make_backend(device).compile(_product(device, weight), {"input": values})
        found = next(iter(run.outputs().values()))
        samples = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            begin = time.perf_counter()
            run()
            samples.append((time.perf_counter() - begin) * 1e3)
    except BackendError as error:
        return FoundDevice(device, problem=str(error))
    expected = values @ weight
    # Reduced precisions differ by a few percent; a device that computes something else differs by about 100.
    if not np.allclose(found, expected, atol=0.1 * float(np.abs(expected).max())):
        return FoundDevice(device, problem=f"device {device.name!r}: a small product comes out wrong.")
    return FoundDevice(device, check_ms=float(np.median(samples)) if samples else None)


def _candidates(threads: int) -> Iterator[Device]:
    """Devices worth checking, by backend and provider; each has a YAML file of its name."""
    yield Device("torch_cpu", "torch", threads)
    if _cuda():
        yield Device("torch_cuda", "torch", threads, provider="cuda")
        yield Device("torch_cuda_fp16", "torch", threads, "fp16", provider="cuda")
    yield Device("onnxruntime_cpu", "onnxruntime", threads)
    yield Device("onnxruntime_cpu_int8", "onnxruntime", threads, "int8")
    for provider in _providers():
        yield Device(f"onnxruntime_{provider.lower()}", "onnxruntime", threads, provider=provider)
    yield Device("openvino_cpu", "openvino", threads)
    if library_version("nncf") is not None:
        yield Device("openvino_cpu_int8", "openvino", threads, "int8")
    yield Device("tensorrt_cuda", "tensorrt", threads, provider="cuda")


def _cuda() -> bool:
    if library_version("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def _providers() -> list[str]:
    """Execution providers of the installed ONNX Runtime beside the CPU's, by the names that devices give them."""
    if all(library_version(name) is None for name in backend_entry("onnxruntime").distributions):
        return []
    import onnxruntime

    from latency_models.backends.onnxruntime import PROVIDERS

    short = {provider: name for name, provider in PROVIDERS.items()}
    return [short.get(name, name) for name in onnxruntime.get_available_providers() if name not in _NOT_DEVICES]


def _product(device: Device, weight: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """``input @ weight`` as the device's backend takes it."""
    if backend_entry(device.backend).takes == "module":
        import torch

        class Product(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.from_numpy(weight.T.copy()), requires_grad=False)

            def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name of the graph's input.
                return torch.nn.functional.linear(input, self.weight)

        return Product().eval()
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"], name="product/MatMul")],
        "check",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["rows", _WIDTH])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["rows", _WIDTH])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
