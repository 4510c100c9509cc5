"""What deployed models cost: timed together beside a reference, then each by every meter that the machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from latency_models.backends.base import Run, as_arrays, backend_entry
from latency_models.device import Device
from latency_models.measurement import Measurement, Ratio, speedup
from latency_models.meters import Energy, PeakMemory, find_energy_meter, measure_energy, peak_memory
from latency_models.profiler import Profiler
from latency_models.subnet_compiler import compile_model

# Throughput must grow by so much for a larger batch to be tried.
_GAIN = 1.02


@dataclass(frozen=True)
class Deployed:
    """A model in the form in which it runs.

    Args:
        name: What people call it.
        device: Where it runs; files carry a precision of their own, so the device's is mostly fp32.
        model: A file, or a module where the device runs modules.
        takes: Names of its inputs, where it may know fewer than are given; all of them when None.
    """

    name: str
    device: Device
    model: Any
    takes: frozenset[str] | None = None

    def job(self, inputs: Mapping[str, Any]) -> Callable[[], Run]:
        """What compiles it, in this process or another."""
        known = {name: value for name, value in inputs.items() if self.takes is None or name in self.takes}
        if backend_entry(self.device.backend).takes != "module":
            known = as_arrays(known)  # A process that runs a graph need not import torch to read them.
        return partial(compile_model, self.device, self.model, known)


@dataclass(frozen=True, slots=True)
class Costs:
    """What one model costs.

    Args:
        latency: Every sample of it, in milliseconds, with the reference's beside it.
        speedup: Paired, over the reference.
        memory: Peak of a process that only loads and runs it; None where it was not asked for.
        energy: Of one run; None where there is no counter.
    """

    latency: Measurement
    speedup: Ratio | None
    memory: PeakMemory | None
    energy: Energy | None

    @property
    def peak_memory_mb(self) -> float | None:
        """The host's part of the peak, in MB (10^6 bytes)."""
        return None if self.memory is None else self.memory.host_mb


@dataclass(frozen=True, slots=True)
class Throughput:
    """Sequences per second, one run after the other: at batch 1, and at the batch size at which it is best."""

    batch_1_per_s: float
    best_per_s: float
    best_batch_size: int


def measure_costs(
    models: Sequence[Deployed],
    reference: Deployed,
    inputs: Mapping[str, Any],
    profiler: Profiler,
    *,
    memory: bool = True,
    seconds: float = 2.0,
    say: Callable[[str], None] | None = None,
) -> Iterator[Costs]:
    """Measure models interleaved with one another and with a reference.

    Args:
        models: What is measured.
        reference: Beside what: mostly the teacher.
        inputs: What one run processes, by name.
        profiler: The measurement protocol.
        memory: Whether peak memory is measured, which takes a process of its own for each model.
        seconds: How long energy is counted, where there is a counter.
        say: Told of each part of the work.

    Yields:
        The costs of every model, in order; all latencies are measured before the first one comes.

    Raises:
        BackendError: A model cannot be run, or a device has gone; the message says which.
    """
    say = say or (lambda _: None)
    jobs = [model.job(inputs) for model in models]
    say("latency")
    found: dict[int, Measurement] = dict(profiler.measure(list(enumerate(jobs)), reference.job(inputs)))
    for index, (model, job) in enumerate(zip(models, jobs, strict=True)):
        if memory:
            say(f"memory of {model.name}")
        peak = peak_memory(job, model.device) if memory else None
        meter = find_energy_meter(model.device)
        energy = None if meter is None else measure_energy(job(), meter, seconds=seconds)
        yield Costs(found[index], speedup(found[index], profiler.settings.seed), peak, energy)


def best_throughput(model: Deployed, inputs: Callable[[int], Mapping[str, Any]], batches: Sequence[int]) -> Throughput:
    """Try ever larger batches for as long as they gain.

    Args:
        model: What runs.
        inputs: Inputs of a batch size.
        batches: Batch sizes to try beside 1.
    """
    rates: dict[int, float] = {}
    for batch in sorted({1, *batches}):
        rates[batch] = _sequences_per_second(model, inputs(batch), batch)
        if rates[batch] < _GAIN * max((rate for size, rate in rates.items() if size < batch), default=0.0):
            break
    best = max(rates, key=rates.__getitem__)
    return Throughput(rates[1], rates[best], best)


def _sequences_per_second(model: Deployed, inputs: Mapping[str, Any], batch: int) -> float:
    quick = Profiler(warmup_seconds=0.1, burst=1, min_visits=5, target=0.05, max_seconds=2.0, chunk_size=1)
    ((_, measured),) = quick.measure([(model.name, model.job(inputs))])
    return batch * 1e3 / measured.p50


def device_of_graphs(device: Device) -> Device:
    """Where the graphs of a device's models run: ONNX Runtime stands in for a runtime that takes modules."""
    if backend_entry(device.backend).takes == "module":
        return replace(device, backend="onnxruntime", options={})
    return device
