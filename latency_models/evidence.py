"""Bayesian linear regression with one prior variance per family of columns, all of them learned from the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latency_models.features import Floats

_TINY = 1e-14


@dataclass(frozen=True)
class Posterior:
    """What is known of the coefficients.

    Args:
        mean: ``(columns,)``.
        covariance: ``(columns, columns)``.
        noise: Variance of the errors.
        variances: ``(families,)``: prior variances.
    """

    mean: Floats
    covariance: Floats
    noise: float
    variances: Floats


def maximise_evidence(
    families: list[Floats],
    target: Floats,
    degrees: float = 4.0,
    rounds: int = 50,
    tolerance: float = 1e-3,
    start: tuple[Floats, float] | None = None,
) -> Posterior:
    """Fit coefficients, noise and one prior variance per family, under Student-t errors.

    MacKay's fixed-point updates (1992, "Bayesian interpolation") inside the scale-mixture weights of the t
    distribution.
    Works in the space of rows or of columns, whichever is smaller.

    Args:
        families: Matrices ``(rows, columns of the family)`` with columns of about unit mean square.
        target: ``(rows,)``.
        degrees: Degrees of freedom of the errors; infinity for normal errors.
        rounds: Most updates.
        tolerance: Relative change of the noise's standard deviation at which to stop.
        start: Variances per family and noise to begin at, such as those of nearly the same rows.
    """
    matrix = np.column_stack(families)
    owner = np.repeat(np.arange(len(families)), [family.shape[1] for family in families])
    rows, columns = matrix.shape
    kernels = np.stack([family @ family.T for family in families]) if rows < columns else None
    noise = float(np.mean(target**2)) / 2 + _TINY
    variances = np.full(len(families), noise)
    if start is not None and len(start[0]) == len(families):
        variances, noise = start
    weights = np.ones(rows)
    for _ in range(rounds):
        before = noise
        if kernels is None:
            mean, gamma, spread = _by_columns(matrix, owner, target, weights / noise, variances)
        else:
            mean, gamma, spread = _by_rows(kernels, matrix, owner, target, weights / noise, variances)
        squares = np.bincount(owner, mean**2, minlength=len(families))
        variances = squares / np.maximum(gamma, 1e-6) + _TINY
        residual = target - matrix @ mean
        noise = float((weights * residual**2).sum() / max(rows - gamma.sum(), 0.1 * rows)) + _TINY
        if np.isfinite(degrees):
            weights = (degrees + 1.0) / (degrees + (residual**2 + spread) / noise)
        if abs(noise - before) < 2 * tolerance * noise:
            break
    gram = (matrix * (weights / noise)[:, None]).T @ matrix
    covariance = _inverse(gram + np.diag(1.0 / variances[owner]))
    return Posterior(covariance @ (matrix.T @ (weights / noise * target)), covariance, noise, variances)


def _by_columns(
    matrix: Floats, owner: np.typing.NDArray[np.int64], target: Floats, precision: Floats, variances: Floats
) -> tuple[Floats, Floats, Floats]:
    """Mean, well-determined columns per family and posterior variance per row, by a columns x columns inverse."""
    prior = 1.0 / variances[owner]
    weighted = matrix * precision[:, None]
    covariance = _inverse(weighted.T @ matrix + np.diag(prior))
    mean = covariance @ (weighted.T @ target)
    determined = 1.0 - prior * np.diag(covariance)
    gamma: Floats = np.bincount(owner, determined, minlength=len(variances)).astype(np.float64)
    return mean, gamma, ((matrix @ covariance) * matrix).sum(axis=1)


def _by_rows(
    kernels: Floats,
    matrix: Floats,
    owner: np.typing.NDArray[np.int64],
    target: Floats,
    precision: Floats,
    variances: Floats,
) -> tuple[Floats, Floats, Floats]:
    """The same by a rows x rows inverse."""
    kernel = np.tensordot(variances, kernels, axes=1)
    inverse = _inverse(kernel + np.diag(1.0 / precision))
    mean = variances[owner] * (matrix.T @ (inverse @ target))
    gamma = variances * (kernels * inverse).sum(axis=(1, 2))
    return mean, gamma, np.diag(kernel) - ((kernel @ inverse) * kernel).sum(axis=1)


def _inverse(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)
