"""Which search engine finds the best trade-offs with the fewest evaluations, replayed on real measurements.

    python benchmarks/search_engines.py --data DIR            # DIR/hwgpt/table_*.csv.gz, of HW-GPT-Bench
    python benchmarks/search_engines.py --data DIR --quick    # one seed, few evaluations

Every engine minimises perplexity and latency over the rows of the table. Perplexity is read when a row is evaluated;
latency is what a predictor says that was fitted to 100 rows. What counts is the hypervolume of the *true* values of all
evaluated rows, both scaled to the table, as a share of the hypervolume of the table's own front.

``snap``: the space is far larger than the table, so a proposal is snapped to the nearest unseen row, the same way for
every engine: the row's values are told under the row's own parameters, and the proposal itself is told to have failed,
as it would be if there were no such subnet. ``pool``: the engines that can choose from given candidates choose from the
rows.

GP is Optuna's most costly sampler (about two seconds a proposal), so it has fewer seeds. Syne Tune is optional: ``pip
install --no-deps syne-tune``. The file also times the engine itself on a trivial evaluation: everything that a trial
costs beside its evaluation.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
from search_overhead import overhead
from search_table import Levels, Problem, SearchTable, TableLandscape, canonical

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

MODES = ("pool", "snap")
SHOWN = (50, 100, 200, 500)
TARGET = {50: 0.966, 100: 0.986, 200: 0.997, 500: 0.999}
TARGET_COLUMN = "lat_ms_a100"
LOOP = "20-line ridge loop .966/.984/.997, random .897/.915/.935 at 50/100/200"


class Engine(Protocol):
    """Something that searches."""

    def propose(self) -> Levels:
        """``(27,)`` levels to evaluate."""

    def tell(self, levels: Levels, values: tuple[float, float]) -> None:
        """What was evaluated instead, and its values."""


class OptunaEngine:
    """Any Optuna sampler, ours included."""

    def __init__(self, sampler: BaseSampler) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
        self.space: dict[str, BaseDistribution] = {
            name: optuna.distributions.IntDistribution(0, int(count) - 1)
            for name, count in zip(TableLandscape.parameters, TableLandscape.counts, strict=True)
        }
        self._attributes: dict[str, Any] = {}
        self._asked: optuna.trial.Trial

    def propose(self) -> Levels:
        """Ask the study."""
        trial = self.study.ask(self.space)
        self._asked = trial
        # NSGA-II knows its generations by these.
        self._attributes = self.study.get_trials(deepcopy=False)[trial.number].system_attrs
        return np.array([trial.params[name] for name in self.space], dtype=np.int64)

    def tell(self, levels: Levels, values: tuple[float, float]) -> None:
        """A proposal that is the row has its values; any other has failed, and the row is a trial of its own."""
        import optuna

        proposal = np.array([self._asked.params[name] for name in self.space], dtype=np.int64)
        if np.array_equal(canonical(proposal[None, :])[0], levels):
            self.study.tell(self._asked, list(values))
            return
        self._asked.set_user_attr("reason", "not in the table")
        self.study.tell(self._asked, state=optuna.trial.TrialState.FAIL)
        self.study.add_trial(
            optuna.trial.create_trial(
                params=dict(zip(self.space, np.maximum(levels, 0).tolist(), strict=True)),
                distributions=self.space,
                values=list(values),
                system_attrs=dict(self._attributes),
            )
        )


class EvolutionEngine:
    """Syne Tune's regularised evolution for several objectives, with its own defaults."""

    def __init__(self, seed: int) -> None:
        from syne_tune.config_space import randint
        from syne_tune.optimizer.schedulers.multiobjective.multi_objective_regularized_evolution import (
            MultiObjectiveRegularizedEvolution,
        )

        parameters = zip(TableLandscape.parameters, TableLandscape.counts, strict=True)
        self.searcher = MultiObjectiveRegularizedEvolution(
            {name: randint(0, int(count) - 1) for name, count in parameters}, random_seed=seed
        )
        self._told = 0

    def propose(self) -> Levels:
        """Its next configuration."""
        found = self.searcher.suggest()
        return np.array([found[name] for name in TableLandscape.parameters], dtype=np.int64)

    def tell(self, levels: Levels, values: tuple[float, float]) -> None:
        """Tell it of the row."""
        configuration = dict(zip(TableLandscape.parameters, np.maximum(levels, 0).tolist(), strict=True))
        self.searcher.on_trial_complete(self._told, configuration, list(values))
        self._told += 1


