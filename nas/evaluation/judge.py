"""Everything that is said about one model's outputs: quality with intervals, calibration, groups, perturbations."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from nas.evaluation.aspects import Aspects
from nas.evaluation.calibration import CALIBRATION, fit_temperature, reliability
from nas.evaluation.evaluate import Run, predict
from nas.evaluation.fairness import RATES, Groups, disparity
from nas.evaluation.intervals import Values, estimate, mcnemar
from nas.evaluation.metrics import SAMPLES, Measure, Rows, Tables, count_rows, judged_on
from nas.evaluation.robustness import Condition, PerturbedSplit, measure_fall, summary
from nas.evaluation.substituted import SubstitutedSplit
from nas.evaluation.substitution import COUNTERFACTUAL, substitution_rows
from nas.tasks.splits import SPLITS
from nas.tasks.task import Outputs, Task, main_output

if TYPE_CHECKING:
    from nas.distillation.teacher import TeacherOutputs

Section = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """One model's outputs on the judge's split."""

    run: Run
    outputs: Outputs
    batch_size: int


class Judge:
    """Judges models of one task against one teacher, whose part of the work is done once.

    Args:
        task: Samples and measures.
        teacher: Its stored outputs.
        teacher_run: Runs it, for texts that are not stored.
        aspects: Settings.
        split: Where models are judged.
        temperature_split: Where a temperature is fitted: never where models are judged.
    """

    def __init__(
        self,
        task: Task,
        teacher: TeacherOutputs,
        teacher_run: Run,
        aspects: Aspects,
        split: str = "test",
        temperature_split: str = "validation",
    ) -> None:
        if split == temperature_split:
            temperature_split = "calibration"
        self.task = task
        self.teacher = teacher
        self.teacher_run = teacher_run
        self.aspects = aspects
        self.split = split
        self.temperature_split = temperature_split
        self._say: Callable[[str], None] = lambda _: None
        self._perturbed_teacher: dict[Condition, Outputs] = {}
        self._teacher_values: dict[str, Values] = {}
        self._warned: set[str] = set()

    @cached_property
    def quality(self) -> Measure:
        """The task's main measure."""
        return next(measure for measure in self.task.measures if measure.name == self.task.quality)

    @property
    def judged_on(self) -> tuple[int, str]:
        """How many rows the main measure is computed of, and what they are: pairs, where it is one of pairs."""
        return judged_on(self.task, self._teacher_tables, self.split)

    def listen(self, say: Callable[[str], None]) -> None:
        """Tell someone of each part of the work from now on: a progress line."""
        self._say = say

    def run(self, run: Run, batch_size: int = 64) -> Judged:
        """Run a model on the split."""
        self._say("outputs")
        return Judged(run, predict(run, self.task, self.split, batch_size, teacher=self.teacher), batch_size)

    # -- sections ---------------------------------------------------------------------------------------------------

    def quality_section(self, model: Judged) -> Section:
        """Every measure with its interval, the teacher's and the retention; McNemar's test where there are classes."""
        self._say("quality")
        own = self._tables(model.outputs)
        section: Section = {"metrics": {}}
        for measure in self.task.measures:
            if measure.fits(own):
                section["metrics"][measure.name] = self._estimate(measure, own)
        rows, other = own.get(SAMPLES, {}), self._teacher_tables.get(SAMPLES, {})
        if "correct" in rows and "chosen" in rows and rows["labels"].ndim == 1:
            section["mcnemar"] = mcnemar(rows["correct"], other["correct"])
        return section

    def calibration_section(self, model: Judged) -> Section | None:
        """Calibration error, Brier score, reliability; the same after temperature scaling. None without classes."""
        own, teacher = self._tables(model.outputs), self._teacher_tables
        if not CALIBRATION[0].fits(own):
            return None
        self._say("calibration")
        section: Section = {
            "metrics": {measure.name: self._estimate(measure, own) for measure in CALIBRATION},
            "reliability": [asdict(point) for point in reliability(own[SAMPLES])],
            "teacher_reliability": [asdict(point) for point in reliability(teacher[SAMPLES])],
        }
        temperature = self._temperature(model)
        name = main_output(self.task)
        cooled = self._tables({name: model.outputs[name] / temperature})
        section["temperature"] = {
            "value": temperature,
            "fitted_on": self.temperature_split,
            "metrics": {measure.name: measure(cooled) for measure in CALIBRATION},
        }
        return section

    def fairness_section(self, model: Judged) -> Section | None:
        """Measures by group, and exchanged identity terms; None where the data have neither."""
        settings, groups = self.aspects.fairness, self.task.samples.groups(self.split)
        section: Section = {}
        if groups:
            self._say("groups")
            self._warn_of_small(groups)
            own, teacher = self._tables(model.outputs)[SAMPLES], self._teacher_tables[SAMPLES]
            measures = (self.quality, *(rate for rate in RATES if rate.fits({SAMPLES: own})))
            section["min_samples"] = settings.min_samples
            section["columns"] = [
                asdict(
                    disparity(
                        measure, own, teacher, column, values,
                        min_samples=settings.min_samples, resampling=self.aspects.intervals,
                        known=self._known_groups[column],
                    )
                )
                for column, values in groups.items()
                for measure in measures
            ]  # fmt: skip
        if settings.substitution is not None:
            self._say("identity terms")
            section["substitution"] = self._substitution_section(model)
        return section or None

    def robustness_section(self, model: Judged) -> Section | None:
        """The main measure under every perturbation; None where there is nothing to perturb."""
        split = self._perturbed
        if not split.conditions:
            return None
        clean = split.tables(model.outputs, self._teacher_outputs), self._teacher_clean
        falls = []
        for condition in split.conditions:
            self._say(f"{condition.kind} {condition.strength:g}")
            reference = self._teacher_perturbed(condition)
            if model.run is self.teacher_run:
                own = reference
            else:
                own = split.outputs(model.run, condition, model.outputs, model.batch_size)
            perturbed = split.tables(own, self._teacher_outputs), split.tables(reference, self._teacher_outputs)
            falls.append(measure_fall(split, condition, clean, perturbed, self.aspects.intervals))
        return {
            "measure": split.measure.name,
            "samples": count_rows(clean[1][split.measure.table]),
            "seed": split.settings.seed,
            "conditions": [_fall(asdict(fall)) for fall in falls],
            **summary([fall.drop for fall in falls], [fall.teacher_drop for fall in falls]),
        }

    # -- parts ------------------------------------------------------------------------------------------------------

    def _estimate(self, measure: Measure, own: Tables) -> Section:
        """A measure beside the teacher's, whose resamples are drawn once for all models."""
        resampling, teacher = self.aspects.intervals, self._teacher_tables
        if measure.name not in self._teacher_values and not measure.agreement:
            self._teacher_values[measure.name] = resampling.values(measure, teacher[measure.table])
        values = self._teacher_values.get(measure.name)
        return _without_name(asdict(estimate(measure, own, teacher, resampling, values)))

    def _tables(self, outputs: Outputs) -> Tables:
        return self.task.tables(self.split, outputs, self._teacher_outputs)

    @cached_property
    def _teacher_outputs(self) -> Outputs:
        return self.teacher.main(self.split)

    @cached_property
    def _teacher_tables(self) -> Tables:
        return self._tables(self._teacher_outputs)

    @cached_property
    def _perturbed(self) -> PerturbedSplit:
        return PerturbedSplit(self.task, self.split, self.quality, self.aspects.robustness)

    @cached_property
    def _teacher_clean(self) -> Tables:
        return self._perturbed.tables(self._teacher_outputs, self._teacher_outputs)

    def _teacher_perturbed(self, condition: Condition) -> Outputs:
        if condition not in self._perturbed_teacher:
            found = self._perturbed.outputs(self.teacher_run, condition, self._teacher_outputs, self.teacher.batch_size)
            self._perturbed_teacher[condition] = found
        return self._perturbed_teacher[condition]

    @cached_property
    def _known_groups(self) -> Mapping[str, frozenset[str]]:
        """Every column's groups of all splits: one may have no sample where models are judged."""
        found = [self.task.samples.groups(split) for split in SPLITS]
        return {column: frozenset(name for groups in found for name in groups.get(column, ())) for column in found[-1]}

    def _warn_of_small(self, groups: Groups) -> None:
        """Tell once of columns that have no two groups to compare."""
        least = self.aspects.fairness.min_samples
        for column, values in groups.items():
            large = sum(count >= least for count in Counter(values).values())
            if large < 2 and column not in self._warned:
                self._warned.add(column)
                _log.warning(
                    "Groups of %r are not compared: %d of %d have %d samples or more. Lower "
                    "`evaluation.fairness.min_samples`, or give a larger split.",
                    column, large, len(set(values)), least,
                )  # fmt: skip

    def _temperature(self, model: Judged) -> float:
        split, name = self.temperature_split, main_output(self.task)
        labels = self.task.samples.labels(split)
        assert labels is not None
        logits: NDArray[Any] = predict(model.run, self.task, split, model.batch_size)[name]
        return fit_temperature(logits, labels)

    def _substitution_section(self, model: Judged) -> Section:
        split = self._exchanged
        own = split.by_group(model.run, model.batch_size)
        rows, other = substitution_rows(list(own.values())), self._teacher_substituted
        tables = {SAMPLES: rows}, {SAMPLES: other}
        measures = {
            measure.name: _without_name(asdict(estimate(measure, *tables, self.aspects.intervals)))
            for measure in COUNTERFACTUAL
        }
        by_group = {group: self.quality.compute(rows) for group, rows in own.items()}
        return {
            "groups": list(split.substitution.groups),
            "samples": len(split.rows),
            "metrics": measures,
            self.quality.name: by_group,
        }

    @cached_property
    def _exchanged(self) -> SubstitutedSplit:
        substitution = self.aspects.fairness.substitution
        assert substitution is not None
        return SubstitutedSplit(self.task, self.split, substitution)

    @cached_property
    def _teacher_substituted(self) -> Rows:
        return self._exchanged.compared(self.teacher_run, self.teacher.batch_size)


def _without_name(values: Mapping[str, Any]) -> Section:
    return {key: value for key, value in values.items() if key != "name"}


def _fall(values: Mapping[str, Any]) -> Section:
    """A fall with its condition's and its score's parts side by side."""
    rest = {key: value for key, value in values.items() if key not in ("condition", "score")}
    return {**values["condition"], **rest, **_without_name(values["score"])}
