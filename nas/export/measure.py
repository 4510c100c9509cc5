"""What exported models cost on the device: each beside its teacher, in one run, by the runtime that will deploy it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_models.device import Device
from latency_models.measurement import speedup
from latency_models.meters import find_energy_meter, measure_energy, peak_memory_mb
from latency_models.profiler import Profiler
from latency_models.subnet_compiler import compile_model
from nas.export.artefacts import Artefact, size_mb

if TYPE_CHECKING:
    from latency_models.backends.base import Run
    from latency_models.measurement import Measurement
    from nas.export.reference import Arrays
    from nas.progress import Progress

# Throughput must grow by so much for a larger batch to be tried.
_GAIN = 1.02
_QUICK = {"warmup_seconds": 0.1, "burst": 1, "min_visits": 5, "target": 0.05, "max_seconds": 2.0, "chunk_size": 1}


@dataclass(frozen=True)
class Subject:
    """One model to be measured.

    Args:
        key: The artefact's key, or ``transformers``.
        teacher: Whether it is the teacher's.
        device: Where it runs; its precision is the file's own.
        model: A file, or a module where the device runs modules.
        size_mb: On disk.
    """

    key: str
    teacher: bool
    device: Device
    model: Any
    size_mb: float

    @property
    def name(self) -> str:
        """``onnx int8`` or ``teacher onnx int8``."""
        return f"teacher {self.key}" if self.teacher else self.key

    def job(self, inputs: Arrays) -> Callable[[], Run]:
        """What compiles it, in this process or another."""
        return partial(compile_model, self.device, self.model, dict(inputs))


def device_of(artefact: Artefact, target: Device) -> Device:
    """The device on which an artefact is measured: the target itself where it is of that runtime.

    Files carry their precision, so the device is asked for none.
    """
    if artefact.backend == target.backend:
        options = {name: value for name, value in target.options.items() if name != "quantization"}
        return replace(target, precision="fp32", options=options)
    provider = "cuda" if artefact.backend == "tensorrt" else "cpu"
    return Device(f"{artefact.backend}_{provider}", artefact.backend, threads=target.threads, provider=provider)


def subjects_of(
    artefacts: Sequence[Artefact], directory: Path, target: Device, *, teacher: bool = False
) -> list[Subject]:
    """The models of a folder."""
    return [
        Subject(row.key, teacher, device_of(row, target), str(directory / row.file), size_mb(row, directory))
        for row in artefacts
    ]


def measure(
    subjects: Sequence[Subject],
    reference: Subject,
    inputs: Callable[[int], Arrays],
    *,
    batch_size: int,
    batches: Sequence[int],
    protocol: Mapping[str, Any],
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure models, interleaved with a reference and with one another.

    Args:
        subjects: What to measure, teachers' included.
        reference: What speed-ups are against: the fp32 teacher.
        inputs: Inputs of a batch size.
        batch_size: Of latencies.
        batches: Batch sizes to look for the best throughput at, ascending.
        protocol: Arguments of `latency_models.profiler.Profiler`.
        seed: Of the order.
        progress: Told of every model.

    Returns:
        Name of the subject -> figures by name, with their units in the names.

    Raises:
        BackendError: A model cannot be run, or a device has gone; the message says which.
    """
    profiler = Profiler(**protocol, seed=seed)
    bound = inputs(batch_size)
    measured: dict[str, Measurement] = {}
    for subject, measurement in profiler.measure([(s, s.job(bound)) for s in subjects], reference.job(bound)):
        measured[subject.name] = measurement
    found = {}
    for subject in subjects:
        figures = _latency(measured[subject.name], seed)
        figures |= _meters(subject, bound, inputs, batches)
        partner = next((s for s in subjects if s.teacher and s.key == subject.key), None)
        if partner is not None and not subject.teacher and subject.key != reference.key:
            # Paired with the teacher in the same files: what pruning gains where precision is the same.
            pair = dict(profiler.measure([(subject, subject.job(bound))], partner.job(bound)))[subject]
            figures["speedup_same_precision"] = _ratio(pair, seed)
        found[subject.name] = figures
        if progress is not None:
            progress.advance(text=f"{subject.name} {figures['p50_ms']:.2f} ms")
    return found


def _latency(measured: Measurement, seed: int) -> dict[str, Any]:
    return {
        "p50_ms": measured.p50,
        "p90_ms": measured.p90,
        "p99_ms": measured.p99,
        "min_ms": measured.minimum,
        "runs": measured.n,
        "speedup_teacher_fp32": _ratio(measured, seed),
    }


def _ratio(measured: Measurement, seed: int) -> dict[str, float] | None:
    found = speedup(measured, seed)
    return None if found is None else asdict(found)


def _meters(subject: Subject, bound: Arrays, inputs: Callable[[int], Arrays], batches: Sequence[int]) -> dict[str, Any]:
    """Throughput, memory, size, and energy where there is a counter for it."""
    rates: dict[int, float] = {}
    for batch in sorted({1, *batches}):
        rates[batch] = _sequences_per_second(subject, inputs(batch), batch)
        if rates[batch] < _GAIN * max((rate for size, rate in rates.items() if size < batch), default=0.0):
            break
    best = max(rates, key=rates.__getitem__)
    found: dict[str, Any] = {
        "throughput_batch_1_per_s": rates[1],
        "throughput_best_per_s": rates[best],
        "throughput_best_batch_size": best,
        "peak_memory_mb": peak_memory_mb(subject.job(bound)),
        "size_mb": subject.size_mb,
    }
    if (meter := find_energy_meter(subject.device)) is not None:
        energy = measure_energy(subject.job(bound)(), meter)
        found |= {"energy_mj": energy.millijoules, "energy_source": energy.source}
    return found


def _sequences_per_second(subject: Subject, inputs: Arrays, batch: int) -> float:
    ((_, measured),) = Profiler(**_QUICK).measure([(subject, subject.job(inputs))])  # type: ignore[arg-type]
    return batch * 1e3 / measured.p50
