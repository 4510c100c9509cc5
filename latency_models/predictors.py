"""From 30 measured subnets to a value and an interval for all the others.

Whatever a profile measured in positive numbers can be predicted: latency, energy, peak memory, time per token. Every
predictor is a point model (`AdditiveModel`, `ShrinkageModel`, `ResidualModel`, any scikit-learn regressor) behind
`CalibratedPredictor`, which adds the interval and, given several models, chooses by cross-validation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from latency_models.additive import AdditiveModel
from latency_models.features import Features, Floats, from_table
from latency_models.intervals import Calibration, HeldOut, Model, folds_of, held_out
from latency_models.shrinkage import ShrinkageModel
from search_spaces.cost import Workload
from search_spaces.families import ModelShape
from search_spaces.subnet import SubnetConfig, SubnetTable

MIN_ROWS = 8


@dataclass(frozen=True)
class Prediction:
    """Predicted values with intervals, arrays ``(subnets,)`` in the unit of the profile."""

    value: Floats
    lower: Floats
    upper: Floats

    def __len__(self) -> int:
        return len(self.value)


class LatencyPredictor(Protocol):
    """Learns from measured rows and predicts others, with intervals."""

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:
        """Fit to measured values ``(rows,)``; ``order`` is the place of each row in the measurement's order."""

    def predict(self, features: Features, confidence: float = 0.9) -> Prediction:
        """Predict rows with intervals that hold the measured value with the given confidence."""


@dataclass
class CalibratedPredictor:
    """One of several point models, chosen by cross-validation, with conformal intervals.

    Args:
        models: Name -> candidate, from simple to complex. One alone is simply calibrated.
        folds: Folds of the cross-validation (from 40 rows; below, each row is left out by itself).
        seed: Draws the folds.
        margin: A more complex model must be better than the simpler one by this many standard errors of the difference.

    Attributes:
        chosen_: Name of the model in use.
        errors_: Name -> cross-validated mean absolute relative error.
        held_out_: The chosen model's predictions of the fitted rows by fits without them.
    """

    models: Mapping[str, Model]
    folds: int = 10
    seed: int = 0
    margin: float = 0.5
    chosen_: str = field(default="", init=False)
    errors_: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:
        """Choose, fit and calibrate on measured rows.

        Raises:
            ValueError: There are fewer than 8 rows, or a value is not finite and positive.
        """
        values = check_values(features, values)
        fold = folds_of(len(values), self.folds, self.seed)
        best: HeldOut | None = None
        self.errors_ = {}
        losses: dict[str, Floats] = {}
        for name, model in self.models.items():
            out = held_out(lambda model=model: copy.deepcopy(model), features, values, order, fold)  # type: ignore[misc]
            losses[name] = np.abs(out.errors(values))
            self.errors_[name] = float(losses[name].mean())
            if best is None or _clearly_better(losses[name], losses[self.chosen_], self.margin):
                best, self.chosen_ = out, name
        assert best is not None, "`models` must not be empty."
        self.held_out_ = best
        self.calibration_ = Calibration.of(best, values)
        self.model_ = copy.deepcopy(self.models[self.chosen_]).fit(features, values, order)
        return self

    def predict(self, features: Features, confidence: float = 0.9) -> Prediction:
        """Predict rows with intervals that hold the measured value with the given confidence."""
        value, spread = self.model_.predict(features)
        half = self.calibration_.half_widths(value, spread, confidence)
        return Prediction(value, np.maximum(value - half, 0.0), value + half)


def additive() -> CalibratedPredictor:
    """The fast 30-sample predictor: non-negative coefficients of operator-level products."""
    return CalibratedPredictor({"additive": AdditiveModel()})


def lookup() -> CalibratedPredictor:
    """A table entry per block variant, shrunk towards the additive model, which also fills what was never measured."""
    return CalibratedPredictor({"lookup": ShrinkageModel(terms=("variants",))})


def auto() -> CalibratedPredictor:
    """The default: whichever model cross-validates best on the profile itself."""
    return CalibratedPredictor(
        {
            "additive": AdditiveModel(),
            "lookup": ShrinkageModel(terms=("variants",)),
            "shrinkage": ShrinkageModel(),
        }
    )


PREDICTORS = {"additive": additive, "lookup": lookup, "auto": auto}


@dataclass
class SubnetPredictor:
    """A predictor bound to a teacher's shape and a workload: what a search asks for subnets' latency.

    Args:
        shape: The teacher's sizes.
        workload: What one run processes.
        predictor: Learns from features; `auto()` by default.
        unit: The unit of the values (``ms``, ``mJ``, ``MB``).
    """

    shape: ModelShape
    workload: Workload = field(default_factory=Workload)
    predictor: LatencyPredictor = field(default_factory=auto)
    unit: str = "ms"

    def fit(self, subnets: Sequence[SubnetConfig] | SubnetTable, values: Floats, order: Floats | None = None) -> Self:
        """Fit to the measured values ``(subnets,)`` of subnets, in measurement order where ``order`` is not given.

        Raises:
            ValueError: There are too few rows, or a value is not finite and positive.
        """
        values = np.asarray(values, dtype=np.float64)
        place = np.arange(len(values), dtype=np.float64) if order is None else np.asarray(order, dtype=np.float64)
        self.predictor.fit(from_table(self.shape, subnets, self.workload), values, place)
        return self

    def predict(self, subnets: Sequence[SubnetConfig] | SubnetTable, confidence: float = 0.9) -> Prediction:
        """Values and intervals of subnets, in `unit`."""
        return self.predictor.predict(from_table(self.shape, subnets, self.workload), confidence)


def check_values(features: Features, values: Floats) -> Floats:
    """Measured values as floats, once they are known to be usable.

    Raises:
        ValueError: Lengths disagree, there are too few rows, or a value is not finite and positive.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(features):
        raise ValueError(f"`values` must have one number per row of features ({len(features)}), but got {len(values)}.")
    if len(values) < MIN_ROWS:
        raise ValueError(f"a predictor needs at least {MIN_ROWS} measured rows, but got {len(values)}; profile more.")
    if bad := np.flatnonzero(~(np.isfinite(values) & (values > 0))).tolist():
        raise ValueError(f"measured values must be finite and > 0, but row {bad[0]} is {values[bad[0]]}.")
    return values


def _clearly_better(losses: Floats, than: Floats, margin: float) -> bool:
    """Whether the mean loss is lower by more than ``margin`` standard errors of the paired difference."""
    difference = than - losses
    return float(difference.mean()) > margin * float(difference.std()) / math.sqrt(len(difference))
