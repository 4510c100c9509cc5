"""What a model costs, as its report card tells it: time, memory, bytes, operations, energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from latency_models.deployed import Costs
    from latency_models.device import Device
    from latency_models.profiler import Profiler
    from search_spaces.cost import Workload


@dataclass(frozen=True)
class GraphSubject:
    """A model that is deployed as an ONNX graph.

    Args:
        name: What people call it.
        graph: Its file.
        module: What it was exported from, where that is known: its operations can be counted.
    """

    name: str
    graph: Path
    module: nn.Module | None = None


def measure_efficiency(
    models: Sequence[GraphSubject],
    reference: GraphSubject,
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
    from latency_models.deployed import Deployed, measure_costs
    from latency_models.meters import throughput

    def deployed(model: GraphSubject) -> Deployed:
        return Deployed(model.name, device, str(model.graph), _input_names(model.graph))

    costs = measure_costs(
        [deployed(model) for model in models],
        deployed(reference),
        as_arrays(inputs),
        profiler,
        memory=memory,
        seconds=seconds,
        say=say,
    )
    return [
        {
            **_timing(found),
            "throughput": throughput(workload, found.latency.p50),
            "peak_memory_mb": found.peak_memory_mb,
            "size_mb": _size_mb(model.graph),
            "parameters": None if model.module is None else sum(p.numel() for p in model.module.parameters()),
            "macs": None if model.module is None else count_macs(model.module, inputs),
            "energy": None if found.energy is None else asdict(found.energy),
        }
        for model, found in zip(models, costs, strict=True)
    ]


def _timing(costs: Costs) -> dict[str, Any]:
    measured = costs.latency
    return {
        "latency_ms": {
            "p50": measured.p50,
            "p90": measured.p90,
            "p99": measured.p99,
            "min": measured.minimum,
            "n": measured.n,
        },
        "speedup": None if costs.speedup is None else asdict(costs.speedup),
    }


def count_macs(module: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Multiply-accumulates of the matrix products of one forward pass, counted by torch itself."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Of the fused attention on CPUs torch has no count; of the plain products it has.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(**inputs)
    return int(counter.get_total_flops()) // 2


def _input_names(graph: Path) -> frozenset[str]:
    """The inputs that a graph takes; its weights are not read."""
    import onnx

    try:
        return frozenset(node.name for node in onnx.load(str(graph), load_external_data=False).graph.input)
    except Exception as error:  # protobuf's own, which is no ValueError.
        raise ValueError(f"{graph}: must be a whole ONNX model, but cannot be read: {error}.") from error


def _size_mb(graph: Path) -> float:
    """Of the file, and of the weights beside it where they have one of their own."""
    files = [graph, *graph.parent.glob(f"{graph.name}.data"), *graph.parent.glob(f"{graph.name}_data")]
    return sum(file.stat().st_size for file in files) / 1e6
