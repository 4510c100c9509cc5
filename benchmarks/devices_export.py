"""Every runtime and precision on a real sentence encoder: speed, exactness, predictions of exported models, bundles.

    python benchmarks/devices_export.py                       # everything; needs the demo's study: `make demo`
    python benchmarks/devices_export.py --part precisions     # one part; its rows replace those stored
    python benchmarks/devices_export.py --prepare             # what needs no quiet machine: exports of what is measured

The parts that measure latency want a quiet machine: each takes a few minutes. Those of a GPU are skipped where torch
sees none. Writes benchmarks/results/devices_export.json.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import numpy as np
from common import Result
from demo_study import MEMBERS, device_bench, embeddings, front, latencies, stages

if TYPE_CHECKING:
    from onnx import ModelProto

    from latency_models.measurement import Measurement
    from nas.exporting import Export
    from nas.measuring import DeviceBench
    from nas.workbench import Workbench
    from search_spaces.subnet import SubnetConfig

# A device's name, or the search of precisions per block, whose members `mixed_precision.py` found.
MIXED, MIXED_SPACE = "mixed", "width_rank_precision"
ON_GPU = ("torch_cuda_fp16", "torch_cuda_bf16")
PREDICTED = ("torch_cpu", "onnxruntime_cpu", "onnxruntime_cpu_int8", "openvino_cpu", MIXED, *ON_GPU)
PARTS = ("precisions", "subnets", *(f"predicted {name}" for name in PREDICTED), "bundle")


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs", help="folder of the study and its caches")
    arguments.add_argument("--study", default="quickstart", help="the study whose front is exported")
    arguments.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated")
    arguments.add_argument("--prepare", action="store_true", help="export what the parts measure, and measure nothing")
    options = arguments.parse_args()
    if not (options.root / options.study / "config.json").is_file():
        print(f"skipped: there is no study {options.study} below {options.root}; run `make demo`")
        return 0
    if options.prepare:
        prepare(options)
        return 0
    name = "devices_export_quick" if options.quick else "devices_export"
    stored = options.output or common.RESULTS / f"{name}.json"
    for part in options.part or PARTS:
        kind, _, device = part.partition(" ")
        if device in ON_GPU and not has_gpu():
            print(f"skipped: {part}; torch sees no CUDA device")
            continue
        make = {"precisions": precisions, "subnets": subnets, "bundle": bundle}.get(kind)
        rows = predicted(options, device) if make is None else make(options)
        context = common.machine(threads=1, study=options.study, quick=options.quick, part=part)
        found = [replace(row, context={**context, **row.context}) for row in rows]
        common.show(found)
        common.write(name, common.merged(name, found, options.output), options.output)
    print(stored)
    return 0


# -- parts ------------------------------------------------------------------------------------------------------------


def precisions(options: Any) -> Iterator[Result]:
    """The teacher in every runtime and precision, interleaved in one run, with the cosine to its own embeddings."""
    from latency_models.deployed import Deployed
    from latency_models.device import Device
    from nas.export.artefacts import chosen, write_artefact
    from nas.export.export import calibration_inputs, deployed_graph
    from nas.export.measure import device_of, subjects_of
    from nas.export.reference import Reference
    from nas.export.verify import run_part

    export = stages(options)
    bench, task = export.bench, export.bench.task
    target = Device("onnxruntime_cpu", "onnxruntime")
    rows = chosen(("onnx", "openvino"), ("fp32", "int8", "int8_static", "int4"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph, calibration = deployed_graph(bench.teacher, task), calibration_inputs(task)
        for row in rows:
            write_artefact(row, graph, folder, calibration=calibration)
        reference = Reference.from_model(bench.teacher, task)
        for row in rows:
            if row.precision == "fp32":
                checks = run_part(row.key, folder, reference, tolerances())
                values = [check.value for check in checks]
                yield Result(f"{row.key}: largest difference from torch, relative", max(values), "", len(values))
        module = task.deployable(bench.teacher)
        models = [
            *(subject.deployed for subject in subjects_of(rows, folder, target)),
            Deployed("openvino bf16", Device("bf16", "openvino", precision="bf16"), str(folder / "model.onnx")),
            Deployed("torch fp32", Device("torch_cpu", "torch"), module),
            Deployed("torch bf16", Device("bf16", "torch", precision="bf16"), module),
        ]
        measured = latencies(export, {model.name: model.job for model in models}, models[0].job, options)
        yield from speedups(measured, "onnx fp32")
        expected = embeddings(export, device_of(rows[0], target), folder / rows[0].file)
        for row in rows:
            found = embeddings(export, device_of(row, target), folder / row.file)
            cosine = (found * expected).sum(axis=1)
            yield Result(f"{row.key}: cosine to fp32", float(cosine.mean()), "", len(cosine), float(cosine.min()), 1.0)


def subnets(options: Any) -> Iterator[Result]:
    """Exported members of the front against the extracted model in torch: an export is never slower."""
    from latency_models.deployed import Deployed
    from latency_models.device import Device

    export = stages(options)
    task, ratios, pairs = export.bench.task, [], []
    for subnet in members(options, export):
        torch = Deployed("torch", Device("torch_cpu", "torch"), task.deployable(export.bench.supernet.extract(subnet)))
        file = exported(options, export.bench, subnet)
        onnx = Deployed("onnx", Device("onnxruntime_cpu", "onnxruntime"), str(file))
        measured = latencies(export, {"onnx": onnx.job}, torch.job, options)["onnx"]
        ratios.append(float(np.median(np.divide(measured.reference, measured.samples))))
        pairs.append({"torch_ms": float(np.median(measured.reference)), "onnx_ms": measured.p50})
    yield Result(
        "speed-up of the exported ONNX graph over the extracted torch model",
        float(np.median(ratios)),
        "x",
        len(ratios),
        min(ratios),
        max(ratios),
        "target: never below 1",
        {"members": pairs},
    )


def predicted(options: Any, device: str) -> Iterator[Result]:
    """Members of the front, exported anew, measured on a device, beside what its predictor says."""
    from latency_models.scores import noise_floor

    export = stages(options)
    name, counts = (device, (36, 8)) if device != MIXED else ("onnxruntime_cpu", (48, 12))
    target = device_bench(options, name, *counts, space=MIXED_SPACE if device == MIXED else None)
    fitted = target.fitted
    chosen = mixed_members(options) if device == MIXED else members(options, export)
    with tempfile.TemporaryDirectory() as folder:
        jobs = {
            index: exported_job(options, target, subnet, Path(folder) / str(index))
            for index, subnet in enumerate([target.bench.space.teacher, *chosen])
        }
        measured = latencies(export, {index: jobs[index] for index in jobs if index}, jobs[0], options)
    floor = noise_floor([np.array(row.measurement.samples) for row in target.profile.latest().values()])
    says = fitted.predictor.predict(chosen)
    found = [measured[index + 1] for index in range(len(chosen))]
    level = target.profile.reference_level
    actual = np.array([measurement.p50 for measurement in found])
    errors = 100 * (says.value - actual) / actual
    limit = f"target 6 % or 1.5 times the noise floor of {floor:.2f} %"
    rows = [
        {"subnet": subnet.to_dict(), "predicted_ms": float(value), "measured_ms": own.p50, "min_ms": own.minimum}
        for subnet, value, own in zip(chosen, says.value, found, strict=True)
    ]
    context = {"members": rows, "profiled": fitted.rows, "noise floor %": floor}
    yield spread(f"MAPE of exported front members, {device}", np.abs(errors), limit, context)
    # The machine's state taken out: beside the teacher of that moment, at the time that it took in the profile.
    steady = 100 * (says.value / [measurement.at_level(level).corrected for measurement in found] - 1)
    note = f"the teacher took {found[0].reference_level:.2f} ms, and {level:.2f} ms in the profile"
    yield spread(f"MAPE of exported front members beside the teacher, {device}", np.abs(steady), note)
    inside = float(np.mean((says.lower <= actual) & (actual <= says.upper))) * 100
    yield Result(f"front members inside the 90 % interval, {device}", inside, "%", len(errors))
    yield Result(f"median signed error, {device}", float(np.median(errors)), "%", len(errors))


def bundle(options: Any) -> Iterator[Result]:
    """What a bundle of 40 subnets weighs, and how long it takes to write."""
    from nas.elsewhere import Elsewhere

    count = 8 if options.quick else 40
    target = device_bench(options, "pi4", count - 8 if count > 8 else 4, 8 if count > 8 else 4)
    _ = target.bench.supernet
    begin = time.perf_counter()
    _ = target.compiler.template
    exported = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as name:
        begin = time.perf_counter()
        directory, manifest = Elsewhere(target).write(Path(name) / "bundle")
        seconds = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6
    subnets = len(manifest["subnets"])
    yield Result(f"size of a bundle of {subnets} subnets", size, "MB", 1, anchor="target 200 MB")
    yield Result(
        f"writing a bundle of {subnets} subnets", seconds + exported, "s", 1, anchor="target 60 s, export included"
    )


def members(options: Any, export: Export) -> list[SubnetConfig]:
    """The members of the study's front that are measured; the same in every part."""
    return [candidate.subnet for candidate in front(export)][: 3 if options.quick else MEMBERS]


