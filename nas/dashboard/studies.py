"""One study as pages see it: its facts, its trials, and what its search left on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nas.dashboard.trials import Trials
from nas.engine.limits import Objectives
from nas.engine.pareto import REFERENCE, Floats, hypervolume_history, in_first_units
from nas.reports.data import Report
from search_spaces.subnet import BlockConfig, SubnetConfig

# Without a finished trial for so long, a search on another machine no longer counts as running.
SILENT_S = 300.0


@dataclass(frozen=True)
class StudyFacts:
    """What does not change while a study is searched.

    Args:
        name: Its name in the storage.
        key: What pages know it by: the name, made unique where several storages have it.
        storage: The storage in words, passwords hidden.
        directory: Its run folder, where there is one.
        objectives: Goals in the order of the trials' values.
        context: What the search wrote about itself: device, workload, space, task, constraints.
    """

    name: str
    key: str
    storage: str
    directory: Path | None
    objectives: Objectives
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """The device's name, or a dash."""
        return str(_mapping(self.context.get("device")).get("name", "-"))

    @property
    def constraints(self) -> tuple[str, ...]:
        """Each constraint in words: ``latency_ms <= 12``."""
        return tuple(str(text) for text in _mapping(self.context.get("constraints")).values())

    @cached_property
    def bounds(self) -> dict[str, tuple[str, float]]:
        """Name -> (``<=`` or ``>=``, limit)."""
        found = {}
        for name, text in _mapping(self.context.get("constraints")).items():
            parts = str(text).rsplit(maxsplit=2)
            try:
                found[str(name)] = (parts[-2], float(parts[-1]))
            except (IndexError, ValueError):
                continue
        return found

    @cached_property
    def teacher(self) -> SubnetConfig | None:
        """The largest subnet, from the space that the study was begun with."""
        shape = _mapping(_mapping(self.context.get("space")).get("shape"))
        try:
            block = BlockConfig(heads=shape["heads"], kv_heads=shape["kv_heads"], ffn=shape["ffn"])
            return SubnetConfig(blocks=(block,) * int(shape["num_blocks"]), hidden_size=shape["hidden_size"])
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Study:
    """A study at one moment.

    Args:
        facts: What does not change.
        trials: All trials.
        planned: How many there will be, or None where nobody said.
        alive: Whether a worker of it is known to be at work.
        report: What its search left when it ended, or None.
        problem: Why its report cannot be read, or empty.
    """

    facts: StudyFacts
    trials: Trials
    planned: int | None = None
    alive: bool = False
    report: Report | None = None
    problem: str = ""

    @property
    def key(self) -> str:
        """What pages know it by."""
        return self.facts.key

    @cached_property
    def state(self) -> str:
        """``running``, ``finished``, ``stopped`` or ``empty``."""
        if self.alive:
            return "running"
        finished = int(self.trials.finished.sum())
        if finished >= self.planned if self.planned is not None else self.report is not None:
            return "finished"
        return "stopped" if len(self.trials) else "empty"

    @cached_property
    def feasible_share(self) -> float | None:
        """Share of the finished trials that keep to every constraint."""
        finished = int(self.trials.finished.sum())
        return int(self.trials.feasible.sum()) / finished if finished else None

    @cached_property
    def best(self) -> int | None:
        """Index of the feasible trial with the best quality: the best under the budget."""
        trials = self.trials
        front = trials.front
        if not front.size:
            return None
        sign = -1.0 if trials.objectives.goals.get(trials.quality) == "minimize" else 1.0
        return int(front[np.argmax(sign * trials.column(trials.quality)[front])])

    @cached_property
    def history(self) -> tuple[Floats, Floats]:
        """Number of finished trials, and the hypervolume after so many, from the first feasible one on."""
        trials = self.trials
        done = np.flatnonzero(trials.finished)
        done = done[np.argsort(trials.ended[done], kind="stable")]
        able = trials.feasible[done] & np.isfinite(trials.losses[done]).all(axis=1)
        if not able.any():
            return np.empty(0), np.empty(0)
        losses = in_first_units(trials.losses[done][able])
        volumes = hypervolume_history(losses, np.full(losses.shape[1], REFERENCE))
        counts: Floats = np.flatnonzero(able).astype(np.float64) + 1.0
        return counts, volumes

    @cached_property
    def last_active(self) -> float | None:
        """When the last trial ended or began, in seconds since 1970."""
        moments = [m for row in self.trials.rows for m in (row.started, row.ended) if m == m]  # noqa: PLR0124 - not NaN
        return max(moments) if moments else None

    def subnet(self, index: int) -> SubnetConfig | None:
        """The architecture of a trial; None where it has none that can be read."""
        try:
            return SubnetConfig.from_json(self.trials.rows[index].subnet)
        except ValueError:
            return None

    @property
    def teacher(self) -> SubnetConfig | None:
        """The largest subnet."""
        return self.report.teacher_subnet if self.report is not None else self.facts.teacher


def is_recent(moment: float | None, now: float | None = None) -> bool:
    """Whether a sign of life is young enough to count."""
    return moment is not None and (time.time() if now is None else now) - moment < SILENT_S


def read_context(text: Any) -> dict[str, Any]:
    """The context that a search wrote; empty where it cannot be read."""
    try:
        data = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
