"""From 30 measured subnets to a value and an interval for all the others.

Whatever a profile measured in positive numbers can be predicted: latency, energy, peak memory, time per token. Every
predictor is a point model (`AdditiveModel`, `ShrinkageModel`, `ResidualModel`, any scikit-learn regressor) behind
`CalibratedPredictor`, which adds the interval and, given several models, chooses by cross-validation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np

from latency_models.additive import AdditiveModel
from latency_models.drift import MIN_ROWS as MIN_SEGMENT
from latency_models.drift import detect
from latency_models.features import Features, Floats, from_table
from latency_models.intervals import Calibration, HeldOut, Model, folds_of, held_out, relative_spreads, typical_spread
from latency_models.residual import ResidualModel
from latency_models.shrinkage import ShrinkageModel
from search_spaces.cost import Workload
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SubnetConfig, SubnetTable

MIN_ROWS = 8
COSTLY_ROWS = 300
MOST_LOSS = 5.0


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
    """Point models chosen by cross-validation on the profile itself, with conformal intervals.

    The choice is soft: models that are within the standard error of the best are averaged, because with 30 rows
    cross-validation cannot tell them apart and their errors differ.

    Args:
        models: Name -> candidate. One alone is simply calibrated.
        folds: Folds of the cross-validation (from 40 rows; below, each row is left out by itself).
        seed: Draws the folds.
        costly: Names of the models that are tried only from `COSTLY_ROWS` rows.
        priors: Name -> weight before any row is seen; 1 for those that are not named.

    Attributes:
        weights_: Name -> weight in the average, of the models that have one.
        errors_: Name -> cross-validated mean absolute relative error.
        drift_: Shifted stretches of the profile, which are scaled back before fitting; None where the order is not
            known or there are too few rows.
        held_out_: Predictions of the fitted rows by fits without them.
    """

    models: Mapping[str, Model]
    folds: int = 10
    seed: int = 0
    costly: tuple[str, ...] = ()
    priors: Mapping[str, float] = field(default_factory=dict)
    weights_: dict[str, float] = field(default_factory=dict, init=False)
    errors_: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:
        """Choose, fit and calibrate on measured rows.

        Raises:
            ValueError: There are fewer than 8 rows, or a value is not finite and positive.
        """
        values = check_values(features, values)
        self.drift_ = detect(features, values, order) if order is not None and len(values) >= 2 * MIN_SEGMENT else None
        if self.drift_ is not None:
            values = self.drift_.steady(values)
        fold = folds_of(len(values), self.folds, self.seed)
        names = [name for name in self.models if name not in self.costly or len(values) >= COSTLY_ROWS]
        fitted = {name: copy.deepcopy(self.models[name]).fit(features, values, order) for name in names}
        outs = {name: held_out(fitted[name], features, values, order, fold) for name in names}
        losses = {name: np.abs(out.errors(values)) for name, out in outs.items()}
        self.errors_ = {name: float(loss.mean()) for name, loss in losses.items()}
        self.weights_ = weights_of(losses, self.priors)
        self.fitted_ = {name: fitted[name] for name in self.weights_}
        self.typical_ = {name: typical_spread(model, features) for name, model in self.fitted_.items()}
        self.held_out_ = HeldOut(
            sum((weight * outs[name].values for name, weight in self.weights_.items()), np.zeros(len(values))),
            sum((weight * outs[name].spreads for name, weight in self.weights_.items()), np.zeros(len(values))),
        )
        self.calibration_ = Calibration.of(self.held_out_, values)
        return self

    def predict(self, features: Features, confidence: float = 0.9) -> Prediction:
        """Predict rows with intervals that hold the measured value with the given confidence."""
        value, spread = self.point(features)
        half = self.calibration_.half_widths(value, spread, confidence)
        return Prediction(value, np.maximum(value - half, 0.0), value + half)

    def point(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)``, and how uncertain the models say they are, over what is typical of the fitted rows."""
        value, spread = np.zeros(len(features)), np.zeros(len(features))
        for name, weight in self.weights_.items():
            values, spreads = self.fitted_[name].predict(features)
            value += weight * values
            spread += weight * relative_spreads(spreads, self.typical_[name])
        return value, spread

    @property
    def chosen(self) -> str:
        """The name of the model with the largest weight."""
        return max(self.weights_, key=self.weights_.__getitem__)


