"""What exported models cost on the device: each beside its teacher, in one run, by the runtime that will deploy it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_models.deployed import Costs, Deployed, Throughput, best_throughput, measure_costs
from latency_models.device import Device
from latency_models.measurement import Ratio, speedup
from latency_models.profiler import Profiler
from nas.export.artefacts import Artefact, size_mb

if TYPE_CHECKING:
    from nas.export.reference import Arrays
    from nas.progress import Progress


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

    @property
    def deployed(self) -> Deployed:
        """It as what runs."""
        return Deployed(self.name, self.device, self.model)


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
    costs = measure_costs([subject.deployed for subject in subjects], reference.deployed, bound, profiler)
    found = {}
    for subject, own in zip(subjects, costs, strict=True):
        figures = _figures(subject, own, best_throughput(subject.deployed, inputs, batches))
        partner = next((s for s in subjects if s.teacher and s.key == subject.key), None)
        if partner is not None and not subject.teacher and subject.key != reference.key:
            # Paired with the teacher in the same files: what pruning gains where precision is the same.
            job, teacher = subject.deployed.job(bound), partner.deployed.job(bound)
            pair = dict(profiler.measure([(subject.name, job)], teacher))[subject.name]
            figures["speedup_same_precision"] = _plain(speedup(pair, seed))
        found[subject.name] = figures
        if progress is not None:
            progress.advance(text=f"{subject.name} {figures['p50_ms']:.2f} ms")
    return found


def _figures(subject: Subject, costs: Costs, rates: Throughput) -> dict[str, Any]:
    measured, energy = costs.latency, costs.energy
    found: dict[str, Any] = {
        "p50_ms": measured.p50,
        "p90_ms": measured.p90,
        "p99_ms": measured.p99,
        "min_ms": measured.minimum,
        "runs": measured.n,
        "speedup_teacher_fp32": _plain(costs.speedup),
        "throughput_batch_1_per_s": rates.batch_1_per_s,
        "throughput_best_per_s": rates.best_per_s,
        "throughput_best_batch_size": rates.best_batch_size,
        "peak_memory_mb": costs.peak_memory_mb,
        "size_mb": subject.size_mb,
    }
    if costs.memory is not None and costs.memory.gpu_mb is not None:
        found |= {"peak_gpu_memory_mb": costs.memory.gpu_mb, "gpu_memory_source": costs.memory.gpu_source}
    return found if energy is None else found | {"energy_mj": energy.millijoules, "energy_source": energy.source}


def _plain(ratio: Ratio | None) -> dict[str, float] | None:
    return None if ratio is None else asdict(ratio)
