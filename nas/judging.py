"""How good a predictor is: fitted without some subnets and compared with them, then fitted to all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_models.features import from_table
from latency_models.measured import MeasuredValues
from latency_models.predictors import MIN_ROWS, CalibratedPredictor, SubnetPredictor
from latency_models.scores import Scores, noise_floor, scorecard
from nas.reports.data import Interval, PredictionCheck, PredictorScore
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from latency_models.drift import DriftReport
    from latency_models.profile import DeviceProfile

MIN_TRAINING_ROWS = MIN_ROWS
UNITS = {"latency_ms": "ms", "energy_mj": "mJ", "peak_memory_mb": "MB"}


@dataclass(frozen=True)
class FittedPredictor:
    """A device's predictor of one quantity with what is known of its error, on subnets that it was not fitted to.

    Args:
        predictor: Fitted to all rows.
        rows: How many those are.
        scores: Of a fit without the held-out rows, on those; beside FLOPs alone and parameters alone.
        checks: The held-out rows one by one.
        weights: Weights of the models that cross-validation kept.
        drift: Shifted stretches of the profile; None where there are too few rows to tell.
    """

    predictor: SubnetPredictor
    rows: int
    scores: tuple[PredictorScore, ...] = ()
    checks: tuple[PredictionCheck, ...] = ()
    weights: Mapping[str, float] | None = None
    drift: DriftReport | None = None

    @property
    def unit(self) -> str:
        """Of the predicted values."""
        return self.predictor.unit


def judged_and_fitted(
    profile: DeviceProfile,
    judges: frozenset[SubnetConfig],
    make: Callable[[], CalibratedPredictor],
    *,
    quantity: str = "latency_ms",
    confidence: float = 0.9,
) -> FittedPredictor:
    """Judge a predictor on the rows of some subnets that it has not seen, and fit it to all rows.

    Raises:
        ValueError: Too few subnets are measured.
    """
    shape, workload, unit = profile.header.shape, profile.header.workload, UNITS.get(quantity, "")
    subnets, values = profile.training_data(quantity) if profile.latest() else ([], np.zeros(0))
    test = [index for index, subnet in enumerate(subnets) if subnet in judges]
    train = [index for index, subnet in enumerate(subnets) if subnet not in judges]
    if len(train) < MIN_TRAINING_ROWS:
        raise ValueError(
            f"`profile.num_subnets` must leave at least {MIN_TRAINING_ROWS} measured subnets to fit on, but "
            f"{profile.path} has {len(train)}; raise it or `profile.budget_minutes`."
        )
    scores: tuple[PredictorScore, ...] = ()
    checks: tuple[PredictionCheck, ...] = ()
    if len(test) >= 2:
        known, fresh = [subnets[index] for index in train], [subnets[index] for index in test]
        judged = SubnetPredictor(shape, workload, make(), unit).fit(known, values[train])
        floor = None
        if quantity == "latency_ms":
            floor = noise_floor([np.array(row.measurement.samples) for row in profile.latest().values()])
        card = scorecard(
            judged.predictor,
            (from_table(shape, known, workload), values[train]),
            (from_table(shape, fresh, workload), values[test]),
            noise_floor=floor,
            confidence=confidence,
            unit=unit,
        )
        scores = tuple(_score(title, row, floor) for title, row in card.rows().items())
        checks = _checks(judged, fresh, values[test], confidence)
    fitted = make()
    predictor = SubnetPredictor(shape, workload, fitted, unit).fit(subnets, values)
    return FittedPredictor(predictor, len(subnets), scores, checks, fitted.weights_, fitted.drift_)


def looked_up(profile: DeviceProfile, quantity: str = "latency_ms") -> FittedPredictor:
    """The measured values of a space of which every subnet is in the profile.

    Raises:
        ValueError: Nothing is measured.
    """
    shape, workload = profile.header.shape, profile.header.workload
    subnets, values = profile.training_data(quantity) if profile.latest() else ([], np.zeros(0))
    if not subnets:
        raise ValueError(f"{profile.path} has no measured subnet; raise `profile.budget_minutes`.")
    noise = 0.0
    if quantity == "latency_ms":
        noise = noise_floor([np.array(row.measurement.samples) for row in profile.latest().values()]) / 100.0
    table = SubnetPredictor(shape, workload, MeasuredValues(noise), UNITS.get(quantity, ""))
    return FittedPredictor(table.fit(subnets, values), len(subnets))


def drift_text(profile: DeviceProfile, report: DriftReport | None) -> str:
    """What the reference model and the residuals tell of the machine's steadiness."""
    from latency_models.profile import DRIFTED

    rows = list(profile.latest().values())
    levels = np.array([row.measurement.drift for row in rows if row.measurement.drift is not None])
    parts = []
    if len(levels):
        off = int((np.abs(levels) > DRIFTED).sum())
        again = len(profile) - len({row.subnet for row in profile.rows})
        low, high = np.quantile(levels, [0.05, 0.95])
        parts.append(
            f"the reference model was {low:+.1%} to {high:+.1%} off its usual level in 90 % of the rows; {again} "
            f"measured again, {off} of {len(rows)} still more than {DRIFTED:.0%} off and taken relative to it"
        )
    if report is not None:
        parts.append(str(report).removeprefix("drift: "))
    return f"Drift: {'; '.join(parts) or 'not watched, there was no reference model'}."


def _score(title: str, scores: Scores, floor: float | None) -> PredictorScore:
    values = {key: value for key, value in scores.to_dict().items() if key != "n" and value is not None}
    return PredictorScore(title, scores.n, values if floor is None else {**values, "noise_floor": floor})


def _checks(
    judged: SubnetPredictor, subnets: list[SubnetConfig], measured: Any, confidence: float
) -> tuple[PredictionCheck, ...]:
    found = judged.predict(subnets, confidence)
    return tuple(
        PredictionCheck(f"subnet {index + 1}", Interval(float(value), float(low), float(high)), float(truth))
        for index, (value, low, high, truth) in enumerate(
            zip(found.value, found.lower, found.upper, measured, strict=True)
        )
    )
