"""A quality model for few evaluations: Bayesian linear regression whose groups of features have their own prior scales.

Wide features (totals of a subnet) are allowed more than narrow ones (one block's heads); how much more is decided by
the evidence of the evaluations (MacKay 1992; a relevance per group instead of per weight). One group are random Fourier
features (Rahimi and Recht 2007), with which the model is an approximate Gaussian process, at a cost that grows only
linearly with the evaluations. Its uncertainty is corrected by leave-one-out residuals, which have a closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

Floats = NDArray[np.float64]
_SCALES = np.array([0.0, 0.03, 0.1, 0.3, 1.0, 3.0])
_NOISES = np.array([1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.1, 0.5])


@dataclass(frozen=True, slots=True)
class Priors:
    """Prior standard deviations of the groups' contributions, and the noise variance, for a standardised target."""

    scales: tuple[float, ...]
    noise: float


@dataclass(frozen=True)
class FeatureMap:
    """Features of rows, standardised over a reference sample, in groups; the last group is made of random waves.

    Args:
        mean, spread: Of the reference sample's columns.
        groups: Which columns form each group.
        frequencies, phases: Of the random Fourier features.
    """

    mean: Floats
    spread: Floats
    groups: tuple[NDArray[np.intp], ...]
    frequencies: Floats
    phases: Floats

    @classmethod
    def make(cls, sample: Floats, groups: Sequence[Sequence[int]], waves: int = 64, seed: int = 0) -> FeatureMap:
        """Learn means and spreads from a sample of the space, ``(rows, columns)``; columns that never vary go.

        Args:
            sample: Rows from all over the space.
            groups: Columns of each group.
            waves: How many random Fourier features.
            seed: Of their frequencies.
        """
        generator = np.random.default_rng(seed)
        mean, spread = sample.mean(axis=0), sample.std(axis=0)
        varying = spread > 1e-12
        kept = [np.array([c for c in group if varying[c]], dtype=np.intp) for group in groups]
        kept = [group for group in kept if len(group)]
        spread = np.where(varying, spread, 1.0)
        count = int(varying.sum())
        frequencies = np.zeros((sample.shape[1], waves))
        if count:
            # A squared distance between random rows is about 2 columns; a length of two of them is smooth.
            frequencies[varying] = generator.normal(size=(count, waves)) / (2.0 * np.sqrt(count))
        phases = generator.uniform(0, 2 * np.pi, size=waves)
        return cls(mean, spread, tuple(kept), frequencies, phases)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many mapped columns each group has, the random waves last."""
        return (*(len(group) for group in self.groups), self.phases.size)

    def __call__(self, rows: Floats) -> Floats:
        """Mapped rows, group beside group, each group scaled so that a row's squared norm in it is about 1."""
        scaled = (rows - self.mean) / self.spread
        parts = [scaled[:, group] / np.sqrt(len(group)) for group in self.groups]
        parts.append(np.sqrt(2.0 / self.phases.size) * np.cos(scaled @ self.frequencies + self.phases))
        return np.concatenate(parts, axis=1)


class Surrogate:
    """The fitted model of one value; its rows are those of a `FeatureMap`.

    Args:
        sizes: How many columns each group has; see `FeatureMap.sizes`.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.priors: Priors | None = None
        self._fitted_at = 0

    def fit(self, rows: Floats, values: Floats) -> Surrogate:
        """Fit to mapped rows ``(evaluations, columns)`` and ``(evaluations,)``.

        Priors are chosen anew as evaluations accumulate.
        """
        self._mean, self._spread = float(values.mean()), float(max(values.std(), 1e-12))
        target = (values - self._mean) / self._spread
        if self.priors is None or len(values) >= 1.15 * self._fitted_at:
            self.priors = _choose_priors(_parts(rows, self.sizes), target, self.priors)
            self._fitted_at = len(values)
        scales = np.repeat(self.priors.scales, self.sizes)
        self._used = np.flatnonzero(scales)  # A group of scale 0 keeps no columns.
        self._scales = scales[self._used]
        design = self._design(rows)
        noise = self.priors.noise
        self._factor = cho_factor(design.T @ design + noise * np.eye(design.shape[1]), lower=True)
        weights: Floats = cho_solve(self._factor, design.T @ target)
        self._intercept, self._weights = float(weights[0]), weights[1:] * self._scales
        root = solve_triangular(self._factor[0], design.T, lower=True)
        leverage = np.minimum(np.sum(root**2, axis=0), 1 - 1e-6)
        residual = (target - design @ weights) / (1 - leverage)
        expected = noise / (1 - leverage)
        self.calibration = float(np.clip(np.sqrt(np.mean(residual**2 / expected)), 0.5, 3.0))
        self.cross_validated = float(np.sqrt(np.mean(residual**2)) * self._spread)
        return self

    def expect(self, rows: Floats) -> Floats:
        """Expected values of new rows alone, ``(rows,)``: a hundredth of the work of `predict`."""
        weights = np.zeros(rows.shape[1])
        weights[self._used] = self._weights
        expected: Floats = self._mean + self._spread * (rows @ weights + self._intercept)
        return expected

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """Expected values of new rows and their standard deviations, ``(rows,)`` each.

        What the features cannot explain counts as deviation: a new subnet has a share of it that is its own.
        """
        assert self.priors is not None, "fit first"
        root = solve_triangular(self._factor[0], self._design(rows).T, lower=True, check_finite=False)
        deviation = np.sqrt(self.priors.noise * (1.0 + np.sum(root**2, axis=0))) * self.calibration
        return self.expect(rows), self._spread * deviation

    def _design(self, rows: Floats) -> Floats:
        return np.concatenate([np.ones((len(rows), 1)), rows[:, self._used] * self._scales], axis=1)


def _parts(rows: Floats, sizes: Sequence[int]) -> list[Floats]:
    return np.split(rows, np.cumsum(sizes)[:-1], axis=1)


def _choose_priors(parts: Sequence[Floats], target: Floats, before: Priors | None, most: int = 200) -> Priors:
    """Coordinate ascent of the evidence over a grid, from the last choice; on a part of many rows."""
    if len(target) > most:
        chosen = np.linspace(0, len(target) - 1, most).astype(int)
        parts, target = [part[chosen] for part in parts], target[chosen]
    kernels = [part @ part.T for part in parts]
    scales = list(before.scales) if before else [1.0] * len(parts)
    noise = before.noise if before else 0.01
    best = _evidence(kernels, scales, noise, target)
    for _ in range(2 if before else 3):
        for position in range(len(parts)):
            for scale in _SCALES:
                trial = [*scales[:position], float(scale), *scales[position + 1 :]]
                if (value := _evidence(kernels, trial, noise, target)) > best + 1e-9:
                    best, scales = value, trial
        for level in _NOISES:
            if (value := _evidence(kernels, scales, float(level), target)) > best + 1e-9:
                best, noise = value, float(level)
    return Priors(tuple(scales), noise)


def _evidence(kernels: Sequence[Floats], scales: Sequence[float], noise: float, target: Floats) -> float:
    """Logarithm of the marginal likelihood, up to a constant."""
    matrix = np.ones_like(kernels[0]) + noise * np.eye(len(target))
    for kernel, scale in zip(kernels, scales, strict=True):
        if scale > 0:
            matrix += scale**2 * kernel
    try:
        factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return -np.inf
    return float(-0.5 * target @ cho_solve(factor, target) - np.log(np.diag(factor[0])).sum())
