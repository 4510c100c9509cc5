"""Are finalists that lack more than half better distilled in two stages? At the same number of steps.

MiniLM on movie sentences. Subnets of which more than half of the blocks' parameters are gone are refitted and distilled
at once, or half of the steps as a subnet that has lost half as much, then cut down, refitted, and the other half. Each
is judged on test sentences that neither calibration nor training saw.

    python benchmarks/finalist_stages.py              # writes benchmarks/results/finalist_stages.json
    python benchmarks/finalist_stages.py --quick      # one subnet, one seed, few steps

What is finished is kept below `--root`: a run that was broken off goes on where it was.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import Result
from end_to_end_entries import file_name, search_of

from nas.evaluation.evaluate import evaluate_model
from nas.finalists import Budget, distil_finalist
from nas.workbench import Workbench
from search_spaces.cost import costs
from search_spaces.subnet import SubnetConfig

NAME = "finalist_stages"
# Heads and neurons of every block.
UNIFORM = ((6, 384), (3, 384), (3, 192))
STAGES = {0: "undistilled", 1: "one stage", 2: "two stages"}


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs" / NAME, help="folder of the caches")
    arguments.add_argument("--steps", type=int, default=60, help="distillation steps, of both stages together")
    arguments.add_argument("--seeds", type=int, nargs="*", default=[0, 1], help="which")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if common.skipped(data, "minilm", "movie.csv"):
        return 0
    sizes, seeds = (UNIFORM[1:2], options.seeds[:1]) if options.quick else (UNIFORM, options.seeds)
    options.steps = 6 if options.quick else options.steps
    found: dict[tuple[str, int], list[Mapping[str, float]]] = {}
    for seed in seeds:
        bench = workbench(data, options.root, seed)
        for name, subnet in subnets(bench, sizes).items():
            for stages, metrics in judged(bench, name, subnet, options.steps):
                found.setdefault((name, stages), []).append(metrics)
    context = common.machine(steps=options.steps, seeds=list(seeds), quick=options.quick)
    rows = list(results(found, context))
    common.show(rows)
    print(common.write(f"{NAME}_quick" if options.quick else NAME, rows, options.output))
    return 0


def workbench(data: Path, root: Path, seed: int) -> Workbench:
    """The stages of a search whose calibration, training and data have this seed."""
    options = [f"model.path={data / 'minilm'}", f"task.data.path={data / 'movie.csv'}", "task.data.test=1000"]
    return search_of(root, f"stages_{seed}", *options, f"seed={seed}", f"task.data.seed={seed}").bench


def subnets(bench: Workbench, sizes: Any) -> dict[str, SubnetConfig]:
    """Uniform ones, by name with the share of the blocks' parameters that is gone."""
    space, found = bench.space, {}
    for heads, ffn in sizes:
        block = replace(space.teacher.blocks[0], heads=heads, kv_heads=heads, ffn=ffn)
        subnet = space.canonical(replace(space.teacher, blocks=(block,) * space.shape.num_blocks))
        own, whole = costs(space.shape, [subnet, space.teacher]).block_parameters
        found[f"{heads} heads, FFN {ffn} ({1 - own / whole:.0%} removed)"] = subnet
    return found


def judged(bench: Workbench, name: str, subnet: SubnetConfig, steps: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Metrics on the test split: refitted alone, and distilled in one stage and in two."""
    refitted: Any = None
    for stages, told in STAGES.items():
        path = bench.root / "parts" / f"{file_name(name, told)}_{bench.seed}_{steps}.json"
        if not path.is_file():
            refitted = refitted or bench.finalist(subnet)
            model = copy.deepcopy(refitted)
            if stages:
                distil_finalist(bench, subnet, model, name, Budget(steps, None, stages))
            found = evaluate_model(model, bench.task, bench.evaluator.teacher, "test")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found), encoding="utf-8")
        yield stages, json.loads(path.read_text(encoding="utf-8"))


def results(found: Mapping[tuple[str, int], list[Mapping[str, float]]], context: Mapping[str, Any]) -> Iterator[Result]:
    """Means over seeds; recall and rank correlation stand beside each cosine."""
    for (name, stages), metrics in found.items():
        cosines = [each["cosine"] for each in metrics]
        beside = {key: round(float(np.mean([each[key] for each in metrics])), 4) for key in ("recall", "spearman")}
        claim, low, high = f"cosine of {name}, {STAGES[stages]}", min(cosines), max(cosines)
        yield Result(claim, float(np.mean(cosines)), "", len(cosines), low, high, context={**context, **beside})


if __name__ == "__main__":
    sys.exit(main())
