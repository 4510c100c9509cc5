"""How a metric falls when texts are perturbed, beside how the teacher's falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.intervals import Estimate, Resampling, estimate
from nas.evaluation.metrics import SAMPLES, Measure, Tables, take
from nas.evaluation.perturbations import KINDS, WORD_BY_WORD, perturb
from nas.tasks.samples import TextSamples
from nas.tasks.task import Outputs, Task, main_output

if TYPE_CHECKING:
    from nas.evaluation.evaluate import Run

WORST_DROP, MEAN_DROP = "robustness_worst_drop", "robustness_mean_drop"


@dataclass(frozen=True, slots=True)
class Robustness:
    """Which perturbations, and how strong.

    Args:
        kinds: Names of perturbations; see `nas.evaluation.perturbations`.
        strengths: Shares of a text's words that are changed.
        samples: At most so many samples of a split are perturbed, drawn by the seed.
        seed: Of everything that is drawn.

    Raises:
        ValueError: A kind is unknown, a strength is no share, or there are no samples.
    """

    kinds: Sequence[str] = KINDS
    strengths: Sequence[float] = (0.1, 0.3)
    samples: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds:
            perturb("", kind, 0.0)
        for strength in self.strengths:
            if isinstance(strength, bool) or not 0 < strength <= 1:
                raise ValueError(f"`strengths` must be shares above 0 and at most 1, but got {strength!r}.")
        if self.samples < 2:
            raise ValueError(f"`samples` must be >= 2, but got {self.samples}.")


@dataclass(frozen=True, slots=True)
class Condition:
    """One perturbation at one strength."""

    kind: str
    strength: float


@dataclass(frozen=True, slots=True)
class Fall:
    """A metric under one condition.

    Args:
        condition: The perturbation.
        changed: Share of the texts that it changed at all.
        score: The metric there, and the teacher's.
        drop: By how much it is worse than without the perturbation, in its own unit.
        teacher_drop: By how much the teacher's is.
    """

    condition: Condition
    changed: float
    score: Estimate
    drop: float
    teacher_drop: float


class PerturbedSplit:
    """A split's perturbed copies, made and tokenised once for all models that are judged on them.

    Args:
        task: Gives the texts.
        split: Whose texts.
        measure: The metric that is watched.
        settings: Which perturbations.
    """

    def __init__(self, task: Task, split: str, measure: Measure, settings: Robustness) -> None:
        self.task = task
        self.split = split
        self.measure = measure
        self.settings = settings
        size = task.samples.size(split)
        # Rows of pairs and queries are made of several texts each, so there all texts are perturbed.
        count = min(settings.samples, size) if measure.table == SAMPLES else size
        self.rows: NDArray[np.int64] = np.sort(np.random.default_rng(settings.seed).permutation(size)[:count])
        self._copies: dict[Condition, TextSamples] = {}

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What is tried: nothing for images; where words have tags, only what leaves the words in their places."""
        samples = self.task.samples
        if not isinstance(samples, TextSamples):
            return ()
        kinds = [kind for kind in self.settings.kinds if not samples.words or kind in WORD_BY_WORD]
        return tuple(Condition(kind, float(strength)) for kind in kinds for strength in self.settings.strengths)

    def copy(self, condition: Condition) -> TextSamples:
        """The perturbed texts of the chosen rows."""
        if condition not in self._copies:
            samples = self.task.samples
            assert isinstance(samples, TextSamples)
            kind, strength, seed = condition.kind, condition.strength, self.settings.seed
            self._copies[condition] = samples.changed(
                self.split, self.rows, lambda text: perturb(text, kind, strength, seed)
            )
        return self._copies[condition]

    def changed(self, condition: Condition) -> float:
        """Share of the texts that the perturbation changed at all."""
        before = self.task.samples.examples[self.split].take(self.rows).keys()
        after = self.copy(condition).examples[self.split].keys()
        return float(np.mean([old != new for old, new in zip(before, after, strict=True)]))

    def outputs(self, run: Run, condition: Condition, clean: Outputs, batch_size: int) -> dict[str, NDArray[Any]]:
        """A model's outputs of the whole split, those of the chosen rows perturbed."""
        from nas.evaluation.evaluate import predict

        name = main_output(self.task)
        values = np.array(clean[name])
        values[self.rows] = predict(run, self.task, self.split, batch_size, self.copy(condition))[name]
        return {name: values}

    def tables(self, outputs: Outputs, teacher: Outputs) -> Tables:
        """What the measure is computed of: the chosen rows, judged against the teacher's unperturbed outputs."""
        tables = dict(self.task.tables(self.split, outputs, teacher))
        if self.measure.table == SAMPLES:
            tables[SAMPLES] = take(tables[SAMPLES], self.rows)
        return tables


def measure_fall(
    split: PerturbedSplit,
    condition: Condition,
    clean: tuple[Tables, Tables],
    perturbed: tuple[Tables, Tables],
    resampling: Resampling,
) -> Fall:
    """A model's and its teacher's metric under one condition.

    Args:
        split: What was perturbed.
        condition: How.
        clean: The model's and the teacher's tables of the same rows without perturbation.
        perturbed: The same with it.
        resampling: How intervals are drawn.
    """
    measure = split.measure
    # A perturbed teacher does not agree with itself any more, so that its own value says something here.
    compared = replace(measure, agreement=False)
    score = estimate(compared, *perturbed, resampling)
    assert score.teacher is not None
    sign = 1.0 if measure.higher_is_better else -1.0
    drop = sign * (measure(clean[0]) - score.value.value)
    teacher_drop = sign * (measure(clean[1]) - score.teacher.value)
    return Fall(condition, split.changed(condition), score, drop, teacher_drop)


def summary(drops: Sequence[float], teacher: Sequence[float] = ()) -> dict[str, float]:
    """Worst and mean of the drops, and of what they exceed the teacher's by."""
    # The worst of what includes something undefined is undefined, too.
    found = {"worst_drop": float(np.max(drops)), "mean_drop": float(np.mean(drops))}
    if teacher:
        # Differences of differences: what is left of equal ones by rounding is no excess.
        excess = np.subtract(drops, teacher).round(12)
        found |= {"worst_excess": float(excess.max()), "mean_excess": float(excess.mean())}
    return found


def drops_of(run: Run, split: PerturbedSplit, clean: Outputs, teacher: Outputs, batch_size: int) -> dict[str, float]:
    """``robustness_worst_drop`` and ``robustness_mean_drop`` of a model, without its teacher's: what a search needs.

    Raises:
        ValueError: There is nothing to perturb.
    """
    if not split.conditions:
        raise ValueError(f"robustness is measured of texts, but {split.task.kind} has none that can be perturbed.")
    sign = 1.0 if split.measure.higher_is_better else -1.0
    before = split.measure(split.tables(clean, teacher))
    drops = []
    for condition in split.conditions:
        outputs = split.outputs(run, condition, clean, batch_size)
        drops.append(sign * (before - split.measure(split.tables(outputs, teacher))))
    found = summary(drops)
    return {WORST_DROP: found["worst_drop"], MEAN_DROP: found["mean_drop"]}
