"""What a deployed model costs, by every meter that the machine has: time, memory, bytes, operations, energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_models.measurement import speedup

if TYPE_CHECKING:
    from torch import nn

    from latency_models.backends.base import Run
    from latency_models.device import Device
    from latency_models.measurement import Measurement
    from latency_models.meters import EnergyMeter
    from latency_models.profiler import Profiler
    from search_spaces.cost import Workload


@dataclass(frozen=True)
class Deployed:
    """A model in the form in which it runs.

    Args:
        name: What people call it.
        graph: Its ONNX file.
        module: What it was exported from, where that is known: its operations can be counted.
    """

    name: str
    graph: Path
    module: nn.Module | None = None


def measure_efficiency(
    models: Sequence[Deployed],
    reference: Deployed,
    device: Device,
    workload: Workload,
    inputs: Mapping[str, Any],
    profiler: Profiler,
    *,
    memory: bool = True,
    seconds: float = 2.0,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure models interleaved with each other and with a reference.

    Args:
        models: What is measured.
        reference: Beside what; mostly the teacher.
        device: Where they run; graphs carry their own precision.
        workload: What one run processes.
        inputs: Inputs of that size, by name; a graph takes those that it knows.
        profiler: The measurement protocol.
        memory: Whether peak memory is measured, which takes a process of its own for each model.
        seconds: How long energy is counted, where there is a counter.
        say: Told of each part of the work.

    Returns:
        One section a model: ``latency_ms`` (p50, p90, p99, min, n), ``speedup`` over the reference with its interval,
        ``throughput`` (sequences per second), ``peak_memory_mb``, ``size_mb``, ``parameters``, ``macs`` and ``energy``
        (millijoules with its source); what cannot be measured or counted is None.
    """
    from latency_models.backends.base import as_arrays
    from latency_models.meters import find_energy_meter, peak_memory_mb, throughput
    from latency_models.subnet_compiler import compile_model

    say = say or (lambda _: None)
    arrays = as_arrays(inputs)

    def job(model: Deployed) -> Callable[[], Run]:
        return partial(compile_model, device, str(model.graph), _known(model.graph, arrays))

    jobs = [job(model) for model in models]
    say("latency")
    found: dict[int, Measurement] = dict(profiler.measure(list(enumerate(jobs)), job(reference)))
    meter = find_energy_meter(device)
    sections = []
    for index, (model, run) in enumerate(zip(models, jobs, strict=True)):
        if memory:
            say(f"memory of {model.name}")
        sections.append(
            {
                **_timing(found[index], profiler.settings.seed),
                "throughput": throughput(workload, found[index].p50),
                "peak_memory_mb": peak_memory_mb(run) if memory else None,
                "size_mb": _size_mb(model.graph),
                "parameters": None if model.module is None else sum(p.numel() for p in model.module.parameters()),
                "macs": None if model.module is None else count_macs(model.module, inputs),
                "energy": None if meter is None else _energy(run, meter, seconds),
            }
        )
    return sections


def _timing(measured: Measurement, seed: int) -> dict[str, Any]:
    ratio = speedup(measured, seed)
    return {
        "latency_ms": {
            **{name: measured.quantile(share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))},
            "min": measured.minimum,
            "n": measured.n,
        },
        "speedup": None if ratio is None else asdict(ratio),
    }


def _energy(run: Callable[[], Run], meter: EnergyMeter, seconds: float) -> dict[str, Any]:
    from latency_models.meters import measure_energy

    counted = measure_energy(run(), meter, seconds=seconds)
    return {"millijoules": counted.millijoules, "runs": counted.runs, "source": counted.source}


def count_macs(module: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Multiply-accumulates of the matrix products of one forward pass, counted by torch itself."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Of the fused attention on CPUs torch has no count; of the plain products it has.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(**inputs)
    return int(counter.get_total_flops()) // 2


def _known(graph: Path, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a graph takes."""
    import onnx

    names = {node.name for node in onnx.load(str(graph), load_external_data=False).graph.input}
    return {name: values for name, values in arrays.items() if name in names}


def _size_mb(graph: Path) -> float:
    """Of the file, and of the weights beside it where they have one of their own."""
    files = [graph, *graph.parent.glob(f"{graph.name}.data"), *graph.parent.glob(f"{graph.name}_data")]
    return sum(file.stat().st_size for file in files) / 1e6