def mixed_members(options: Any) -> list[SubnetConfig]:
    """The subnets that `mixed_precision.py` found on the front of a search of precisions, and those beside them."""
    from search_spaces.subnet import SubnetConfig

    rows = json.loads((common.RESULTS / "mixed_precision.json").read_text(encoding="utf-8"))
    found = [row["context"]["subnet"] for row in rows if "subnet" in row["context"]]
    return [SubnetConfig.from_dict(data) for data in found][: 3 if options.quick else len(found)]


def exported(options: Any, bench: Workbench, subnet: SubnetConfig) -> Path:
    """The fp32 ONNX file of a subnet, exported from its extracted model; kept, because an export takes seconds."""
    from nas.export.export import deployed_graph

    key = hashlib.sha256(subnet.plain.to_json().encode()).hexdigest()[:16]
    file: Path = options.root / "cache" / "exports" / f"{key}.onnx"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(deployed_graph(bench.supernet.extract(subnet.plain), bench.task).SerializeToString())
    return file


def exported_job(options: Any, target: DeviceBench, subnet: SubnetConfig, folder: Path) -> Callable[..., Any]:
    """What compiles an exported subnet on a device: a torch module, or the file of the device's precision."""
    from latency_models.backends.graph_file import load_graph
    from latency_models.deployed import Deployed
    from nas.export.artefacts import ARTEFACTS, MIXED, Blocks, write_artefact
    from nas.export.measure import device_of, subjects_of

    bench = target.bench
    if target.takes_module:
        return Deployed("torch", bench.device, bench.task.deployable(bench.supernet.extract(subnet))).job
    folder.mkdir()
    blocks = Blocks.of(bench.space.shape, subnet)
    row = ARTEFACTS[f"onnx {MIXED if blocks.mixed else bench.device.precision}"]
    graph: ModelProto = load_graph(exported(options, bench, subnet))
    write_artefact(row, graph, folder, blocks=blocks)
    # The graph goes through the device's own runtime, whose file it need not be.
    subject = subjects_of([row], folder, bench.device)[0]
    where = replace(device_of(row, bench.device), backend=bench.device.backend)
    return replace(subject.deployed, device=where).job


