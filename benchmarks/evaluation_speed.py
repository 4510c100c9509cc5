"""How long an evaluation takes on the processor and on a GPU: judged as it is, and after a short distillation.

    python benchmarks/evaluation_speed.py            # writes benchmarks/results/evaluation_speed.json
    python benchmarks/evaluation_speed.py --quick

MiniLM on 500 movie sentences, and where its folder is there, SmolLM2-135M on 24 blocks of 64 tokens. Every subnet is
evaluated on all sides, one after the other, in fp32 and in bf16; medians with the smallest and largest. Wants a quiet
machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Result
from end_to_end_causal import OPTIONS
from end_to_end_entries import search_of

from nas.evaluation.evaluate import Evaluator
from nas.tasks.placement import CPU, find_device
from search_spaces.subnet import SubnetConfig

STEPS = (0, 20)
QUICKSTART = ("experiment=quickstart", "task.data.validation=500")
MODELS = {"minilm": ("movie.csv", QUICKSTART), "smollm2": ("bible.txt", OPTIONS)}


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs" / "evaluation_speed", help="of caches")
    arguments.add_argument("--models", nargs="*", choices=tuple(MODELS), default=tuple(MODELS), help="which")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    names = [name for name in options.models if not common.skipped(data, name, MODELS[name][0])]
    rows = [row for name in names for row in measured(name, data, options)]
    if rows:
        common.show(rows)
        print(common.write("evaluation_speed_quick" if options.quick else "evaluation_speed", rows, options.output))
    return 0


def measured(name: str, data: Path, options: Any) -> Iterator[Result]:
    """Rows of one model."""
    text, own = MODELS[name]
    overrides = [*own, f"model.path={data / name}", f"task.data.path={data / text}"]
    bench = search_of(options.root, f"evaluation_speed_{name}", *overrides).bench
    bench.evaluator.teacher.prepare(["train"])
    subnets = bench.space.sample(np.random.default_rng(0), 3 if options.quick else 9)
    seconds: dict[tuple[str, int], list[float]] = {}
    sides = evaluators(bench.evaluator)
    for number, subnet in enumerate(subnets):
        for steps in STEPS:
            for side, evaluator in sides.items():
                found = timed(evaluator, subnet, steps)
                if number:  # The first of each side loads kernels.
                    seconds.setdefault((side, steps), []).append(found)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    context = common.machine(model=name, gpu=gpu, threads=torch.get_num_threads(), quick=options.quick)
    for (side, steps), values in seconds.items():
        told = f"evaluation of {name} with {steps} steps, {side}"
        yield result(told, values, "s", context)
        if side != "CPU fp32":
            base = seconds["CPU fp32", steps]
            ratios = [own / other for own, other in zip(base, values, strict=True)]
            yield result(f"{told}: speed-up over CPU fp32", ratios, "x", context)


def evaluators(of: Evaluator) -> dict[str, Evaluator]:
    """The same evaluator in other places and precisions."""
    places = {"CPU": CPU} | ({"GPU": find_device("cuda")} if torch.cuda.is_available() else {})
    found = {}
    for title, place in places.items():
        for precision in ("fp32", "bf16"):
            training = replace(of.training, precision=precision)
            found[f"{title} {precision}"] = Evaluator(
                of.supernet, of.task, of.distiller, training, of.teacher, precision=precision, place=place
            )
    return found


def timed(evaluator: Evaluator, subnet: SubnetConfig, steps: int) -> float:
    """Seconds of one evaluation."""
    started = time.perf_counter()
    evaluator.evaluate(subnet, steps=steps)
    return time.perf_counter() - started


def result(claim: str, values: Sequence[float], unit: str, context: dict[str, Any]) -> Result:
    """A median with its range."""
    return Result(claim, float(np.median(values)), unit, len(values), min(values), max(values), context=context)


if __name__ == "__main__":
    sys.exit(main())
