"""How a search is doing, told to trackers: the live line is one of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nas.engine.candidates import Candidate
from nas.engine.limits import Objectives
from nas.engine.pareto import REFERENCE, hypervolume, in_first_units
from nas.engine.slots import abandoned

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from nas.progress import Progress


@dataclass(frozen=True)
class Status:
    """A search in numbers.

    Args:
        finished: Trials that have ended, those of dead workers not counted.
        total: Trials that there will be.
        already: Trials that had ended before this run.
        feasible: Evaluated trials that keep to every constraint.
        outcomes: How many trials ended how: ``evaluated``, ``cached``, ``duplicate``, ``infeasible``, ``failed``.
        hypervolume: Of the feasible trials, each goal scaled by the first trials' range; grows as the front does.
        best: Goal -> best feasible value so far.
        trials_per_minute: Of this run.
        left_s: Seconds left at that pace; None before the first trial.
    """

    finished: int
    total: int
    already: int
    feasible: int
    outcomes: Mapping[str, int]
    hypervolume: float
    best: Mapping[str, float]
    trials_per_minute: float
    left_s: float | None

    def __str__(self) -> str:
        ended = max(sum(self.outcomes.values()), 1)
        parts = [f"feasible {self.feasible / ended:.0%}", f"hypervolume {self.hypervolume:.4g}"]
        parts += [f"best {name} {value:.4g}" for name, value in self.best.items()]
        parts.append(f"{self.trials_per_minute:.3g} trials/min")
        return ", ".join(parts)


class Tracker(Protocol):
    """Hears of every trial: the hook for experiment trackers such as MLflow.

    Pass instances as ``trackers`` to `Search`, or register a class (called without arguments) as an entry point of the
    group ``hwnas.trackers`` and name it in ``search.trackers``. An error in a tracker stops the search like any other
    error: a tracker that may fail must catch what it can live with.
    """

    def trial_finished(self, trial: FrozenTrial, status: Status) -> None:
        """A trial has ended, however it did; ``trial.user_attrs`` holds the subnet, the metrics, and the reason."""

    def search_finished(self, front: Sequence[Candidate]) -> None:
        """The search has ended or been interrupted."""


def load_trackers(names: Sequence[str]) -> tuple[Tracker, ...]:
    """Trackers of installed packages, by the names of their entry points.

    Raises:
        ValueError: Nothing installed has such an entry point.
    """
    from importlib.metadata import entry_points

    known = {point.name: point for point in entry_points(group="hwnas.trackers")}
    for name in names:
        if name not in known:
            there = ", ".join(sorted(known)) or "none are installed"
            raise ValueError(f"`search.trackers` must name entry points of hwnas.trackers ({there}), but got {name!r}.")
    return tuple(known[name].load()() for name in names)


class LiveLine:
    """The tracker that keeps one line up to date.

    Args:
        progress: Where to write; entered and left by the caller.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def trial_finished(self, trial: FrozenTrial, status: Status) -> None:  # noqa: ARG002 - see Tracker
        """Advance by what has ended since the last call, other workers' trials included."""
        if self.progress.done == 0 and status.already:
            self.progress.resume(status.already)
        self.progress.advance(max(0, status.finished - self.progress.done), text=str(status))

    def search_finished(self, front: Sequence[Candidate]) -> None:
        """Nothing: whoever opened the line closes it."""


class StatusBoard:
    """Computes the status after each trial.

    Args:
        objectives: The goals.
        total: Trials that there will be.
        already: Trials that had ended before this run.
        clock: Gives seconds; tests pass their own.
    """

    def __init__(
        self, objectives: Objectives, total: int, already: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.objectives = objectives
        self.total = total
        self.already = already
        self._clock = clock
        self._started = clock()

    def __call__(self, trials: Sequence[FrozenTrial]) -> Status:
        """The status that these trials mean."""
        ended = [trial for trial in trials if trial.state.is_finished() and not abandoned(trial)]
        able = [t for t in ended if t.state.name == "COMPLETE" and all(v <= 0 for v in t.constraints.values())]
        losses = np.array([self.objectives.losses(t.values) for t in able], dtype=np.float64)
        elapsed = max(self._clock() - self._started, 1e-9)
        own = len(ended) - self.already
        best: dict[str, float] = {}
        if able:
            for column, (name, direction) in enumerate(self.objectives.goals.items()):
                least = float(losses[:, column].min())
                best[name] = least if direction == "minimize" else -least
        return Status(
            finished=len(ended),
            total=self.total,
            already=self.already,
            feasible=len(able),
            outcomes=Counter(outcome_of(trial) for trial in ended),
            hypervolume=hypervolume(in_first_units(losses), np.full(losses.shape[1], REFERENCE)) if able else 0.0,
            best=best,
            trials_per_minute=60.0 * own / elapsed,
            left_s=max(self.total - len(ended), 0) * elapsed / own if own > 0 else None,
        )


def outcome_of(trial: FrozenTrial) -> str:
    """How a finished trial ended: ``evaluated``, ``cached``, ``duplicate``, ``infeasible``, ``pruned``, ``failed``."""
    if trial.state.name == "FAIL":
        return "failed"
    result = trial.user_attrs.get("result")
    ended = "pruned" if trial.state.name == "PRUNED" else "evaluated"
    return str(result.get("outcome", ended)) if isinstance(result, Mapping) else ended
