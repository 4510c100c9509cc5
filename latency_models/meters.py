"""Meters beside latency: peak memory, throughput, and energy where the machine has a counter for it.

There is no energy without a meter: nothing here estimates it.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from latency_models.backends.base import Run
from latency_models.device import Device
from latency_models.isolation import run_isolated
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


def peak_memory_mb(compile_run: Callable[[], Run], *, runs: int = 3) -> float:
    """High-water mark of the resident memory of a process that only loads and runs a model, in MB (10^6 bytes).

    The runtime itself is included: it is what the deployment needs. On a GPU this is the host's memory.

    Args:
        compile_run: Compiles the model; picklable (`SubnetCompiler.isolated_job`), because another process calls it.
        runs: Runs before the mark is read.

    Raises:
        BackendError: The model cannot be compiled or run there.
    """
    return run_isolated(_peak_memory, compile_run, runs)


def _peak_memory(compile_run: Callable[[], Run], runs: int) -> float:
    run = compile_run()
    for _ in range(runs):
        run()
    return _high_water_bytes() / 1e6


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
        if nvml is None:
            try:
                nvml = importlib.import_module("pynvml")
            except ImportError as error:
                raise FileNotFoundError("NVML: not installed; run `pip install nvidia-ml-py`.") from error
        try:
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
            nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except nvml.NVMLError as error:
            raise OSError(f"NVML: {error}.") from error
        self._nvml = nvml

    def joules(self) -> float:
        """Energy of the GPU since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * 1e-3


def find_energy_meter(device: Device) -> EnergyMeter | None:
    """The counter of what a device runs on; None where there is none or it may not be read."""
    on_gpu = device.provider.lower().removesuffix("executionprovider") in ("cuda", "tensorrt")
    try:
        return NvmlMeter() if on_gpu else RaplMeter()
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
