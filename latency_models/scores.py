"""How good predictions are: always with n, beside FLOPs alone and parameters alone, and against the noise floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_models.features import Features, Floats

if TYPE_CHECKING:
    from latency_models.predictors import LatencyPredictor, Prediction


@dataclass(frozen=True, slots=True)
class Scores:
    """Agreement of predicted with measured values.

    Args:
        n: Rows compared.
        mape: Mean absolute error over the measured value, in percent.
        rmse: Root of the mean squared error, in the values' unit.
        within_5, within_10: Percent of rows predicted within 5 % and 10 % of the measured value.
        spearman, kendall: Rank correlations (Kendall's tau-b).
        coverage: Percent of rows whose measured value lies in the interval, or None without intervals.
        width: Mean width of the intervals over the predicted value, in percent, or None.
    """

    n: int
    mape: float
    rmse: float
    within_5: float
    within_10: float
    spearman: float
    kendall: float
    coverage: float | None = None
    width: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def score(predicted: Floats, measured: Floats) -> Scores:
    """Scores of point predictions ``(rows,)``.

    Raises:
        ValueError: Lengths disagree, or there are fewer than 2 rows.
    """
    from scipy.stats import kendalltau, spearmanr

    predicted, measured = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if predicted.shape != measured.shape or len(measured) < 2:
        raise ValueError(
            f"scores need two arrays of the same 2 or more rows, but got {predicted.shape}, {measured.shape}."
        )
    relative = np.abs(predicted / measured - 1.0)
    constant = np.ptp(predicted) == 0 or np.ptp(measured) == 0
    return Scores(
        n=len(measured),
        mape=100.0 * float(relative.mean()),
        rmse=float(np.sqrt(np.mean((predicted - measured) ** 2))),
        within_5=100.0 * float((relative <= 0.05).mean()),
        within_10=100.0 * float((relative <= 0.10).mean()),
        spearman=0.0 if constant else float(spearmanr(predicted, measured).statistic),
        kendall=0.0 if constant else float(kendalltau(predicted, measured).statistic),
    )


def score_prediction(prediction: Prediction, measured: Floats) -> Scores:
    """Scores of predictions with intervals ``(rows,)``."""
    inside = (prediction.lower <= measured) & (measured <= prediction.upper)
    width = (prediction.upper - prediction.lower) / prediction.value
    return replace(
        score(prediction.value, measured),
        coverage=100.0 * float(inside.mean()),
        width=100.0 * float(width.mean()),
    )


def line_through(sizes: Floats, values: Floats) -> tuple[float, float]:
    """Intercept and slope of the line from one size (FLOPs, parameters) to values, fitted to relative errors."""
    matrix = np.column_stack([np.ones(len(sizes)), sizes]) / values[:, None]
    scale = np.abs(matrix).mean(axis=0)
    scale[scale == 0] = 1.0
    solution = np.linalg.lstsq(matrix / scale, np.ones(len(values)), rcond=None)[0] / scale
    return float(solution[0]), float(solution[1])


@dataclass(frozen=True)
class Scorecard:
    """What a profile's report shows: the predictor beside FLOPs alone and parameters alone, and the noise floor.

    Args:
        predictor, flops, parameters: Scores on the same rows.
        noise_floor: Mean absolute deviation of a repeated measurement, in percent: what no predictor can be below;
            None where measurements were not repeated.
        unit: The unit of `Scores.rmse`.
    """

    predictor: Scores
    flops: Scores
    parameters: Scores
    noise_floor: float | None = None
    unit: str = "ms"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def rows(self) -> Mapping[str, Scores]:
        """Display name -> scores, in the order in which tables show them."""
        return {"predictor": self.predictor, "FLOPs alone": self.flops, "parameters alone": self.parameters}


def scorecard(
    predictor: LatencyPredictor,
    train: tuple[Features, Floats],
    test: tuple[Features, Floats],
    *,
    noise_floor: float | None = None,
    confidence: float = 0.9,
    unit: str = "ms",
) -> Scorecard:
    """Scores of a fitted predictor on test rows, beside lines through FLOPs and parameters of the training rows."""
    (known, known_values), (rows, measured) = train, test
    alone = []
    for name in ("flops", "parameters"):
        intercept, slope = line_through(getattr(known, name), known_values)
        alone.append(score(intercept + slope * getattr(rows, name), measured))
    return Scorecard(
        predictor=score_prediction(predictor.predict(rows, confidence), measured),
        flops=alone[0],
        parameters=alone[1],
        noise_floor=noise_floor,
        unit=unit,
    )


def noise_floor(repeats: list[Floats]) -> float:
    """Mean absolute deviation of one measurement's median from a repeat's, in percent.

    Two halves of each row's raw samples are two measurements; their medians' relative difference, divided by the square
    root of 2 for having two errors and once more for each half having half of the samples, is what repeating gives.

    Args:
        repeats: Per row, its raw samples ``(samples,)``; rows with fewer than 2 are left out.
    """
    floors = [
        abs(float(np.median(samples[::2])) / float(np.median(samples[1::2])) - 1.0) / 2.0
        for samples in map(np.asarray, repeats)
        if len(samples) >= 2
    ]
    return 100.0 * float(np.mean(floors)) if floors else 0.0
