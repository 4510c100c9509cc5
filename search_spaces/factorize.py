"""Activation-whitened low rank: two factors of which a prefix of the inner dimension is the best rank.

Minimises ``E |W (a - m) - U D (a - m)|^2`` over rank-r factors, which is the SVD of ``W L`` with the Cholesky factor L
of the input's covariance (SVD-LLM, Wang et al. 2024, arXiv 2403.07378; the mean goes into the bias).
"""

from __future__ import annotations

import torch
from torch import Tensor

from search_spaces.compensate import damped


def whitened_svd(weight: Tensor, covariance: Tensor, rank: int, damping: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Factors ``(out, rank)`` and ``(rank, in)``, sorted: for every r, the first r are the best of rank r.

    Args:
        weight: ``(out, in)``.
        covariance: ``(in, in)``, of the projection's input.
        rank: Columns to keep.
        damping: Share of the mean variance added to every direction, so that unseen directions are not thrown away.
    """
    factor = torch.linalg.cholesky(damped(covariance, damping))
    left, values, right = torch.linalg.svd(weight.double() @ factor, full_matrices=False)
    down = torch.linalg.solve_triangular(factor, right[:rank], upper=False, left=False)
    return left[:, :rank] * values[:rank], down