def prepare(options: Any) -> None:
    """Export everything that is measured later."""
    export = stages(options)
    for subnet in [export.bench.space.teacher, *members(options, export)]:
        exported(options, export.bench, subnet)
    bench = device_bench(options, "onnxruntime_cpu", space=MIXED_SPACE).bench
    for subnet in mixed_members(options):
        exported(options, bench, subnet)


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())


def speedups(measured: Mapping[str, Measurement], reference: str) -> Iterator[Result]:
    """Latency and paired speed-up over the reference of every model."""
    from latency_models.measurement import speedup

    for key, found in measured.items():
        yield Result(f"{key}: latency", found.p50, "ms", found.n, found.minimum, found.p90)
        ratio = speedup(found)
        assert ratio is not None
        yield Result(f"{key}: speed-up over {reference}", ratio.value, "x", found.n, ratio.low, ratio.high)


def spread(claim: str, sizes: Any, note: str, context: Mapping[str, Any] | None = None) -> Result:
    """The mean of errors in percent, with the smallest and the largest."""
    low, high = float(sizes.min()), float(sizes.max())
    return Result(claim, float(sizes.mean()), "%", len(sizes), low, high, note, dict(context or {}))


def tolerances() -> Any:
    """Limits of the checks; only their values are read here."""
    from nas.export.verify import Tolerances

    return Tolerances()


if __name__ == "__main__":
    raise SystemExit(main())
