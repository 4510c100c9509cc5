"""How far to trust a device's predictor: what it says of profiled subnets that it has not seen.

Everything here is cross-validated on the profile itself, so that no extra measurement is needed: predicted beside
measured, coverage of the intervals at every confidence, the error for fewer rows (would more profiling help?), and the
machine's drift while it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from latency_models.drift import DriftReport, Segment, detect
from latency_models.features import Floats, from_table
from latency_models.predictors import MIN_ROWS, SubnetPredictor, auto
from latency_models.profile import DeviceProfile
from search_spaces.cost import Workload
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SubnetConfig

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
MAKE = Callable[[], SubnetPredictor]
_ARRAYS = ("measured", "predicted", "lower", "upper")


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The error of predictors that were fitted to fewer rows.

    Args:
        rows: How many they were fitted to.
        mape: Median, over random choices of these rows, of the mean absolute error on the others, in percent.
        low: Smallest of these errors.
        high: Largest of these errors.
    """

    rows: int
    mape: float
    low: float
    high: float


@dataclass(frozen=True)
class Trust:
    """A predictor's cross-validation on a profile, rows in the order in which they were measured.

    Args:
        subnets: What was measured.
        measured: ``(rows,)`` in ms.
        predicted: ``(rows,)`` in ms, by a predictor that was not fitted to the row.
        lower: ``(rows,)`` lower bounds at ``confidence``.
        upper: ``(rows,)`` upper bounds.
        confidence: What the bounds aim at.
        coverage: (confidence, share of the rows inside its bounds), rising.
        learning: The error by the number of rows fitted to, rising.
        reference_drift: ``(rows,)`` the reference model beside each row against its usual level, as a share; NaN where
            there was none.
        drift: Shifted stretches that the residuals show, or None where there are too few rows.
        folds: How many parts the rows were split into.
    """

    subnets: tuple[SubnetConfig, ...]
    measured: Floats
    predicted: Floats
    lower: Floats
    upper: Floats
    confidence: float
    coverage: tuple[tuple[float, float], ...]
    learning: tuple[CurvePoint, ...]
    reference_drift: Floats
    drift: DriftReport | None
    folds: int

    @property
    def errors(self) -> Floats:
        """``(rows,)`` predicted over measured, minus one."""
        errors: Floats = self.predicted / self.measured - 1.0
        return errors

    @property
    def mape(self) -> float:
        """Mean absolute error over the measured value, in percent."""
        return 100.0 * float(np.abs(self.errors).mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads back exactly."""
        arrays = {name: [float(value) for value in getattr(self, name)] for name in _ARRAYS}
        drift = self.drift and {**self.drift.to_dict(), "levels": [float(level) for level in self.drift.levels]}
        return {
            **arrays,
            "reference_drift": [None if np.isnan(value) else float(value) for value in self.reference_drift],
            "subnets": [subnet.to_dict() for subnet in self.subnets],
            "confidence": self.confidence,
            "coverage": [list(pair) for pair in self.coverage],
            "learning": [asdict(point) for point in self.learning],
            "drift": drift,
            "folds": self.folds,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trust:
        """Rebuild from plain data.

        Raises:
            ValueError: They do not fit.
        """
        try:
            drift = data["drift"] and DriftReport(
                segments=tuple(Segment(**segment) for segment in data["drift"]["segments"]),
                autocorrelation=float(data["drift"]["autocorrelation"]),
                spread=float(data["drift"]["spread"]),
                levels=np.array(data["drift"]["levels"], dtype=np.float64),
            )
            reference = [np.nan if value is None else value for value in data["reference_drift"]]
            return cls(
                subnets=tuple(SubnetConfig.from_dict(subnet) for subnet in data["subnets"]),
                confidence=float(data["confidence"]),
                coverage=tuple((float(aim), float(share)) for aim, share in data["coverage"]),
                learning=tuple(CurvePoint(**point) for point in data["learning"]),
                reference_drift=np.array(reference, dtype=np.float64),
                drift=drift or None,
                folds=int(data["folds"]),
                **{name: np.array(data[name], dtype=np.float64) for name in _ARRAYS},
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"trust: the data do not fit ({type(error).__name__}: {error}).") from error


def cross_validate(
    profile: DeviceProfile,
    make: MAKE | None = None,
    *,
    confidence: float = 0.9,
    folds: int = 5,
    repeats: int = 3,
    seed: int = 0,
) -> Trust:
    """Judge a predictor on a profile that it is fitted to in parts.

    Args:
        profile: The measured subnets.
        make: Makes an unfitted predictor; `auto` by default.
        confidence: Of the bounds.
        folds: Parts of the cross-validation; fewer where there are few rows.
        repeats: Random choices of rows for each point of the learning curve; 0 leaves it out, which takes most of the
            time; see `with_learning`.
        seed: Of the parts and choices.

    Raises:
        ValueError: There are too few rows to leave any out.
    """
    shape, workload = profile.header.shape, profile.header.workload
    make = make or (lambda: SubnetPredictor(shape, workload, auto(seed)))
    subnets, measured = profile.training_data()
    rows = len(subnets)
    if rows <= MIN_ROWS:
        raise ValueError(f"a predictor can be judged from {MIN_ROWS + 1} measured subnets on, but there are {rows}.")
    generator = np.random.default_rng(seed)
    folds = min(folds, rows // 2)
    part = generator.permutation(np.arange(rows) % folds)
    if rows - np.bincount(part).max() < MIN_ROWS:
        part = generator.permutation(rows)  # One row at a time: a larger part would leave too few.
    values = np.empty((len(CONFIDENCES) + 1, 3, rows))
    for fold in np.unique(part):
        kept, left = np.flatnonzero(part != fold), np.flatnonzero(part == fold)
        predictor = make().fit([subnets[i] for i in kept], measured[kept], kept.astype(np.float64))
        for index, level in enumerate((confidence, *CONFIDENCES)):
            found = predictor.predict([subnets[i] for i in left], level)
            values[index][:, left] = found.value, found.lower, found.upper
    inside = ((values[1:, 1] <= measured) & (measured <= values[1:, 2])).mean(axis=1)
    latest = profile.latest()
    drifts = [latest[subnet].measurement.drift for subnet in subnets]
    return Trust(
        subnets=tuple(subnets),
        measured=measured,
        predicted=values[0, 0],
        lower=values[0, 1],
        upper=values[0, 2],
        confidence=confidence,
        coverage=tuple((level, float(share)) for level, share in zip(CONFIDENCES, inside, strict=True)),
        learning=tuple(_learning(subnets, measured, make, repeats, seed)) if repeats else (),
        reference_drift=np.array([np.nan if value is None else value for value in drifts]),
        drift=_drift(shape, workload, subnets, measured),
        folds=len(np.unique(part)),
    )


def with_learning(trust: Trust, make: MAKE, *, repeats: int = 3, seed: int = 0) -> Trust:
    """The same with its learning curve, as `cross_validate` draws it.

    Args:
        trust: Without one.
        make: Makes an unfitted predictor.
        repeats: Random choices of rows for each point.
        seed: Of the choices.
    """
    return replace(trust, learning=tuple(_learning(list(trust.subnets), trust.measured, make, repeats, seed)))


def _learning(subnets: list[SubnetConfig], measured: Floats, make: MAKE, repeats: int, seed: int) -> list[CurvePoint]:
    """Predictors fitted to fewer rows, judged on at most 32 of those left out."""
    points, generator = [], np.random.default_rng([seed, 1])
    for size in (size for size in SIZES if MIN_ROWS <= size <= len(subnets) - 4):
        errors = []
        for _ in range(repeats):
            order = generator.permutation(len(subnets))
            kept, left = np.sort(order[:size]), order[size : size + 32]
            predictor = make().fit([subnets[i] for i in kept], measured[kept], kept.astype(np.float64))
            found = predictor.predict([subnets[i] for i in left]).value
            errors.append(100.0 * float(np.abs(found / measured[left] - 1.0).mean()))
        points.append(CurvePoint(size, float(np.median(errors)), min(errors), max(errors)))
    return points


def _drift(shape: ModelShape, workload: Workload, subnets: list[SubnetConfig], measured: Floats) -> DriftReport | None:
    return detect(from_table(shape, subnets, workload), measured) if len(subnets) >= 12 else None
