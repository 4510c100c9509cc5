"""In which order units (heads, FFN neurons) are kept, so that a prefix is the best subset.

Seen from the projection that *reads* the units: its weight ``(out, units * size)`` and the moments of its input.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from search_spaces.compensate import Moments, damped

Importance = Literal["magnitude", "activation", "activation_weight", "obs"]


def unit_order(
    weight: Tensor, bias: Tensor | None, moments: Moments, size: int, importance: Importance, chunk: int = 1
) -> Tensor:
    """Units from most to least important, ``(units,)`` of int64.

    Args:
        weight: ``(out, units * size)``, of the projection that reads the units.
        bias: ``(out,)`` or None, of the same.
        moments: Moments of that projection's input.
        size: Input features per unit (a head's width, 1 for an FFN neuron).
        importance: ``magnitude`` (norm of the reading weights), ``activation`` (energy of the unit's output),
            ``activation_weight`` (energy that the unit adds to the projection's output, as Wanda's score, Sun et al.
            2023, arXiv 2306.11695, summed over the unit) or ``obs`` (sequential optimal-brain-surgeon removal with
            compensation, Kurtic et al. 2023, arXiv 2302.04089).
        chunk: For ``obs``, units removed before the scores are computed anew.

    Raises:
        ValueError: The metric is unknown.
    """
    if importance not in get_args(Importance):
        raise ValueError(f"`importance` must be one of {', '.join(get_args(Importance))}, but got {importance!r}.")
    if importance == "obs":
        return _removal_order(weight, moments.spread(bias), size, chunk)
    energy = moments.second.diagonal()
    reading = weight.double().square().sum(dim=0)
    scores = {"magnitude": reading, "activation": energy, "activation_weight": reading * energy}[importance]
    return scores.reshape(-1, size).sum(dim=1).argsort(descending=True, stable=True)


def _removal_order(weight: Tensor, spread: Tensor, size: int, chunk: int) -> Tensor:
    """Remove the units whose loss, after refitting the rest, rises least; the last to go is the most important."""
    inverse = torch.linalg.inv(damped(spread, 1e-3))
    current = weight.double().clone()
    units = torch.arange(weight.shape[1] // size)
    removed: list[Tensor] = []
    while len(units) > chunk:
        count = len(units)
        # Loss of removing unit u from the refitted rest: trace(W_u (C^-1)_uu^-1 W_u').
        columns = current.reshape(-1, count, size).permute(1, 2, 0)
        if size == 1:
            scores = columns.square().sum(dim=(1, 2)) / inverse.diagonal()
        else:
            blocks = inverse.reshape(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            scores = (columns * torch.linalg.solve(blocks, columns)).sum(dim=(1, 2))
        order = scores.argsort(stable=True)
        gone, rest = order[:chunk], order[chunk:].sort().values
        removed.append(units[gone])
        at_gone, at_rest = features(gone, size), features(rest, size)
        update = torch.linalg.solve(inverse[at_gone][:, at_gone], inverse[at_gone][:, at_rest])
        current = current[:, at_rest] - current[:, at_gone] @ update
        inverse = inverse[at_rest][:, at_rest] - inverse[at_rest][:, at_gone] @ update
        units = units[rest]
    left = weight.double().square().sum(dim=0).reshape(-1, size).sum(dim=1)[units]
    removed.append(units[left.argsort(stable=True)])
    return torch.cat(removed).flip(0)


def features(order: Tensor, size: int) -> Tensor:
    """Feature indices of units in the given order: ``(units * size,)``."""
    return (order[:, None] * size + torch.arange(size)).reshape(-1)
