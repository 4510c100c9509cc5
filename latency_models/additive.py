"""The 30-sample model: one non-negative coefficient per operator-level product, fitted to relative errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from latency_models.features import Features, Floats, aligned


@dataclass
class AdditiveModel:
    """Non-negative least squares on products, with weights 1/value and a robust loss.

    Lawson and Hanson (1974) on operator-level products; weights 1/value make errors relative, so that small subnets
    count as much as large ones; Huber (1964) weights keep a drifting stretch of a profile from pulling the rest.

    Args:
        ridge: Shrinkage per coefficient, relative to a column's mean share of the value.
        huber: Residuals beyond this many robust standard deviations get less weight.
    """

    ridge: float = 1e-2
    huber: float = 2.5
    names_: tuple[str, ...] = field(default=(), init=False, repr=False)
    coefficients_: Floats = field(default_factory=lambda: np.zeros(0), init=False, repr=False)

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:  # noqa: ARG002
        """Fit to ``(rows,)`` positive values; rows of which the model is certain enough are any 2 or more."""
        relative = features.products / values[:, None]
        scales = relative.mean(axis=0)
        used = independent_columns(relative / np.where(scales > 0, scales, 1.0), scales > 0)
        matrix = relative[:, used] / scales[used]
        weights = np.ones(len(values))
        solution = np.zeros(len(used))
        for _ in range(8):
            solution = _non_negative(matrix, weights, self.ridge)
            updated = huber_weights(1.0 - matrix @ solution, self.huber)
            if np.abs(updated - weights).max() < 1e-3:
                break
            weights = updated
        self.names_ = tuple(features.names[index] for index in used)
        self.coefficients_ = solution / scales[used]
        return self

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)`` in the unit of the fitted ones, and their relative spread up to a factor (here 1)."""
        values = aligned(features, self.names_).products @ self.coefficients_
        return values, np.ones(len(values))


def independent_columns(matrix: Floats, allowed: np.typing.NDArray[np.bool_]) -> list[int]:
    """Indices of the columns that are not a multiple of an earlier one, by their cosine over the rows."""
    norms = np.linalg.norm(matrix, axis=0)
    kept: list[int] = []
    for index in np.flatnonzero(allowed & (norms > 0)):
        unit = matrix[:, index] / norms[index]
        if all(abs(unit @ (matrix[:, other] / norms[other])) < 1.0 - 1e-10 for other in kept):
            kept.append(int(index))
    return kept


def huber_weights(residuals: Floats, threshold: float) -> Floats:
    """Weights of Huber's loss for residuals, on the scale of their median absolute deviation."""
    spread = 1.4826 * np.median(np.abs(residuals - np.median(residuals)))
    if spread <= 0:
        return np.ones(len(residuals))
    weights: Floats = np.minimum(1.0, threshold * spread / np.maximum(np.abs(residuals), 1e-300))
    return weights


def _non_negative(matrix: Floats, weights: Floats, ridge: float) -> Floats:
    """Weighted non-negative ridge solution of ``matrix @ x = 1``, by way of the small triangular factor."""
    from scipy.optimize import nnls

    root = np.sqrt(weights)
    stacked = np.vstack([matrix * root[:, None], ridge * np.eye(matrix.shape[1])])
    target = np.concatenate([root, np.zeros(matrix.shape[1])])
    orthogonal, triangle = np.linalg.qr(stacked)
    solution: Floats = nnls(triangle, orthogonal.T @ target, maxiter=max(100, 30 * matrix.shape[1]))[0]
    return solution
