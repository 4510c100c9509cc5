"""Least-squares compensation: what is left of a projection's input is made to stand in for what was removed.

For kept inputs S and removed ones R of a projection ``y = W a + b`` the weights that minimise
``E |y - W' a_S - b'|^2`` are ``W' = W_S + W_R C[R, S] (C[S, S] + damping)^-1`` and ``b' = b + W m - W' m_S``, with the
input's mean m and covariance C. It is the closed form of what optimal brain surgeon reaches one unit at a time (Hassibi
and Stork 1993; ZipLM, Kurtic et al. 2023, arXiv 2302.04089).

A projection without a bias keeps none, so that what is made of it is still of the stock class: there C is the second
moment E[a a'] and m is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass
class Moments:
    """Running first and second moments of the rows that a projection reads, in double precision on the CPU."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    products: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def update(self, rows: Tensor) -> None:
        """Add ``(rows, width)``."""
        if not len(self.total):
            self.total = torch.zeros(rows.shape[1], dtype=torch.float64)
            self.products = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        self.count += rows.shape[0]
        self.total += rows.sum(dim=0, dtype=torch.float64).cpu()
        # A batch has few enough rows for single precision; the sum over batches is in double.
        rows = rows.float()
        self.products += (rows.T @ rows).cpu()

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

    def spread(self, bias: Tensor | None) -> Tensor:
        """``(width, width)``: what a projection's error is measured in, the covariance where a bias takes the mean."""
        return self.second if bias is None else self.covariance


def damped(matrix: Tensor, damping: float) -> Tensor:
    """The matrix with ``damping`` times its mean diagonal added to the diagonal, so that it can be inverted."""
    mean = matrix.diagonal().mean().clamp_min(torch.finfo(matrix.dtype).tiny)
    return matrix + damping * mean * torch.eye(matrix.shape[0], dtype=matrix.dtype)


def refit(
    weight: Tensor, bias: Tensor | None, moments: Moments, kept: Tensor, damping: float
) -> tuple[Tensor, Tensor | None]:
    """Weights ``(out, kept)`` and bias ``(out,)`` that best reproduce the projection from the kept inputs alone."""
    full, spread = weight.double(), moments.spread(bias)
    gone = torch.ones(full.shape[1], dtype=torch.bool)
    gone[kept] = False
    # Only what is added to the kept weights is damped: where there is little data, they stay as they are.
    inner = torch.linalg.cholesky(damped(spread[kept][:, kept], damping))
    refitted = full[:, kept] + torch.cholesky_solve(spread[kept][:, gone] @ full[:, gone].T, inner).T
    if bias is None:
        return refitted, None
    # The bias that keeps the mean output.
    return refitted, bias.double() + full @ moments.mean - refitted @ moments.mean[kept]


def compensate(
    weight: Tensor, bias: Tensor | None, fit: Moments, held_out: Moments, kept: Tensor
) -> tuple[Tensor, Tensor | None]:
    """`refit` with the damping chosen on held-out rows, never worse there than dropping the inputs alone.

    Args:
        weight: ``(out, in)``.
        bias: ``(out,)`` or None.
        fit: Moments of the rows to fit on.
        held_out: Moments of the rows to choose on; where there are none, the rows to fit on choose.
        kept: Indices of the inputs that stay, in the order in which they will stand.
    """
    both, held_out = fit + held_out, held_out if held_out.count else fit
    plain = weight.double()[:, kept], None if bias is None else bias.double()
    best_error, best_damping = output_error(weight, bias, held_out, kept, *plain), None
    for damping in DAMPINGS:
        error = output_error(weight, bias, held_out, kept, *refit(weight, bias, fit, kept, damping))
        if error < best_error:
            best_error, best_damping = error, damping
    return plain if best_damping is None else refit(weight, bias, both, kept, best_damping)


def output_error(
    weight: Tensor,
    bias: Tensor | None,
    moments: Moments,
    kept: Tensor,
    candidate: Tensor,
    candidate_bias: Tensor | None,
) -> float:
    """Mean squared error of the projection's output, over the rows of the moments, when a candidate replaces it."""
    difference = weight.double().clone()
    difference[:, kept] -= candidate
    error = (difference @ moments.spread(bias) * difference).sum()
    if bias is not None and candidate_bias is not None:
        error += (bias.double() - candidate_bias + difference @ moments.mean).square().sum()
    return float(error)
