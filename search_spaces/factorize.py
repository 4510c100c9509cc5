"""Activation-whitened low rank: two factors of which a prefix of the inner dimension is the best rank.

Minimises ``E |W (a - m) - U D (a - m)|^2`` over rank-r factors, which is the SVD of ``W L`` with the Cholesky factor L
of the input's covariance (SVD-LLM, Wang et al. 2024, arXiv 2403.07378; the mean goes into the bias). Where outputs do
not count alike, the error is measured in a metric ``G = M M'`` and the SVD is that of ``M' W L``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from search_spaces.compensate import damped

# Share of the metric's mean that every direction of the output counts at least.
_METRIC_DAMPING = 1e-2


def whitened_svd(
    weight: Tensor, covariance: Tensor, rank: int, metric: Tensor | None = None, damping: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Factors ``(out, rank)`` and ``(rank, in)``, sorted: for every r, the first r are the best of rank r.

    Args:
        weight: ``(out, in)``.
        covariance: ``(in, in)``, of the projection's input.
        rank: Columns to keep.
        metric: ``(out, out)``: an error e of the outputs costs e' G e; None if they count alike.
        damping: Share of the mean variance added to every direction, so that unseen directions are not thrown away.
    """
    factor = torch.linalg.cholesky(damped(covariance, damping))
    outer = None if metric is None else torch.linalg.cholesky(damped(metric, _METRIC_DAMPING)).T
    seen = weight.double() if outer is None else outer @ weight.double()
    left, values, right = torch.linalg.svd(seen @ factor, full_matrices=False)
    down = torch.linalg.solve_triangular(factor, right[:rank], upper=False, left=False)
    up = left[:, :rank] * values[:rank]
    return up if outer is None else torch.linalg.solve_triangular(outer, up, upper=True), down
