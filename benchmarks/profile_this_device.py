"""How well this machine is predicted from at most 60 subnets of a real sentence encoder, and what a graph costs.

    python benchmarks/profile_this_device.py                          # everything, some minutes per runtime
    python benchmarks/profile_this_device.py --part onnxruntime_cpu   # one part; its rows replace those stored

Profiles what `nas profile` profiles, in the default space, and judges the predictor on 30 random subnets that it has
not seen. The parts that measure latency want a quiet machine. Writes benchmarks/results/profile_this_device.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import numpy as np
from common import Result

if TYPE_CHECKING:
    from nas.measuring import DeviceBench

RUNTIMES = ("onnxruntime_cpu", "torch_cpu")
GRAPHS = "graphs"
MOST_SUBNETS, FRESH = 60, 30
EXPORTS, EDITS = 5, 100


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs", help="folder of caches and profiles")
    arguments.add_argument("--part", choices=(*RUNTIMES, GRAPHS), action="append", help="only this; may be repeated")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if not (data / "minilm").is_dir() or not (data / "movie.csv").is_file():
        print(f"skipped: {data} lacks minilm/ or movie.csv; run `make assets`")
        return 0
    name = "profile_this_device_quick" if options.quick else "profile_this_device"
    rows: list[Result] = []
    for part in options.part or (*RUNTIMES, GRAPHS):
        device = device_bench(data, options.root, RUNTIMES[0] if part == GRAPHS else part, quick=options.quick)
        found = list(graphs(device, quick=options.quick) if part == GRAPHS else accuracy(device, part))
        context = common.machine(threads=device.bench.device.threads, quick=options.quick)
        rows += [replace(row, context={**context, "part": part}) for row in found]
    rows = kept(options.output or common.RESULTS / f"{name}.json", {row.context["part"] for row in rows}) + rows
    common.show(rows)
    print(common.write(name, rows, options.output))
    return 0


def device_bench(data: Path, root: Path, device: str, *, quick: bool) -> DeviceBench:
    """The stages of `nas profile` for one device."""
    sizes = {"num_subnets": 12, "held_out": 4} if quick else {"num_subnets": MOST_SUBNETS, "held_out": FRESH}
    model = [f"model.path={data / 'minilm'}", f"task.data.path={data / 'movie.csv'}", "torch_threads=1"]
    return profile_stages([f"root={root}", f"device={device}", *model], sizes)


def profile_stages(overrides: Sequence[str], sizes: Mapping[str, int]) -> DeviceBench:
    """The stages of `nas profile` with these overrides and sizes, without other devices' profiles."""
    from hydra import compose, initialize_config_dir

    from nas.commands import plain
    from nas.config import conf_dir
    from nas.measuring import DeviceBench
    from nas.workbench import Workbench

    own = ["profile.transfer=false", *(f"profile.{key}={value}" for key, value in sizes.items())]
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="profile"):
        return DeviceBench(Workbench(plain(compose("profile", overrides=[*overrides, *own]))))


def accuracy(device: DeviceBench, name: str) -> Iterator[Result]:
    """Errors on fresh subnets beside the noise floor, FLOPs alone and parameters alone."""
    fitted = device.fitted
    scores = {score.predictor: score for score in fitted.scores}
    mine = scores["predictor"]
    learned = fitted.rows - mine.n
    floor = mine.scores["noise_floor"]
    beside = ", ".join(f"{title} {score.scores['mape']:.2f} %" for title, score in scores.items() if score is not mine)
    at = f"{name}, {learned} subnets"
    yield Result(f"MAPE {at}", mine.scores["mape"], "%", mine.n, anchor=f"noise floor {floor:.2f} %, {beside}")
    yield Result(f"target of MAPE {at}", max(5.0, 1.5 * floor), "%", 1, anchor="5 % or 1.5 times the noise floor")
    for key, title, unit in (
        ("kendall", "Kendall tau", ""),
        ("within_10", "within 10 %", "%"),
        ("coverage", "coverage of the 90 % interval", "%"),
        ("width", "width of the 90 % interval", "%"),
    ):
        ranks = f"FLOPs alone {scores['FLOPs alone'].scores['kendall']:.3f}" if key == "kendall" else ""
        yield Result(f"{title} {at}", mine.scores[key], unit, mine.n, anchor=ranks)
    for point in device.curve:
        yield Result(f"cross-validated error {name}, {point.n} subnets", 100.0 * point.error, "%", point.n)
    drifts = [abs(row.measurement.drift or 0.0) for row in device.profile.latest().values()]
    yield Result(f"largest drift of the reference {name}", 100.0 * max(drifts), "%", len(drifts))


def graphs(device: DeviceBench, *, quick: bool) -> Iterator[Result]:
    """Seconds of a fresh export of a subnet, and of its graph cut out of the teacher's."""
    from latency_models.backends.onnx import export_onnx

    compiler, space = device.compiler, device.bench.space
    exports, edits = (1, 10) if quick else (EXPORTS, EDITS)
    subnets = space.sample(np.random.default_rng(2), edits)
    fresh = [
        seconds(export_onnx, compiler.module(subnet), compiler.inputs, compiler.output_names)
        for subnet in subnets[:exports]
    ]
    cut = [seconds(compiler.graph, subnet) for subnet in subnets]
    yield Result("seconds of a fresh export", float(np.median(fresh)), "s", exports, min(fresh), max(fresh))
    yield Result("seconds of a graph's edit", float(np.median(cut)), "s", edits, min(cut), max(cut))
    yield Result("edits over exports", float(np.median(fresh) / np.median(cut)), "x", edits, anchor="of the medians")


def seconds(function: Any, *arguments: Any) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def kept(path: Path, replaced: set[str]) -> list[Result]:
    """Stored rows of the parts that were not run now."""
    if not path.is_file():
        return []
    rows = [Result(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    return [row for row in rows if row.context.get("part") not in replaced]


if __name__ == "__main__":
    raise SystemExit(main())
