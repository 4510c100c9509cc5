"""Which subnets to measure next, and when to stop: profiling pays only for what the predictor does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from latency_models.features import Features, Floats, from_table
from latency_models.predictors import MIN_ROWS, CalibratedPredictor, auto
from search_spaces.cost import Workload
from search_spaces.members import few_members, members
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig, SubnetTable


@dataclass(frozen=True, slots=True)
class LearningPoint:
    """One round of active profiling.

    Args:
        n: Rows measured so far.
        error: Cross-validated mean absolute relative error of the predictor on them.
    """

    n: int
    error: float


@dataclass
class ActiveProfiling:
    """Proposes subnets in rounds: first a space-filling design, then where the predictor is least certain.

    Use it as a loop: measure what `propose` returns, give all measured rows to the next `propose`, until that is empty.

    Args:
        space: The search space.
        workload: What one run processes.
        start: Rows of the first design.
        batch: Rows of every further round.
        target: Stop at this cross-validated mean absolute relative error.
        patience: Stop when so many rounds brought less than `gain`.
        gain: Relative fall of the error that counts as better.
        candidates: Random subnets among which a round chooses.
        make: Makes the predictor whose uncertainty steers.
        seed: Draws designs and candidates.
        exclude: Subnets that are never proposed, such as those that judge the predictor in the end.

    Attributes:
        curve: The learning curve so far.

    Raises:
        ValueError: A number is out of range.
    """

    space: SearchSpace
    workload: Workload = field(default_factory=Workload)
    start: int = 16
    batch: int = 8
    target: float = 0.02
    patience: int = 2
    gain: float = 0.05
    candidates: int = 1000
    make: Callable[[], CalibratedPredictor] = auto
    seed: int = 0
    exclude: frozenset[SubnetConfig] = frozenset()
    curve: list[LearningPoint] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        for name in ("start", "batch", "patience", "candidates"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number >= 1, but got {value!r}.")
        for name in ("target", "gain"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a share from 0 to below 1, but got {getattr(self, name)!r}.")

    def design(self) -> list[SubnetConfig]:
        """The first rows: the extremes, uniform sizes spread over FLOPs, then random subnets; no repeats.

        Of a space with fewer subnets than a predictor can learn from, all of them, and the full model.
        """
        if self._few:
            return list(dict.fromkeys([*self._few, self.space.teacher]))
        generator = np.random.default_rng(self.seed)
        uniform = self.space.uniform()
        flops = np.argsort(self._features(uniform).flops) if uniform else np.zeros(0, dtype=np.int64)
        spread = flops[np.unique(np.linspace(0, len(flops) - 1, min(len(flops), self.start // 4)).astype(int))]
        first = [self.space.smallest, self.space.largest, *(uniform[index] for index in spread)]
        # A small space may have fewer subnets than the design asks for: then all of them.
        drawn = self.space.sample(generator, 20 * self.start)
        if self._every is not None and len(self._every) <= self.start:
            drawn += self._every
        chosen = [subnet for subnet in dict.fromkeys([*first, *drawn]) if subnet not in self.exclude]
        return chosen[: self.start]

    def propose(
        self, subnets: Sequence[SubnetConfig] = (), values: Floats | None = None, order: Floats | None = None
    ) -> list[SubnetConfig]:
        """The subnets to measure next, given all rows so far; none when profiling should stop.

        Args:
            subnets: Measured subnets, in measurement order.
            values: ``(subnets,)`` their measured values.
            order: ``(subnets,)`` places in the measurement's order, when not as given.

        Raises:
            ValueError: Lengths disagree, or a value is not finite and positive.
        """
        known = set(subnets)
        if values is None or len(known) < self.start:
            missing = [subnet for subnet in self.design() if subnet not in known]
            if missing:
                return missing
        if self._few:
            return []  # There is nothing else to measure, and nothing to learn of so few rows.
        assert values is not None, "`values` must be given with `subnets`."
        values = np.asarray(values, dtype=np.float64)
        place = np.arange(len(values), dtype=np.float64) if order is None else order
        # Rounds of an earlier run are gone through again, so that a continued profile stops where it would have.
        earlier = len(self.curve) or self.start >= len(values)
        for count in () if earlier else range(self.start, len(values), self.batch):
            self._learn(subnets[:count], values[:count], place[:count])
        predictor = self._learn(subnets, values, place)
        if self.finished:
            return []
        generator = np.random.default_rng([self.seed, len(values)])
        known |= self.exclude
        drawn = self.space.sample(generator, self.candidates)
        if self._every is not None and len(self._every) <= self.candidates:
            drawn = self._every  # Chance would leave out some of a small space.
        pool = [s for s in dict.fromkeys(drawn) if s not in known]
        return self._uncertain(predictor, pool, subnets)

    @property
    def finished(self) -> bool:
        """Whether the error is below the target, or has stopped falling."""
        if not self.curve:
            return False
        errors = [point.error for point in self.curve]
        if errors[-1] <= self.target:
            return True
        return len(errors) > self.patience and min(errors[-self.patience :]) > (1.0 - self.gain) * min(
            errors[: -self.patience]
        )

    @cached_property
    def _every(self) -> list[SubnetConfig] | None:
        return members(self.space)

    @cached_property
    def _few(self) -> list[SubnetConfig]:
        return few_members(self.space, MIN_ROWS)

    def _learn(self, subnets: Sequence[SubnetConfig], values: Floats, place: Floats) -> CalibratedPredictor:
        """Fit to all rows so far; one more point of the curve."""
        predictor = self.make().fit(self._features(subnets), values, place)
        self.curve.append(LearningPoint(len(values), float(np.abs(predictor.held_out_.errors(values)).mean())))
        return predictor

    def _uncertain(
        self, predictor: CalibratedPredictor, pool: list[SubnetConfig], known: Sequence[SubnetConfig]
    ) -> list[SubnetConfig]:
        """A batch of the pool with wide intervals, far from what is known and from each other."""
        if len(pool) <= self.batch:
            return pool
        features = self._features([*pool, *known])
        new = features.take(np.arange(len(pool)))
        prediction = predictor.predict(new)
        width = (prediction.upper - prediction.lower) / prediction.value * predictor.point(new)[1]
        scaled = features.products / np.where(features.products.std(axis=0) > 0, features.products.std(axis=0), np.inf)
        points, measured = scaled[: len(pool)], scaled[len(pool) :]
        distance = np.min(((points[:, None] - measured[None]) ** 2).sum(axis=2), axis=1)
        chosen: list[int] = []
        for _ in range(self.batch):
            best = int((width * np.sqrt(distance)).argmax())
            chosen.append(best)
            distance = np.minimum(distance, ((points - points[best]) ** 2).sum(axis=1))
        return [pool[index] for index in dict.fromkeys(chosen)]

    def _features(self, subnets: Sequence[SubnetConfig]) -> Features:
        return from_table(self.space.shape, SubnetTable.from_subnets(subnets), self.workload)


def curve_text(curve: Sequence[LearningPoint]) -> str:
    """The learning curve, one line a round."""
    return "\n".join(f"n = {point.n:4d}   cross-validated error {100 * point.error:6.2f} %" for point in curve)
