"""The additive model for a handful of rows, told what share of the time each product takes on other devices.

Ten rows cannot tell twenty coefficients apart. Devices differ, but not in everything: on all of them matrix products
take most of the time, and norms little. The shares of the time that a product takes on other devices are a Gaussian
prior for its share on the new one, with the covariance in which those devices differ: a hierarchical model (Gelman and
Hill 2007).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from latency_models.additive import AdditiveModel, huber_weights, independent_columns
from latency_models.features import Features, Floats, aligned

Shares = Mapping[str, float]
"""Product name -> the part of a device's time that it takes; they add up to about 1."""


@dataclass
class InformedModel:
    """Non-negative coefficients of products, drawn towards the shares that they have on other devices.

    Args:
        known: Shares on every other device.
        noise: Relative standard deviation of a measured value around the model.
        freedom: Standard deviation of a share beyond what the known devices differ by.
    """

    known: Sequence[Shares]
    noise: float = 0.01
    freedom: float = 0.1
    names_: tuple[str, ...] = field(default=(), init=False, repr=False)
    coefficients_: Floats = field(default_factory=lambda: np.zeros(0), init=False, repr=False)

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:  # noqa: ARG002
        """Fit to ``(rows,)`` positive values."""
        from scipy.optimize import nnls

        named = {name for shares in self.known for name in shares}
        # Of products that are multiples of each other, the one that other devices have shares of.
        rows = aligned(features, sorted(features.names, key=lambda name: name not in named))
        relative = rows.products / values[:, None]
        scales = relative.mean(axis=0)
        used = independent_columns(relative / np.where(scales > 0, scales, 1.0), np.asarray(scales > 0))
        self.names_ = tuple(rows.names[index] for index in used)
        matrix = relative[:, used] / scales[used]
        centre, root = self._prior()
        weights = np.ones(len(values))
        solution = centre
        for _ in range(8):
            precision = np.sqrt(weights) / self.noise
            stacked = np.vstack([matrix * precision[:, None], root])
            target = np.concatenate([precision, root @ centre])
            solution = nnls(stacked, target, maxiter=30 * len(used))[0]
            updated = huber_weights(1.0 - matrix @ solution)
            if np.abs(updated - weights).max() < 1e-3:
                break
            weights = updated
        self.coefficients_ = solution / scales[used]
        return self

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)`` in the unit of the fitted ones, and their relative spread up to a factor (here 1)."""
        values = aligned(features, self.names_).products @ self.coefficients_
        return values, np.ones(len(values))

    def _prior(self) -> tuple[Floats, Floats]:
        """Mean shares of the products in use, and a square root of their precision matrix."""
        shares = np.array([[known.get(name, 0.0) for name in self.names_] for known in self.known])
        centre = shares.mean(axis=0)
        deviations = shares - centre
        between = deviations.T @ deviations / max(len(shares) - 1, 1)
        covariance = between + self.freedom**2 * np.eye(len(centre))
        root: Floats = np.asarray(np.linalg.cholesky(np.linalg.inv(covariance)).T, dtype=np.float64)
        return centre, root


def shares_of(features: Features, values: Floats) -> dict[str, float]:
    """The part of the time that each product takes on a device, by the additive model of its rows ``(rows,)``."""
    model = AdditiveModel().fit(features, values)
    means = (aligned(features, model.names_).products / values[:, None]).mean(axis=0)
    return dict(zip(model.names_, (model.coefficients_ * means).tolist(), strict=True))
