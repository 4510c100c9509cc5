"""Costs of a space whose subnets are all measured: nothing is predicted, values are looked up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np

from latency_models.features import Features, Floats
from latency_models.predictors import Prediction


@dataclass
class MeasuredValues:
    """The measured values themselves, as a predictor; of too few subnets to learn from, all there are are measured.

    Args:
        noise: Mean absolute deviation of a repeated measurement, as a share of the value: what intervals are made of.
    """

    noise: float = 0.0

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:  # noqa: ARG002 - protocol
        """Remember measured values ``(rows,)``.

        Raises:
            ValueError: Lengths disagree, there is no row, or a value is not finite and positive.
        """
        values = np.asarray(values, dtype=np.float64)
        if len(values) != len(features) or not len(values):
            raise ValueError(f"`values` must have one number per row of features ({len(features)}, at least one).")
        if bad := np.flatnonzero(~(np.isfinite(values) & (values > 0))).tolist():
            raise ValueError(f"measured values must be finite and > 0, but row {bad[0]} is {values[bad[0]]}.")
        self.values_ = dict(zip(_keys(features), values.tolist(), strict=True))
        return self

    def predict(self, features: Features, confidence: float = 0.9) -> Prediction:
        """Measured values of rows, with intervals that hold a repeated measurement with the given confidence.

        Raises:
            ValueError: A row was not measured.
        """
        keys = _keys(features)
        if unknown := [row for row, key in enumerate(keys) if key not in self.values_]:
            raise ValueError(
                f"the {len(self.values_)} measured subnets are known by their values alone, but row {unknown[0]} is "
                "none of them; measure it."
            )
        value = np.array([self.values_[key] for key in keys], dtype=np.float64)
        # Of a normal distribution, the standard deviation is so many times the mean absolute one.
        deviation = self.noise * math.sqrt(math.pi / 2.0)
        half = value * deviation * NormalDist().inv_cdf((1.0 + confidence) / 2.0)
        return Prediction(value, np.maximum(value - half, 0.0), value + half)


def _keys(features: Features) -> list[bytes]:
    """One key per row, equal where two subnets are the same architecture."""
    columns = [features.sizes[name] for name in sorted(features.sizes)]
    columns += [features.groups[name][:, None] for name in sorted(features.groups)]
    columns += [np.rint(values).astype(np.int64)[:, None] for values in (features.flops, features.parameters)]
    stacked = np.ascontiguousarray(np.concatenate(columns, axis=1), dtype=np.int64)
    return [row.tobytes() for row in stacked]
