"""Does a search that is told to watch the worst group find a model whose worst group is better, at equal cost?

MiniLM fine-tuned on RedditBias (five groups of comments), widths searched without training. Three searches with as many
evaluations each: for accuracy; for accuracy and the worst group's; for the worst group's alone; each beside the
multiply-accumulates. Of each, the best under a budget by its own goal on the validation split is judged on a test
split that no search saw, and the winners are measured beside each other. Three seeds; intervals are over test
samples, drawn within their groups.

    python benchmarks/worst_group_search.py            # continues where an earlier run stopped
    python benchmarks/worst_group_search.py --quick    # one seed, few trials
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import Result
from numpy.typing import NDArray
from report_card import task_options
from teachers import teacher_of

from nas.engine.candidates import Candidate
from nas.evaluation.evaluate import predict
from nas.searching import SearchBench

WORST = "worst_group_accuracy"
# Goal of the choice -> goals of the search; the first is named in every figure.
ARMS: Mapping[str, tuple[str, Sequence[str]]] = {
    "accuracy": ("accuracy", ("quality", "macs")),
    "accuracy and worst group": (WORST, ("quality", "macs", WORST)),
    "worst group": (WORST, (WORST, "macs")),
}
BUDGETS = (0.5, 0.65, 0.8)
RESAMPLES = 2000


@dataclass(frozen=True)
class Pick:
    """The chosen model of one search under one budget, on the test split."""

    arm: str
    seed: int
    budget: float
    candidate: Candidate
    correct: NDArray[np.float64]


def main() -> int:
    arguments = common.parser(__doc__)
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs", help="folder of the studies")
    arguments.add_argument("--trials", type=int, default=40, help="evaluations of each search")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if not (data / "reddit_bias.csv").is_file():
        print(f"skipped: {data} lacks reddit_bias.csv; run `make assets`")
        return 0
    teacher_of("reddit_bias", data)
    seeds, trials = (range(1), 12) if options.quick else (range(3), options.trials)
    picks: list[Pick] = []
    for seed in seeds:
        for arm in ARMS:
            picks += search(arm, seed, trials, data, options.root)
    bench = searching("accuracy", 0, trials, data, options.root)
    groups = np.array(bench.bench.task.samples.groups("test")["group"])
    context = {**common.machine(), "trials": trials, "seeds": len(seeds), "test samples": len(groups)}
    results = compare(picks, groups, context)
    results += measured(picks, bench, context)
    common.show(results)
    print(common.write("worst_group_search_quick" if options.quick else "worst_group_search", results, options.output))
    return 0


def searching(arm: str, seed: int, trials: int, data: Path, root: Path) -> SearchBench:
    """The stages of one search."""
    from hydra import compose, initialize_config_dir

    from nas.commands import plain
    from nas.config import conf_dir
    from nas.measuring import DeviceBench
    from nas.workbench import Workbench

    goals = ARMS[arm][1]
    overrides = [
        f"root={root}", f"study=worst-group-{list(ARMS).index(arm)}-{seed}", f"seed={seed}",
        f"model.path={data / 'minilm_reddit_bias'}", *task_options("reddit_bias", data), "distiller=logits",
        "space=width", f"objectives=[{','.join(goals)}]", "+objectives.constraints.macs=0.8x",
        # Names the metric in every arm, so that all share their evaluations; it excludes nothing.
        f'+objectives.constraints.{WORST}=">= 0"', '+objectives.constraints.accuracy=">= 0"',
        f"search.num_trials={trials}", "search.sensitivity_evaluations=43", "torch_threads=1",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        bench = Workbench(plain(compose("search", overrides=overrides)))
    return SearchBench(bench, DeviceBench(bench))


def search(arm: str, seed: int, trials: int, data: Path, root: Path) -> list[Pick]:
    """Search, choose under every budget, and judge the chosen on the test split."""
    stages = searching(arm, seed, trials, data, root)
    stages.directory.mkdir(parents=True, exist_ok=True)
    found = stages.run().candidates
    whole = stages.costs.of(stages.bench.space.teacher)["macs"][0]
    goal, picks = ARMS[arm][0], []
    for budget in BUDGETS:
        able = [c for c in found if c.predicted["macs"][0] <= budget * whole]
        if able:
            best = max(able, key=lambda c: (c.metrics[goal], c.metrics["accuracy"]))
            picks.append(Pick(arm, seed, budget, best, correct(stages, best)))
    return picks


def correct(stages: SearchBench, candidate: Candidate) -> NDArray[np.float64]:
    """Which test samples a subnet gets right."""
    bench = stages.bench
    model, task = bench.supernet.extract(candidate.subnet), bench.task
    outputs = predict(lambda batch: task.outputs(model, batch), task, "test")
    rows = task.tables("test", outputs, bench.evaluator.teacher.main("test"))["samples"]
    return np.asarray(rows["correct"], dtype=np.float64)


def compare(picks: Sequence[Pick], groups: NDArray[np.str_], context: dict[str, Any]) -> list[Result]:
    """Worst-group and overall accuracy by arm and budget, and the differences to the search for accuracy alone."""
    names = sorted(set(groups))
    generator = np.random.default_rng(0)
    draws = [np.arange(len(groups))]
    for _ in range(RESAMPLES):
        parts = [generator.choice(np.flatnonzero(groups == name), int((groups == name).sum())) for name in names]
        draws.append(np.concatenate(parts))

    def worst(values: NDArray[np.float64], drawn: NDArray[np.int64]) -> float:
        own, of = values[drawn], groups[drawn]
        return float(min(own[of == name].mean() for name in names))

    by_pick = {
        id(pick): np.array([(worst(pick.correct, drawn), pick.correct[drawn].mean()) for drawn in draws])
        for pick in picks
    }
    results = []
    for budget in (*BUDGETS, None):
        for arm in ARMS:
            own = [by_pick[id(p)] for p in picks if p.arm == arm and budget in (None, p.budget)]
            base = [by_pick[id(p)] for p in picks if p.arm == "accuracy" and budget in (None, p.budget)]
            where = {**context, "arm": arm, "budget": "all" if budget is None else f"{budget:g} of the teacher's MACs"}
            for column, name in enumerate(("worst-group accuracy on test", "accuracy on test")):
                values = np.mean([values[:, column] for values in own], axis=0)
                results.append(_result(name, values, len(own), where))
                if arm != "accuracy":
                    gain = values - np.mean([values[:, column] for values in base], axis=0)
                    results.append(_result(f"gain in {name}", gain, len(own), where))
    return results


def measured(picks: Sequence[Pick], stages: SearchBench, context: dict[str, Any]) -> list[Result]:
    """Latency of every different chosen model beside the teacher, as medians of each arm and budget."""
    from latency_models.profiler import Profiler

    unique = {pick.candidate.subnet: None for pick in picks}
    jobs = [(subnet, stages.device.job(subnet)) for subnet in unique]
    profiler = Profiler(min_visits=9, max_seconds=2.0, retries=0)
    found = dict(profiler.measure(jobs, stages.device.job(stages.bench.space.teacher)))
    results = []
    for budget in BUDGETS:
        for arm in ARMS:
            ratios = [
                float(np.median(np.divide(found[p.candidate.subnet].samples, found[p.candidate.subnet].reference)))
                for p in picks
                if p.arm == arm and p.budget == budget
            ]
            where = {**context, "arm": arm, "budget": f"{budget:g} of the teacher's MACs"}
            if ratios:
                results.append(
                    Result(
                        "latency of the teacher's",
                        float(np.median(ratios)),
                        "",
                        len(ratios),
                        min(ratios),
                        max(ratios),
                        context=where,
                    )
                )
    return results


def _result(name: str, values: NDArray[np.float64], n: int, context: dict[str, Any]) -> Result:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Result(name, float(values[0]), "", n, float(low), float(high), context=context)


if __name__ == "__main__":
    sys.exit(main())