def weights_of(losses: Mapping[str, Floats], priors: Mapping[str, float]) -> dict[str, float]:
    """Weights of models by their losses on the same rows ``(rows,)``, those below 5 % left out.

    A model that is worse than the best by z standard errors of their paired difference weighs ``exp(-z^2 / 2)`` times
    its prior weight. A loss counts as at most `MOST_LOSS` typical ones: else one row that all models miss would hide
    every difference between them.
    """
    best = min(losses, key=lambda name: float(losses[name].mean()))
    most = MOST_LOSS * float(np.median(losses[best])) or math.inf
    losses = {name: np.minimum(loss, most) for name, loss in losses.items()}
    best = min(losses, key=lambda name: float(losses[name].mean()))
    raw = {}
    for name, loss in losses.items():
        difference = loss - losses[best]
        error = float(difference.std()) / math.sqrt(len(difference))
        likelihood = math.exp(-0.5 * (float(difference.mean()) / error) ** 2) if error > 0 else 1.0
        raw[name] = likelihood * priors.get(name, 1.0)
    total = sum(raw.values())
    kept = {name: weight for name, weight in raw.items() if weight >= 0.05 * total}
    return {name: weight / sum(kept.values()) for name, weight in kept.items()}


def additive(seed: int = 0) -> CalibratedPredictor:
    """The fast 30-sample predictor: non-negative coefficients of operator-level products."""
    return CalibratedPredictor({"additive": AdditiveModel()}, seed=seed)


def lookup(seed: int = 0) -> CalibratedPredictor:
    """A table entry per block variant, shrunk towards the additive model, which also fills what was never measured."""
    return CalibratedPredictor({"lookup": ShrinkageModel(terms=("variants",))}, seed=seed)


def gaussian_process(seed: int = 0) -> CalibratedPredictor:
    """A Gaussian process over the additive prior."""
    return CalibratedPredictor({"gaussian_process": ShrinkageModel(terms=("smooth",))}, seed=seed)


def gradient_boosting(seed: int = 0) -> CalibratedPredictor:
    """Boosted trees over the additive prior."""
    return CalibratedPredictor({"trees": ResidualModel(AdditiveModel(), seed=seed)}, seed=seed)


def regression(regressor: Any, seed: int = 0) -> CalibratedPredictor:
    """Any scikit-learn regressor over the additive prior.

    Args:
        regressor: Not yet fitted; learns the prior's relative residuals.
        seed: Draws the folds.
    """
    return CalibratedPredictor({"regression": ResidualModel(AdditiveModel(), regressor)}, seed=seed)


def auto(seed: int = 0) -> CalibratedPredictor:
    """The default: what cross-validates best on the profile itself."""
    return CalibratedPredictor(
        {
            "additive": AdditiveModel(),
            "sparse": AdditiveModel(sparse=True),
            "lookup": ShrinkageModel(terms=("variants",)),
            "gaussian_process": ShrinkageModel(terms=("smooth",)),
            "shrinkage": ShrinkageModel(),
            "shrinkage_by_kind": ShrinkageModel(prior=AdditiveModel(by="kind")),
            "trees": ResidualModel(seed=seed),
        },
        seed=seed,
        costly=("trees",),
    )


PREDICTORS: Mapping[str, Callable[[int], CalibratedPredictor]] = {
    "additive": additive,
    "lookup": lookup,
    "gaussian_process": gaussian_process,
    "gradient_boosting": gradient_boosting,
    "auto": auto,
}


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
