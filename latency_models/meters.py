"""Meters beside latency: peak memory, throughput, and energy where the machine has a counter for it.

There is no energy without a meter: nothing here estimates it.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from latency_models.backends.base import Run
from latency_models.device import Device
from latency_models.isolation import run_isolated

if TYPE_CHECKING:  # What is imported here stands in the memory of every process that is measured.
    from search_spaces.cost import Workload

_POWERCAP = Path("/sys/class/powercap")


def throughput(workload: Workload, latency_ms: float) -> float:
    """Sequences per second at one run after the other.

    Raises:
        ValueError: The latency is not positive.
    """
    if not latency_ms > 0:
        raise ValueError(f"`latency_ms` must be positive, but got {latency_ms!r}.")
    return workload.batch_size * 1e3 / latency_ms


# -- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """High-water marks of a process that only loads and runs a model, in MB (10^6 bytes).

    Args:
        host_mb: Of the resident memory. The runtime itself is included: it is what the deployment needs.
        gpu_mb: Of the GPU's memory; None on a CPU, or where nothing tells it.
        gpu_source: Who counted it: ``torch`` (its allocator: tensors alone) or ``nvml`` (the driver: everything of the
            process, kernels' code and the runtime's arena included).
    """

    host_mb: float
    gpu_mb: float | None = None
    gpu_source: str = ""


def peak_memory(compile_run: Callable[[], Run], device: Device, *, runs: int = 3) -> PeakMemory:
    """Peak memory of a model on its device.

    Args:
        compile_run: Compiles the model; picklable (`SubnetCompiler.file_job`), because another process calls it.
        device: Where it runs.
        runs: Runs before the marks are read.

    Raises:
        BackendError: The model cannot be compiled or run there.
    """
    return run_isolated(_peak_memory, compile_run, device, runs)


def peak_memory_mb(compile_run: Callable[[], Run], *, runs: int = 3) -> float:
    """The host's part of `peak_memory` alone."""
    return run_isolated(_peak_memory, compile_run, None, runs).host_mb


def _peak_memory(compile_run: Callable[[], Run], device: Device | None, runs: int) -> PeakMemory:
    run = compile_run()
    for _ in range(runs):
        run()
    gpu_mb, source = gpu_memory_mb(device) if device is not None and _on_gpu(device) else (None, "")
    return PeakMemory(_high_water_bytes() / 1e6, gpu_mb, source)


def gpu_memory_mb(device: Device, nvml: Any = None) -> tuple[float | None, str]:
    """What this process has taken of the GPU's memory at most, and who counted it; None where nothing tells it.

    Runtimes' arenas grow and do not shrink, so that what the driver counts after some runs is their high-water mark.

    Args:
        device: One of a GPU.
        nvml: NVIDIA's binding; tests pass their own.
    """
    if device.backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6, "torch"
    try:
        nvml, handle = _nvml_device(0, nvml)
    except OSError:
        return None, ""
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None, ""
    # The driver tells nothing of processes whose numbers it cannot see, as in some containers.
    own = [process.usedGpuMemory for process in processes if process.pid == os.getpid() and process.usedGpuMemory]
    return (own[0] / 1e6, "nvml") if own else (None, "")


def _high_water_bytes() -> int:
    """This process's own mark. Linux's `getrusage` would count what the parent had when it started this process."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -- energy -----------------------------------------------------------------------------------------------------------


class EnergyMeter(Protocol):
    """A counter of consumed energy."""

    @property
    def source(self) -> str:
        """What counts: recorded beside every figure."""

    def joules(self) -> float:
        """Energy since some fixed moment."""


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of one run.

    Args:
        millijoules: Per run, everything that the counter covers: idle parts too.
        runs: Runs that were averaged.
        source: The counter.
    """

    millijoules: float
    runs: int
    source: str


class RaplMeter:
    """Intel's and AMD's package counters (RAPL), through Linux's powercap.

    Args:
        root: Directory of the counters; tests pass their own.

    Raises:
        OSError: There is no counter, or it may not be read (most kernels let only root).
    """

    source = "rapl"

    def __init__(self, root: Path = _POWERCAP) -> None:
        packages = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
        if not packages:
            raise FileNotFoundError(f"{root}: no RAPL counter.")
        self._counters = [path / "energy_uj" for path in packages]
        self._ranges = [int((path / "max_energy_range_uj").read_text()) for path in packages]
        self._last = [int(path.read_text()) for path in self._counters]
        self._total = 0

    def joules(self) -> float:
        """Energy of all packages since the meter was made; counters that wrapped around once are continued."""
        now = [int(path.read_text()) for path in self._counters]
        for before, value, span in zip(self._last, now, self._ranges, strict=True):
            self._total += value - before if value >= before else value - before + span
        self._last = now
        return self._total * 1e-6


class NvmlMeter:
    """NVIDIA's own counter, through its library's binding (``pip install nvidia-ml-py``).

    Args:
        index: Which GPU.
        nvml: The binding; tests pass their own.

    Raises:
        OSError: There is no binding, no driver, or a GPU without a counter (before Volta).
    """

    source = "nvml"

    def __init__(self, index: int = 0, nvml: Any = None) -> None:
        nvml, self._handle = _nvml_device(index, nvml)
        try:
            nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except nvml.NVMLError as error:
            raise OSError(f"NVML: {error}.") from error
        self._nvml = nvml

    def joules(self) -> float:
        """Energy of the GPU since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * 1e-3


def _nvml_device(index: int, nvml: Any) -> tuple[Any, Any]:
    """NVIDIA's binding, and its handle of a GPU.

    Raises:
        OSError: There is no binding, no driver, or no such GPU.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError as error:
            raise FileNotFoundError("NVML: not installed; run `pip install nvidia-ml-py`.") from error
    try:
        nvml.nvmlInit()
        return nvml, nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        raise OSError(f"NVML: {error}.") from error


def _on_gpu(device: Device) -> bool:
    """Whether a device's models run on an NVIDIA GPU."""
    return device.provider.lower().removesuffix("executionprovider") in ("cuda", "tensorrt")


def find_energy_meter(device: Device) -> EnergyMeter | None:
    """The counter of what a device runs on; None where there is none or it may not be read."""
    try:
        return NvmlMeter() if _on_gpu(device) else RaplMeter()
    except OSError:
        return None


def measure_energy(
    run: Run, meter: EnergyMeter, *, seconds: float = 2.0, clock: Callable[[], float] = time.perf_counter
) -> Energy:
    """Run a model for a while and read the counter before and after; nothing else should run on the machine.

    Args:
        run: The compiled model.
        meter: The counter.
        seconds: How long; counters tick about every millisecond (RAPL) to every 100 ms (NVML).
        clock: Gives seconds; tests pass their own.

    Raises:
        ValueError: The time is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"`seconds` must be positive, but got {seconds!r}.")
    run()
    before, end, runs = meter.joules(), clock() + seconds, 0
    while clock() < end or runs == 0:
        run()
        runs += 1
    return Energy((meter.joules() - before) * 1e3 / runs, runs, meter.source)
