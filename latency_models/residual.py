"""What a physical model leaves over, learned by any scikit-learn regressor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from latency_models.additive import independent_columns
from latency_models.features import ABSENT, Features, Floats, Integers, aligned
from latency_models.intervals import Model
from latency_models.shrinkage import ShrinkageModel


def trees(seed: int = 0) -> Any:
    """Shallow gradient-boosted trees with an absolute loss, for a few hundred rows."""
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(
        loss="huber",
        n_estimators=60,
        learning_rate=0.05,
        max_depth=3,
        min_samples_leaf=5,
        subsample=0.7,
        random_state=seed,
    )


@dataclass
class ResidualModel:
    """A regressor on the relative residuals of a prior model.

    Args:
        prior: The physical model.
        regressor: Any scikit-learn regressor, not yet fitted; `trees()` when None.
        seed: Of the default regressor.
    """

    prior: Model = field(default_factory=ShrinkageModel)
    regressor: Any = None
    seed: int = 0

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:
        """Fit the prior, then the regressor on what is left, to ``(rows,)`` positive values."""
        from sklearn.base import clone

        self.prior.fit(features, values, order)
        self.names_ = tuple(
            features.names[i] for i in independent_columns(features.products, np.asarray(features.products.any(axis=0)))
        )
        self.levels_ = {
            name: np.unique(sizes[sizes != ABSENT])
            for name, sizes in features.sizes.items()
            if len(np.unique(sizes[sizes != ABSENT])) > 1
        }
        self.regressor_ = trees(self.seed) if self.regressor is None else clone(self.regressor)
        self.regressor_.fit(
            numeric(features, self.names_, self.levels_), values / self.prior.predict(features)[0] - 1.0
        )
        return self

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)``, and the prior's relative spread."""
        values, spread = self.prior.predict(features)
        residual = self.regressor_.predict(numeric(features, self.names_, self.levels_))
        return values * np.maximum(1.0 + residual, 1e-3), spread


def numeric(features: Features, names: tuple[str, ...], levels: dict[str, Integers]) -> Floats:
    """One matrix ``(rows, columns)`` of products, groups and counts of block sizes, as plain regressors take it."""
    products = aligned(features, names).products
    groups = [values.astype(np.float64) for values in features.groups.values()]
    counts = [(features.sizes[name] == value).sum(axis=1) for name, values in levels.items() for value in values]
    return np.column_stack([products, *groups, *counts])