class RandomRows:
    """Random rows of a pool, each once."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self._left = iter(np.random.default_rng([seed, 2]).permutation(problem.table.levels))

    def propose(self) -> Levels:
        """The next row."""
        return next(self._left)

    def tell(self, levels: Levels, values: tuple[float, float]) -> None:
        """Nothing is learnt."""


def _optuna(name: str, **options: Any) -> Callable[[Problem, int], Engine]:
    def make(problem: Problem, seed: int) -> Engine:  # noqa: ARG001 - every engine is made alike
        import optuna

        return OptunaEngine(getattr(optuna.samplers, name)(seed=seed, **options))

    return make


def _guided(*, pool: bool) -> Callable[[Problem, int], Engine]:
    def make(problem: Problem, seed: int) -> Engine:
        from nas.engine.guided_sampler import GuidedSampler

        return OptunaEngine(GuidedSampler(seed=seed).over(TableLandscape(problem, pool=pool)))

    return make


@dataclass(frozen=True)
class Plan:
    """What one engine is run for.

    Args:
        make: Makes it for a problem and a seed.
        evaluations: In one run.
        seeds: How many runs per column.
    """

    make: Callable[[Problem, int], Engine]
    evaluations: int
    seeds: int


def plans(mode: str, column: str, *, quick: bool) -> dict[str, Plan]:
    """The engines of one block of rows."""
    most, seeds = (30, 1) if quick else (200, 10)
    if mode == "pool":
        own = 500 if column == TARGET_COLUMN and not quick else most
        return {
            "guided": Plan(_guided(pool=True), own, seeds),
            "random": Plan(RandomRows, most, seeds),
        }
    found = {
        "guided": Plan(_guided(pool=False), most, seeds),
        "random": Plan(_optuna("RandomSampler"), most, seeds),
        "tpe": Plan(_optuna("TPESampler", multivariate=True), most, seeds),
        "nsga2": Plan(_optuna("NSGAIISampler", population_size=30), most, seeds),
        "gp": Plan(_optuna("GPSampler", deterministic_objective=True), 12 if quick else most, 1 if quick else 3),
    }
    try:
        import syne_tune  # noqa: F401
    except ModuleNotFoundError:
        print("skipped mo_rea: pip install --no-deps syne-tune")
    else:
        found["mo_rea"] = Plan(lambda _, seed: EvolutionEngine(seed), most, seeds)
    return found


def replay(engine: Engine, problem: Problem, evaluations: int) -> list[int]:
    """Rows in the order in which an engine comes to them."""
    unseen = np.ones(len(problem.table.quality), dtype=bool)
    rows: list[int] = []
    for _ in range(evaluations):
        row = problem.table.nearest(engine.propose(), unseen)
        unseen[row] = False
        rows.append(row)
        engine.tell(problem.table.levels[row], problem.told(row))
    return rows


def block(
    problems: Mapping[int, Problem],
    column: str,
    mode: str,
    engines: Mapping[str, Plan],
    context: Mapping[str, Any],
    *,
    quick: bool,
) -> list[common.Result]:
    """Rows of these engines on one column."""
    results = []
    for name, plan in engines.items():
        started = time.perf_counter()
        chosen = {s: problems[s] for s in range(plan.seeds)}
        found = {s: replay(plan.make(problem, s), problem, plan.evaluations) for s, problem in chosen.items()}
        for count in (n for n in SHOWN if n <= plan.evaluations) if not quick else (plan.evaluations,):
            shares = [problems[s].share(rows[:count]) for s, rows in found.items()]
            aimed = name == "guided" and mode == "pool" and column == TARGET_COLUMN and count in TARGET
            results.append(
                common.Result(
                    f"hypervolume {name} {column} {mode} n={count}",
                    float(np.mean(shares)),
                    "of the front's",
                    len(shares),
                    min(shares),
                    max(shares),
                    f"target >= {TARGET[count]}; {LOOP}" if aimed else "",
                    {**context, "seeds": list(chosen)},
                )
            )
        took = (time.perf_counter() - started) / plan.seeds
        print(f"{name} {column} {mode}: {results[-1].value:.4f}, {took:.1f} s a run", flush=True)
    return results


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument(
        "--engines",
        nargs="*",
        metavar="NAME",
        help="run these alone, and replace their rows in what was written before",
    )
    arguments.add_argument("--columns", nargs="*", metavar="NAME", help="replay on these latencies alone")
    arguments.add_argument("--modes", nargs="*", choices=MODES, default=MODES, help="how to replay")
    arguments.add_argument("--evaluations", type=int, default=500, help="at most so many in a run")
    options = arguments.parse_args()
    warnings.simplefilter("ignore")  # Samplers of Optuna that are marked experimental.
    tables = sorted((options.data / "hwgpt").glob("table_*.csv.gz")) if options.data else []
    if not tables:
        print("skipped: --data DIR must hold hwgpt/table_*.csv.gz of HW-GPT-Bench")
        return 0
    name = "search_engines_quick" if options.quick else "search_engines"
    results = overhead(quick=options.quick) if not options.engines or "overhead" in options.engines else []
    common.show(results)
    for path in tables:
        table = SearchTable.read(path)
        context = common.machine(table=path.name, profiled_rows=100, rows=len(table.quality))
        for column in (name for name in table.latencies if not options.columns or name in options.columns):
            problems = {seed: Problem.make(table, column, seed) for seed in range(1 if options.quick else 10)}
            for mode in options.modes:
                wanted = {
                    name: replace(plan, evaluations=min(plan.evaluations, options.evaluations))
                    for name, plan in plans(mode, column, quick=options.quick).items()
                    if not options.engines or name in options.engines
                }
                results += block(problems, column, mode, wanted, context, quick=options.quick)
                if options.engines and wanted:  # At once: the next column may take half an hour.
                    common.write(name, common.merged(name, results, options.output), options.output)
    if options.engines or options.columns or options.modes != MODES:
        results = common.merged(name, results, options.output)
    common.show(results)
    print(common.write(name, results, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
