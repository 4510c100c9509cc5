"""A predictor for a new device from 5 to 20 measurements on it and the profiles of other devices.

What other devices predict for a subnet is one more physical quantity of it: the new device is one of them to a power,
or a non-negative mixture of them with deviations where its rows ask for them. The shares of the time that products take
on other devices are also a prior for its own. Cross-validation weighs these transfers against the device's own rows,
which are among the candidates, so that profiles that do not help lose their weight.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from latency_models.additive import AdditiveModel
from latency_models.drift import MIN_ROWS as MIN_SEGMENT
from latency_models.drift import detect
from latency_models.features import Features, Floats, totals
from latency_models.informed import InformedModel, Shares, shares_of
from latency_models.intervals import Model
from latency_models.predictors import CalibratedPredictor
from latency_models.shrinkage import ShrinkageModel

INFORMED_NOISES = (0.003, 0.01, 0.03)


@dataclass
class TransferModel:
    """A model on what other devices' models predict.

    Args:
        sources: Name -> model fitted to another device's profile.
        model: Learns from the sources' predictions, as products, in place of the features' own.
        with_products: Whether the features' own products, one per kind, stand beside the predictions.
    """

    sources: Mapping[str, Model]
    model: Model = field(default_factory=AdditiveModel)
    with_products: bool = False

    def __deepcopy__(self, memo: dict[int, object]) -> TransferModel:
        # The sources are fitted and stay as they are: cross-validation copies models, and need not copy those.
        return TransferModel(self.sources, copy.deepcopy(self.model, memo), self.with_products)

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:
        """Fit to ``(rows,)`` positive values of the new device."""
        self.model.fit(self._mapped(features), values, order)
        return self

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)`` on the new device, and their relative spread up to a factor."""
        return self.model.predict(self._mapped(features))

    def _mapped(self, features: Features) -> Features:
        predictions = {f"source.{name}": model.predict(features)[0] for name, model in self.sources.items()}
        names, columns = tuple(predictions), list(predictions.values())
        if self.with_products:
            own = totals(features)
            names, columns = (*names, *own.names), [*columns, *own.products.T]
        return Features(
            names, np.column_stack(columns), features.flops, features.parameters, features.sizes, features.groups
        )


@dataclass
class PowerModel:
    """The new device is one other device's prediction to a power, times a factor: two numbers, by least squares.

    Args:
        source: Model fitted to another device's profile.
        ridge: Shrinkage of the power towards 1.
    """

    source: Model
    ridge: float = 0.05

    def __deepcopy__(self, memo: dict[int, object]) -> PowerModel:
        return PowerModel(self.source, self.ridge)

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:  # noqa: ARG002
        """Fit to ``(rows,)`` positive values of the new device."""
        known = np.log(self.source.predict(features)[0])
        self.centre_ = float(known.mean())
        size = known - self.centre_
        target = np.log(values) - known
        self.level_ = float(np.median(target))
        total = float((size**2).sum())
        self.power_ = 1.0 + float((size * (target - target.mean())).sum()) / (total + self.ridge * len(values))
        self.level_ = float(np.median(np.log(values) - self.power_ * size)) - self.centre_
        return self

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)`` on the new device, and their relative spread up to a factor (here 1)."""
        size = np.log(self.source.predict(features)[0]) - self.centre_
        values: Floats = np.exp(self.level_ + self.centre_ + self.power_ * size)
        return values, np.ones(len(values))


@dataclass(frozen=True)
class Source:
    """What is learned from another device's profile.

    Args:
        model: Predicts that device.
        shares: The part of its time that each product takes.
    """

    model: Model
    shares: Shares


def fit_source(features: Features, values: Floats, order: Floats | None = None) -> Source:
    """Learn another device from its profile; shifted stretches are scaled back where the order is known."""
    if order is not None and len(values) >= 2 * MIN_SEGMENT:
        values = detect(features, values, order).steady(values)
    model = ShrinkageModel(prior=AdditiveModel(by="kind")).fit(features, values, order)
    return Source(model, shares_of(features, values))


def transfer(sources: Mapping[str, Source], seed: int = 0) -> CalibratedPredictor:
    """A predictor for a new device: its own rows and transfers, weighed by cross-validation when it is fitted.

    Args:
        sources: Name -> what `fit_source` learned from another device's profile.
        seed: Draws the folds.

    Raises:
        ValueError: There is no source.
    """
    if not sources:
        raise ValueError("`sources` must name at least one other device's model, but is empty.")
    own: dict[str, Model] = {
        "additive": AdditiveModel(),
        "shrinkage": ShrinkageModel(),
        "shrinkage_by_kind": ShrinkageModel(prior=AdditiveModel(by="kind")),
    }
    models = {name: source.model for name, source in sources.items()}
    powers: dict[str, Model] = {f"power of {name}": PowerModel(model) for name, model in models.items()}
    mixtures: dict[str, Model] = {
        "mixture": TransferModel(models),
        "mixture_with_products": TransferModel(models, with_products=True),
        "shrinkage_from_mixture": TransferModel(models, ShrinkageModel(drift=False)),
    }
    shares = [source.shares for source in sources.values()]
    informed: dict[str, Model] = {
        f"informed, noise {noise:.1%}": ShrinkageModel(prior=InformedModel(shares, noise), drift=False)
        for noise in INFORMED_NOISES
    }
    # They have fewer free numbers than a device's own products: with few rows they get the benefit of the doubt.
    priors = dict.fromkeys([*powers, *mixtures, *informed], 2.0)
    return CalibratedPredictor({**own, **powers, **mixtures, **informed}, seed=seed, priors=priors)
