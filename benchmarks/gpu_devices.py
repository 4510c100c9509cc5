"""Torch on an NVIDIA GPU: a real encoder in every precision, and how well subnets of it and of a decoder are predicted.

    python benchmarks/gpu_devices.py                          # everything, about ten minutes
    python benchmarks/gpu_devices.py --part teacher           # one part; its rows replace those stored

Skipped where torch sees no CUDA device. Wants a quiet machine. Latencies do not depend on a model's weights; the folder
of a model without any (a `config.json` and a tokenizer) is filled with random ones. Writes
benchmarks/results/gpu_devices.json.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import numpy as np
from common import Result
from profile_this_device import accuracy, kept, profile_stages

if TYPE_CHECKING:
    from latency_models.deployed import Costs, Deployed
    from nas.measuring import DeviceBench
    from search_spaces.space import SearchSpace
    from search_spaces.subnet import SubnetConfig

ENCODER = ("model.path={data}/minilm", "task.data.path={data}/movie.csv")
DECODER = (
    "model.path={data}/smollm2",
    "task=causal_lm",
    "space=width",
    "task.data.path={data}/bible.txt",
    "task.data.train=64",
    "task.data.calibration=16",
    "task.data.validation=8",
    "task.data.test=8",
    "calibrate.importance=magnitude",
)
TEACHER = "teacher"
# Title of a part -> its model, device and workload.
PROFILES = {
    "encoder, recorded, fp16": (ENCODER, "torch_cuda_graph", "latency"),
    "encoder, eager, fp16": (ENCODER, "torch_cuda_fp16", "latency"),
    "encoder, eager, bf16, batch 16": (ENCODER, "torch_cuda_bf16", "throughput"),
    "decoder, recorded, fp16, prefill": (DECODER, "torch_cuda_graph", "prefill"),
    "decoder, eager, bf16, decode": (DECODER, "torch_cuda_bf16", "decode"),
}
# The teacher's variants: precision and options of the device.
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
    "fp32 recorded": ("fp32", {"cuda_graph": True}),
    "fp16 recorded": ("fp16", {"cuda_graph": True}),
    "fp16 compiled": ("fp16", {"compile": True}),
    "fp16 compiled and recorded": ("fp16", {"compile": True, "mode": "reduce-overhead"}),
}
PROTOCOL = {"warmup_seconds": 0.3, "burst": 5, "min_visits": 15, "target": 0.005, "max_seconds": 3.0}


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs", help="folder of caches and profiles")
    arguments.add_argument("--part", choices=(TEACHER, *PROFILES), action="append", help="only this; may be repeated")
    arguments.add_argument("--on-cpu", action="store_true", help="try the script itself where there is no GPU")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    import torch

    if not torch.cuda.is_available() and not options.on_cpu:
        print("skipped: torch sees no CUDA device")
        return 0
    if not (data / "minilm").is_dir() or not (data / "smollm2").is_dir():
        print(f"skipped: {data} lacks minilm/ or smollm2/; run `make assets`")
        return 0
    name = "gpu_devices_quick" if options.quick else "gpu_devices"
    path = options.output or common.RESULTS / f"{name}.json"
    gpu = "none" if options.on_cpu else torch.cuda.get_device_name()
    for part in options.part or (TEACHER, *PROFILES):
        model, device, workload = PROFILES.get(part, (ENCODER, "torch_cuda", "latency"))
        if model is DECODER:
            fill(data / "smollm2")
        bench = device_bench(data, options, model, device, workload)
        found = teacher(bench, options) if part == TEACHER else profile(bench, part, options)
        context = common.machine(gpu=gpu, cuda=torch.version.cuda, quick=options.quick, part=part, workload=workload)
        rows = [replace(row, context={**context, **row.context}) for row in found]
        common.show(rows)
        common.write(name, [*kept(path, {part}), *rows], path)
    print(path)
    return 0


def fill(folder: Path) -> None:
    """Random weights for a model's folder that has none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.gguf")):
        print(f"random weights: {folder}")
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


def device_bench(data: Path, options: Any, model: tuple[str, ...], device: str, workload: str) -> DeviceBench:
    """The stages of `nas profile` for one model and device."""
    sizes = {"num_subnets": 12, "held_out": 4} if options.quick else {"num_subnets": 36, "held_out": 16}
    name = "torch_cpu" if options.on_cpu else device
    chosen = [f"root={options.root}", f"device={name}", f"workload={workload}", "progress=plain"]
    own = [override.format(data=data) for override in model]
    return profile_stages([*chosen, *own, "profile.active.start=12"], sizes)


