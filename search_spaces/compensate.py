"""Least-squares compensation: what is left of a projection's input is made to stand in for what was removed.

For kept inputs S of a projection ``y = W a + b`` the weights that minimise ``E |y - W' a_S - b'|^2`` are
``W' = W C[:, S] (C[S, S] + damping)^-1`` and ``b' = b + W m - W' m_S``, with the input's mean m and covariance C. It
is the closed form of what optimal brain surgeon reaches one unit at a time (Hassibi and Stork 1993; ZipLM, Kurtic
et al. 2023, arXiv 2302.04089).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass
class Moments:
    """Running first and second moments of the rows that a projection reads, in double precision."""

    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def zeros(cls, width: int) -> Moments:
        """Nothing seen yet."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    def update(self, rows: Tensor) -> None:
        """Add ``(rows, width)``."""
        self.count += rows.shape[0]
        self.total += rows.sum(dim=0, dtype=torch.float64)
        # A batch has few enough rows for single precision; the sum over batches is in double.
        self.products += rows.float().T @ rows.float()

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> Tensor:
        """``(width,)``."""
        return self.total / max(self.count, 1)

    @property
    def second(self) -> Tensor:
        """``(width, width)``: E[a a']."""
        return self.products / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """``(width, width)``: E[(a - m)(a - m)']."""
        mean = self.mean
        return self.second - torch.outer(mean, mean)


def damped(matrix: Tensor, damping: float) -> Tensor:
    """The matrix with ``damping`` times its mean diagonal added to the diagonal, so that it can be inverted."""
    mean = matrix.diagonal().mean().clamp_min(torch.finfo(matrix.dtype).tiny)
    return matrix + damping * mean * torch.eye(matrix.shape[0], dtype=matrix.dtype)


def refit(weight: Tensor, bias: Tensor | None, moments: Moments, kept: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Weights ``(out, kept)`` and bias ``(out,)`` that best reproduce the projection from the kept inputs alone."""
    full = weight.double()
    covariance, mean = moments.covariance, moments.mean
    inner = damped(covariance[kept][:, kept], damping)
    refitted = torch.cholesky_solve(covariance[kept] @ full.T, torch.linalg.cholesky(inner)).T
    return refitted, _shifted_bias(full, bias, mean, refitted, mean[kept])


def compensate(
    weight: Tensor, bias: Tensor | None, fit: Moments, held_out: Moments, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """`refit` with the damping chosen on held-out rows, never worse there than dropping the inputs alone.

    Args:
        weight: ``(out, in)``.
        bias: ``(out,)`` or None.
        fit: Moments of the rows to fit on.
        held_out: Moments of the rows to choose on.
        kept: Indices of the inputs that stay, in the order in which they will stand.
    """
    both = fit + held_out
    plain = weight.double()[:, kept]
    plain_bias = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.double()
    best_error, best_damping = output_error(weight, bias, held_out, kept, plain, plain_bias), None
    for damping in DAMPINGS:
        candidate, shifted = refit(weight, bias, fit, kept, damping)
        error = output_error(weight, bias, held_out, kept, candidate, shifted)
        if error < best_error:
            best_error, best_damping = error, damping
    if best_damping is None:
        return plain, plain_bias
    return refit(weight, bias, both, kept, best_damping)


def output_error(
    weight: Tensor, bias: Tensor | None, moments: Moments, kept: Tensor, candidate: Tensor, candidate_bias: Tensor
) -> float:
    """Mean squared error of the projection's output, over the rows of the moments, when a candidate replaces it."""
    difference = weight.double().clone()
    difference[:, kept] -= candidate
    offset = (0.0 if bias is None else bias.double()) - candidate_bias + difference @ moments.mean
    spread = (difference @ moments.covariance * difference).sum()
    return float(spread + offset.square().sum())


def _shifted_bias(full: Tensor, bias: Tensor | None, mean: Tensor, kept: Tensor, kept_mean: Tensor) -> Tensor:
    """The bias that keeps the mean output."""
    return (0.0 if bias is None else bias.double()) + full @ mean - kept @ kept_mean
