"""What keeping a teacher's exported graph saves each command, and what a graph's process holds when it is measured.

    python benchmarks/kept_graphs.py          # MiniLM; writes benchmarks/results/kept_graphs.json
    python benchmarks/kept_graphs.py --quick  # one export

The library is calibrated once below `--root`; graphs are kept in a folder of their own, that an export finds empty.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import numpy as np
from common import Result
from end_to_end_entries import deployed, search_of

from latency_models.deployed import Deployed
from latency_models.device import Device
from latency_models.meters import peak_memory
from latency_models.subnet_compiler import SubnetCompiler


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs" / "kept_graphs", help="of the study")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if common.skipped(data, "minilm", "movie.csv"):
        return 0
    overrides = [f"model.path={data / 'minilm'}", f"task.data.path={data / 'movie.csv'}"]
    search = search_of(options.root, "kept_graphs", "experiment=quickstart", *overrides)
    bench, inputs = search.bench, search.device.inputs

    def compiler(folder: Path) -> SubnetCompiler:
        task = bench.task
        return SubnetCompiler(
            bench.device, bench.supernet, inputs, task.output_names, deployable=task.deployable, templates=folder
        )

    seconds: dict[str, list[float]] = {"exported": [], "kept": []}
    context, _ = common.machine(threads=1), bench.supernet
    for _ in range(1 if options.quick else 3):
        with TemporaryDirectory() as folder:
            for kind, taken in seconds.items():
                made, started = compiler(Path(folder)), time.monotonic()
                assert made.find_template() == (kind == "kept")
                assert made.template is not None
                taken.append(time.monotonic() - started)
            size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e3
    rows = [spread(f"teacher's graph, {kind}", taken, "s", context) for kind, taken in seconds.items()]
    rows.append(Result("teacher's graph, kept without its weights", size, "kB", 1, context=context))
    graph, device = made.graph(bench.space.teacher), Device("cpu", "onnxruntime", threads=1)
    with TemporaryDirectory() as folder:
        for precision in ("fp32", "int8"):
            file = Path(folder) / f"{precision}.onnx"
            file.write_bytes(deployed(graph, precision).SerializeToString())
            job = Deployed(precision, device, str(file)).job(inputs)
            found = [peak_memory(job, device).host_mb for _ in range(5)]
            rows.append(spread(f"peak memory, {precision}", found, "MB", context))
    common.show(rows)
    print(common.write("kept_graphs_quick" if options.quick else "kept_graphs", rows, options.output))
    return 0


def spread(claim: str, values: list[float], unit: str, context: dict[str, Any]) -> Result:
    """The median with its range."""
    return Result(claim, float(np.median(values)), unit, len(values), min(values), max(values), context=context)


if __name__ == "__main__":
    sys.exit(main())