# -- parts ------------------------------------------------------------------------------------------------------------


def teacher(device: DeviceBench, options: Any) -> Iterator[Result]:
    """The encoder in each precision, eager, recorded and compiled: speed, energy, and the outputs' agreement."""
    from latency_models.deployed import Deployed, measure_costs

    bench = device.bench
    module = bench.task.deployable(bench.teacher)
    variants = {name: row for name, row in VARIANTS.items() if not options.on_cpu or name in ("fp32", "bf16")}
    models = [
        Deployed(name, replace(bench.device, precision=precision, options=extra), module)
        for name, (precision, extra) in variants.items()
    ]
    wanted = models[0].job(device.inputs)().outputs()
    costs = list(measure_costs(models, models[0], device.inputs, profiler(options), memory=False))
    for model, cost in zip(models, costs, strict=True):
        taken = cost.latency
        at = {"drift": taken.drift, "p99_ms": taken.p99}
        yield Result(f"{model.name}: latency", taken.p50, "ms", taken.n, taken.minimum, taken.p90, context=at)
        if model is not models[0]:
            yield gain(f"{model.name}: speed-up over fp32", cost)
        yield from energy(f"{model.name}: energy", cost)
        found = model.job(device.inputs)().outputs()
        off = max(float(np.abs(found[key] - wanted[key]).max() / np.abs(wanted[key]).max()) for key in wanted)
        yield Result(f"{model.name}: largest difference from fp32, relative", off, "", len(wanted))


def profile(device: DeviceBench, part: str, options: Any) -> Iterator[Result]:
    """The predictor on random subnets it has not seen, and what half the width and half the depth gain."""
    yield from accuracy(device, part)
    space = device.bench.space
    halves = {"half the width": half_width(space), "half the blocks": half_depth(space)}
    for name, cost in compared(device, halves, space.teacher, options):
        whole, part_of = device.fitted.predictor.predict([space.teacher, halves[name]]).value
        known = space.contains(halves[name])
        anchor = f"predicted {whole / part_of:.2f}x" if known else "not in the space"
        yield gain(f"{name}: speed-up, {part}", cost, anchor)
        yield from energy(f"{name}: energy, {part}", cost)


def gain(claim: str, cost: Costs, anchor: str = "") -> Result:
    """How many times faster than the reference beside it."""
    ratio = cost.speedup
    assert ratio is not None
    return Result(claim, ratio.value, "x", cost.latency.n, ratio.low, ratio.high, anchor)


def energy(claim: str, cost: Costs) -> Iterator[Result]:
    """Of one run, where there is a counter."""
    if cost.energy is not None:
        source = {"source": cost.energy.source}
        yield Result(claim, cost.energy.millijoules, "mJ", cost.energy.runs, context=source)


def compared(
    device: DeviceBench, subnets: Mapping[str, SubnetConfig], reference: SubnetConfig, options: Any
) -> Iterator[tuple[str, Costs]]:
    """Costs of subnets, interleaved with a reference."""
    from latency_models.deployed import Deployed, measure_costs

    def deployed(name: str, subnet: SubnetConfig) -> Deployed:
        return Deployed(name, device.bench.device, device.compiler.module(subnet))

    models = [deployed(name, subnet) for name, subnet in subnets.items()]
    costs = measure_costs(models, deployed("teacher", reference), device.inputs, profiler(options), memory=False)
    yield from zip(subnets, costs, strict=True)


def half_width(space: SearchSpace) -> SubnetConfig:
    """Every block with about half its heads and half its FFN."""
    shape = space.shape

    def distance(subnet: SubnetConfig) -> float:
        block = subnet.blocks[0]
        return abs(block.heads / shape.heads - 0.5) + abs(block.ffn / shape.ffn - 0.5)

    return min(space.uniform(), key=distance)


def half_depth(space: SearchSpace) -> SubnetConfig:
    """Every second block, whole."""
    from search_spaces.subnet import SKIPPED

    blocks = [block if index % 2 == 0 else SKIPPED for index, block in enumerate(space.teacher.blocks)]
    return replace(space.teacher, blocks=tuple(blocks))


def profiler(options: Any) -> Any:
    """The protocol of the comparisons."""
    from latency_models.profiler import Profiler

    return Profiler(**({**PROTOCOL, "min_visits": 5, "max_seconds": 0.5} if options.quick else PROTOCOL))


if __name__ == "__main__":
    raise SystemExit(main())
