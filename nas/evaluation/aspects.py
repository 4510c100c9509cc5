"""What is looked at beside quality, and the metrics of each aspect by name: as objectives and constraints, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nas.config import suggestion
from nas.engine.costs import KNOWN_COSTS
from nas.evaluation.calibration import CALIBRATION
from nas.evaluation.fairness import GAP, PREFIXES, RATES, RATIO, WORST, Fairness, group_metrics
from nas.evaluation.intervals import Resampling
from nas.evaluation.metrics import SAMPLES, Measure, Tables
from nas.evaluation.robustness import MEAN_DROP, WORST_DROP, PerturbedSplit, Robustness, drops_of
from nas.evaluation.substituted import SubstitutedSplit
from nas.evaluation.substitution import COUNTERFACTUAL
from nas.tasks.task import Outputs, Task

if TYPE_CHECKING:
    from nas.evaluation.evaluate import Extras, Run

ROBUSTNESS = (WORST_DROP, MEAN_DROP)


def lower_is_better(name: str, task: Task) -> bool:
    """Whether less of a metric is better; of names that nobody knows, it is not."""
    if name.startswith(GAP) or name in ROBUSTNESS or name in _COUNTERFACTUAL:
        return True
    if name.startswith(RATIO):
        return False
    measures = (*task.measures, *CALIBRATION, *RATES)
    return any(m.name == name.removeprefix(WORST) and not m.higher_is_better for m in measures)


@dataclass(frozen=True)
class Aspects:
    """Settings of everything that is looked at beside quality; the schema of the YAML node ``evaluation``.

    Args:
        intervals: How intervals are drawn.
        fairness: Groups.
        robustness: Perturbations.
    """

    intervals: Resampling = field(default_factory=Resampling)
    fairness: Fairness = field(default_factory=Fairness)
    robustness: Robustness = field(default_factory=Robustness)


class NamedMetrics:
    """Metrics by name beyond those that a task always gives; made for a search, which asks for few of them.

    Known are ``ece``, ``brier`` and ``nll``; ``worst_group_X``, ``group_gap_X`` and ``group_ratio_X`` of any metric X
    where the data have group columns; ``robustness_worst_drop`` and ``robustness_mean_drop``; ``flip_rate`` and
    ``counterfactual_gap`` where terms are given.

    Args:
        task: Gives samples and quality.
        aspects: Settings.
        names: Metrics that are wanted; those that the task gives anyway are left aside.

    Raises:
        ValueError: A metric is unknown, or needs what the task or the settings do not have.
    """

    def __init__(self, task: Task, aspects: Aspects, names: Collection[str]) -> None:
        self.task = task
        self.aspects = aspects
        given = {measure.name for measure in task.measures}
        self.names = tuple(dict.fromkeys(name for name in names if name not in given))
        self._splits: dict[str, PerturbedSplit] = {}
        self._substituted: dict[str, SubstitutedSplit] = {}
        for name in self.names:
            self._check(name)

    def context(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What their values depend on beside model and samples: their names, and which of the settings they read."""
        unread = {"intervals"} if {*self.names} & {*ROBUSTNESS} else {"intervals", "robustness"}
        return {"metrics": self.names, "evaluation": {k: part for k, part in settings.items() if k not in unread}}

    def __call__(
        self, run: Run, split: str, outputs: Outputs, teacher: Outputs, batch_size: int = 64
    ) -> dict[str, float]:
        """The wanted metrics of a model.

        Args:
            run: The model, for what needs other texts than the split's.
            split: Where it is judged.
            outputs: Its outputs there.
            teacher: The teacher's.
            batch_size: Samples of one forward pass.
        """
        found: dict[str, float] = {}
        for name in self.names:
            if name not in found:
                found |= self._found(name, run, split, outputs, teacher, batch_size)
        return {name: found[name] for name in self.names}

    def tolerant(self, say: Callable[[str], None]) -> Extras:
        """The same, but a metric that cannot be computed is not a number, and told once: the others are not lost."""
        told: set[str] = set()

        def metrics(run: Run, split: str, outputs: Outputs, teacher: Outputs, batch_size: int = 64) -> dict[str, float]:
            found: dict[str, float] = {}
            for name in self.names:
                try:
                    found |= {} if name in found else self._found(name, run, split, outputs, teacher, batch_size)
                except ValueError as error:
                    found[name] = math.nan
                    if name not in told:
                        told.add(name)
                        say(f"{name} is not known of the {split} split: {error}")
            return {name: found[name] for name in self.names}

        return metrics

    def _found(
        self, name: str, run: Run, split: str, outputs: Outputs, teacher: Outputs, batch_size: int
    ) -> dict[str, float]:
        """A metric, and those that come with it."""
        if name in ROBUSTNESS:
            return drops_of(run, self._perturbed(split), outputs, teacher, batch_size)
        if name in _COUNTERFACTUAL:
            rows = self._exchanged(split).compared(run, batch_size)
            return {name: measure.compute(rows) for name, measure in _COUNTERFACTUAL.items()}
        tables = self.task.tables(split, outputs, teacher)
        if name in _CALIBRATION:
            self._check_fits(name, _CALIBRATION[name], tables)
            return {name: _CALIBRATION[name](tables)}
        return self._groups(name, split, tables)

    def _groups(self, name: str, split: str, tables: Tables) -> dict[str, float]:
        prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        measure = self._measures[name.removeprefix(prefix)]
        self._check_fits(name, measure, tables)
        groups = self.task.samples.groups(split)
        return group_metrics(measure, tables[SAMPLES], groups, self.aspects.fairness.min_samples)

    def _check_fits(self, name: str, measure: Measure, tables: Tables) -> None:
        if not measure.fits(tables):
            raise ValueError(
                f"objectives: {name!r} needs {', '.join(measure.needs or filter(None, measure.ratio or ()))}, but a "
                f"{self.task.kind} task has none here; can be asked for: {', '.join(self.available)}."
            )

    @property
    def available(self) -> list[str]:
        """Names that goals and constraints can ask for, as far as the task and the settings tell; costs at the end."""
        found = [measure.name for measure in self.task.measures]
        if any(measure.ratio == ("correct", None) for measure in self.task.measures):
            # Whole samples have classes, whose probabilities are known.
            found += _CALIBRATION
        if self.task.samples.groups("validation"):
            found += [prefix + self.task.quality for prefix in PREFIXES]
        found += ROBUSTNESS
        found += _COUNTERFACTUAL if self.aspects.fairness.substitution is not None else ()
        return [*found, *KNOWN_COSTS]

    def _perturbed(self, split: str) -> PerturbedSplit:
        if split not in self._splits:
            quality = next(measure for measure in self.task.measures if measure.name == self.task.quality)
            self._splits[split] = PerturbedSplit(self.task, split, quality, self.aspects.robustness)
        return self._splits[split]

    def _exchanged(self, split: str) -> SubstitutedSplit:
        if split not in self._substituted:
            substitution = self.aspects.fairness.substitution
            assert substitution is not None
            self._substituted[split] = SubstitutedSplit(self.task, split, substitution)
        return self._substituted[split]

    @cached_property
    def _measures(self) -> Mapping[str, Measure]:
        """What groups can be compared by."""
        measures = (*self.task.measures, *CALIBRATION, *RATES)
        return {measure.name: measure for measure in measures if measure.table == SAMPLES}

    def _check(self, name: str) -> None:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is not None and name.removeprefix(prefix) in self._measures:
            if not self.task.samples.groups("validation"):
                raise ValueError(f"`{name}` needs groups: name their columns in `task.data.group_columns`.")
        elif name in _COUNTERFACTUAL:
            if self.aspects.fairness.substitution is None:
                raise ValueError(f"`{name}` needs identity terms: give them in `evaluation.fairness.terms`.")
        elif name not in _CALIBRATION and name not in ROBUSTNESS:
            groups = [prefix + self.task.quality for prefix in PREFIXES]
            known = dict.fromkeys([*self.available, *_CALIBRATION, *groups, *_COUNTERFACTUAL])
            raise ValueError(
                f"objectives: nothing is known by the name {name!r}; can be asked for: {', '.join(self.available)}."
                f"{suggestion(name, known)}"
            )


_CALIBRATION: Mapping[str, Measure] = {measure.name: measure for measure in CALIBRATION}
_COUNTERFACTUAL: Mapping[str, Measure] = {measure.name: measure for measure in COUNTERFACTUAL}
