"""The 30-sample model: one non-negative coefficient per operator-level product, fitted to relative errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from latency_models.features import Features, Floats, aligned, totals

HUBER = 1.345
"""Huber's threshold in robust standard deviations: 95 % efficient under normal errors."""


@dataclass
class AdditiveModel:
    """Non-negative least squares on products, with weights 1/value and a robust loss.

    Lawson and Hanson (1974) on operator-level products; weights 1/value make errors relative, so that small subnets
    count as much as large ones; Huber (1964) weights keep a drifting stretch of a profile from pulling the rest.

    Args:
        ridge: Shrinkage per coefficient, relative to a column's mean share of the value.
        sparse: Whether to use only products that lower Akaike's criterion (1974), added one by one.
        by: ``product``: a coefficient per product; ``kind``: one for all FLOPs, one for all kernels and so on.
    """

    ridge: float = 1e-2
    sparse: bool = False
    by: str = "product"
    names_: tuple[str, ...] = field(default=(), init=False, repr=False)
    coefficients_: Floats = field(default_factory=lambda: np.zeros(0), init=False, repr=False)

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:  # noqa: ARG002
        """Fit to ``(rows,)`` positive values.

        Raises:
            ValueError: `by` is unknown.
        """
        rows = self._rows(features)
        relative = rows.products / values[:, None]
        scales = relative.mean(axis=0)
        used = independent_columns(relative / np.where(scales > 0, scales, 1.0), np.asarray(scales > 0))
        matrix = relative[:, used] / scales[used]
        solution, weights = self._robust(matrix)
        if self.sparse:
            chosen = _forward(matrix * np.sqrt(weights)[:, None], np.sqrt(weights))
            solution = np.zeros(len(used))
            solution[chosen], _ = self._robust(matrix[:, chosen])
        self.names_ = tuple(rows.names[index] for index in used)
        self.coefficients_ = solution / scales[used]
        return self

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)`` in the unit of the fitted ones, and their relative spread up to a factor (here 1)."""
        values = aligned(self._rows(features), self.names_).products @ self.coefficients_
        return values, np.ones(len(values))

    def _rows(self, features: Features) -> Features:
        if self.by not in ("product", "kind"):
            raise ValueError(f"`by` must be 'product' or 'kind', but got {self.by!r}.")
        return features if self.by == "product" else totals(features)

    def _robust(self, matrix: Floats) -> tuple[Floats, Floats]:
        """Solution of ``matrix @ x = 1`` and the rows' weights, by reweighting."""
        weights = np.ones(len(matrix))
        solution = np.zeros(matrix.shape[1])
        for _ in range(8):
            solution = _non_negative(matrix, weights, self.ridge)
            updated = huber_weights(1.0 - matrix @ solution)
            if np.abs(updated - weights).max() < 1e-3:
                break
            weights = updated
        return solution, weights


def independent_columns(matrix: Floats, allowed: NDArray[np.bool_]) -> list[int]:
    """Indices of the columns that are not a multiple of an earlier one, by their cosine over the rows."""
    norms = np.linalg.norm(matrix, axis=0)
    candidates = np.flatnonzero(allowed & (norms > 0))
    units = matrix[:, candidates] / norms[candidates]
    cosines = np.abs(units.T @ units)
    kept: list[int] = []
    for place in range(len(candidates)):
        if not kept or cosines[place, kept].max() < 1.0 - 1e-10:
            kept.append(place)
    return [int(candidates[place]) for place in kept]


def huber_weights(residuals: Floats, threshold: float = HUBER) -> Floats:
    """Weights of Huber's loss for residuals, on the scale of their median absolute deviation."""
    spread = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
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


def _forward(matrix: Floats, target: Floats) -> list[int]:
    """Columns that a non-negative fit of the target needs, added one by one while Akaike's criterion falls."""
    from scipy.optimize import nnls

    orthogonal, triangle = np.linalg.qr(matrix)
    within = orthogonal.T @ target
    outside = max(float(target @ target - within @ within), 0.0)
    chosen: list[int] = []
    best = np.inf
    rows, columns = matrix.shape
    while len(chosen) < columns:
        errors = {
            column: nnls(triangle[:, [*chosen, column]], within)[1] ** 2 + outside
            for column in range(columns)
            if column not in chosen
        }
        column = min(errors, key=errors.__getitem__)
        criterion = rows * np.log(max(errors[column], 1e-300) / rows) + 2.0 * (len(chosen) + 1)
        if criterion > best - 1e-9:
            break
        best = criterion
        chosen.append(column)
    return chosen
