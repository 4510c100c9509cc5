"""Does a search that is told to watch the worst group find a model whose worst group is better, at equal cost?

MiniLM fine-tuned on RedditBias (five groups of comments), searched without training. Two searches with as many
evaluations each: for accuracy, and for accuracy and the worst group's, both beside the multiply-accumulates. Of each,
the best under a budget by its goal on the validation split is judged on a test split that no search saw; of the
search for accuracy also the one that is best for the worst group, which costs no search. The chosen are measured
beside each other. Three seeds; intervals are over seeds, and test samples within their groups.

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

from nas.distillation.precision import forward_precision
from nas.engine.candidates import Candidate
from nas.evaluation.evaluate import predict
from nas.searching import SearchBench
from search_spaces.subnet import SubnetConfig

WORST = "worst_group_accuracy"
# What is searched for.
SEARCHES: Sequence[Sequence[str]] = (("quality", "macs"), ("quality", "macs", WORST))
# Which of the searches, and by what its models are chosen on the validation split.
ARMS: Mapping[str, tuple[int, str]] = {
    "accuracy": (0, "accuracy"),
    "accuracy, chosen by the worst group": (0, WORST),
    "accuracy and worst group": (1, WORST),
}
BUDGETS = (0.5, 0.7)
RESAMPLES = 2000
# No table of sensitivities, which knows accuracy alone: trials are for what the searches differ in.
FAST_START = ("search.sensitivity_evaluations=0", "search.uniform_starts=4", "sampler.startup_trials=5")


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
    arguments.add_argument("--trials", type=int, default=22, help="evaluations of each search")
    arguments.add_argument("--seeds", type=int, default=3, help="searches of each kind")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if not (data / "reddit_bias.csv").is_file():
        print(f"skipped: {data} lacks reddit_bias.csv; run `make assets`")
        return 0
    teacher_of("reddit_bias", data)
    seeds, trials = (range(1), 8) if options.quick else (range(options.seeds), options.trials)
    picks: list[Pick] = []
    judged: dict[SubnetConfig, NDArray[np.float64]] = {}
    for seed in seeds:
        for number in range(len(SEARCHES)):
            picks += search(number, seed, trials, data, options.root, judged)
    bench = searching(0, 0, trials, data, options.root)
    groups = np.array(bench.bench.task.samples.groups("test")["group"])
    context = {**common.machine(), "trials": trials, "seeds": len(seeds), "test samples": len(groups)}
    results = compare(picks, groups, context)
    results += measured(picks, bench, context)
    common.show(results)
    print(common.write("worst_group_search_quick" if options.quick else "worst_group_search", results, options.output))
    return 0


def searching(number: int, seed: int, trials: int, data: Path, root: Path) -> SearchBench:
    """The stages of one search."""
    from hydra import compose, initialize_config_dir

    from nas.commands import plain
    from nas.config import conf_dir
    from nas.measuring import DeviceBench
    from nas.workbench import Workbench

    overrides = [
        f"root={root}", f"study=worst-group-{number}-{seed}", f"seed={seed}",
        f"model.path={data / 'minilm_reddit_bias'}", *task_options("reddit_bias", data), "distiller=logits",
        f"objectives=[{','.join(SEARCHES[number])}]", "+objectives.constraints.macs=0.7x",
        # Names the metric in every search, so that all share their evaluations; it excludes nothing.
        f'+objectives.constraints.{WORST}=">= 0"', '+objectives.constraints.accuracy=">= 0"',
        f"search.num_trials={trials}", *FAST_START, "torch_threads=1",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        bench = Workbench(plain(compose("search", overrides=overrides)))
    return SearchBench(bench, DeviceBench(bench))


def search(
    number: int, seed: int, trials: int, data: Path, root: Path, judged: dict[SubnetConfig, NDArray[np.float64]]
) -> list[Pick]:
    """Search, choose under every budget and by every goal, and judge the chosen on the test split, each once."""
    stages = searching(number, seed, trials, data, root)
    stages.directory.mkdir(parents=True, exist_ok=True)
    found = stages.run().candidates
    whole = stages.costs.of(stages.bench.space.teacher)["macs"][0]
    picks = []
    for arm, (own, goal) in ARMS.items():
        for budget in BUDGETS if own == number else ():
            able = [c for c in found if c.predicted["macs"][0] <= budget * whole]
            if not able:
                continue
            best = max(able, key=lambda c: (c.metrics[goal], c.metrics["accuracy"]))
            if best.subnet not in judged:
                judged[best.subnet] = correct(stages, best)
            picks.append(Pick(arm, seed, budget, best, judged[best.subnet]))
    return picks


def correct(stages: SearchBench, candidate: Candidate) -> NDArray[np.float64]:
    """Which test samples a subnet gets right."""
    bench = stages.bench
    model, task = bench.supernet.extract(candidate.subnet), bench.task
    with forward_precision("auto"):  # As the search judges; what it costs in accuracy is far below the intervals.
        outputs = predict(lambda batch: task.outputs(model, batch), task, "test")
    rows = task.tables("test", outputs, bench.evaluator.teacher.main("test"))["samples"]
    return np.asarray(rows["correct"], dtype=np.float64)


def compare(picks: Sequence[Pick], groups: NDArray[np.str_], context: dict[str, Any]) -> list[Result]:
    """Worst-group and overall accuracy by arm and budget, and the differences to the search for accuracy alone."""
    drawn = resampled(picks, groups)
    budgets = [budget for budget in BUDGETS if all((arm, budget) in drawn for arm in ARMS)]
    results = []
    for at in (budgets, *([budget] for budget in budgets)):
        where = "all budgets" if at is budgets else f"{at[0]:g} of the MACs"
        # (1 + resamples, metrics), the exact values first.
        values = {arm: np.mean([drawn[arm, budget] for budget in at], axis=0) for arm in ARMS}
        for column, name in enumerate(("worst-group accuracy", "accuracy")):
            for arm, own in values.items():
                n = sum(pick.arm == arm and pick.budget in at for pick in picks)
                results.append(_result(f"test {name}, {where}, {arm}", own[:, column], n, context))
                if arm != "accuracy":
                    gain = own[:, column] - values["accuracy"][:, column]
                    results.append(_result(f"gain in {name}, {where}, {arm}", gain, n, context))
    return sorted(results, key=lambda result: not result.claim.startswith("gain"))


def resampled(picks: Sequence[Pick], groups: NDArray[np.str_]) -> dict[tuple[str, float], NDArray[np.float64]]:
    """Worst-group accuracy and accuracy by arm and budget, means over seeds, ``(1 + resamples, 2)``.

    Drawn anew are seeds, and test samples within their groups; alike for all arms, so that differences are paired.
    """
    names, seeds = sorted(set(groups)), sorted({pick.seed for pick in picks})
    generator = np.random.default_rng(0)
    draws = [[np.flatnonzero(groups == name) for name in names]]
    draws += [[generator.choice(rows, len(rows)) for rows in draws[0]] for _ in range(RESAMPLES)]
    shares = np.full((1 + RESAMPLES, len(seeds)), 1 / len(seeds))
    shares[1:] = generator.multinomial(len(seeds), shares[0], RESAMPLES) / len(seeds)

    def judged(pick: Pick) -> list[tuple[float, float]]:
        parts = ([pick.correct[rows] for rows in drawn] for drawn in draws)
        return [(min(part.mean() for part in own), np.concatenate(own).mean()) for own in parts]

    chosen = {(pick.arm, pick.budget, pick.seed): pick for pick in picks}
    found = {}
    for arm in ARMS:
        for budget in BUDGETS:
            own = [chosen.get((arm, budget, seed)) for seed in seeds]
            if all(own):
                by_seed = np.array([judged(pick) for pick in own if pick])
                found[arm, budget] = np.einsum("sdm,ds->dm", by_seed, shares)
    return found


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
            if ratios:
                claim = f"latency over the teacher's, {budget:g} of the MACs, {arm}"
                middle, low, high = float(np.median(ratios)), min(ratios), max(ratios)
                results.append(Result(claim, middle, "", len(ratios), low, high, context=context))
    return results


def _result(name: str, values: NDArray[np.float64], n: int, context: dict[str, Any]) -> Result:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Result(name, float(values[0]), "", n, float(low), float(high), context=context)


if __name__ == "__main__":
    sys.exit(main())
