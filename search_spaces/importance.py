"""In which order units (heads, FFN neurons) are kept, so that a prefix is the best subset.

Seen from the projection that *reads* the units: its weight ``(out, units * size)`` and the moments of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from search_spaces.compensate import Moments, damped

Importance = Literal["magnitude", "activation", "activation_weight", "fisher", "obs"]
# Removals of residual coordinates between two updates of the scores, as a share of them.
_STREAM_CHUNKS = 96


def unit_order(
    weight: Tensor,
    bias: Tensor | None,
    moments: Moments,
    size: int,
    importance: Importance,
    chunk: int = 1,
    information: Tensor | None = None,
) -> Tensor:
    """Units from most to least important, ``(units,)`` of int64.

    Args:
        weight: ``(out, units * size)``, of the projection that reads the units.
        bias: ``(out,)`` or None, of the same.
        moments: Moments of that projection's input.
        size: Input features per unit (a head's width, 1 for an FFN neuron).
        importance: ``magnitude`` (norm of the reading weights), ``activation`` (energy of the unit's output),
            ``activation_weight`` (energy that the unit adds to the projection's output, as Wanda's score, Sun et al.
            2023, arXiv 2306.11695, summed over the unit), ``fisher`` (what the model's outputs would lose, see
            `fisher`) or ``obs`` (sequential optimal-brain-surgeon removal with compensation, Kurtic et al. 2023, arXiv
            2302.04089).
        chunk: For ``obs``, units removed before the scores are computed anew.
        information: ``(units,)``, for ``fisher``.

    Raises:
        ValueError: The metric is unknown.
    """
    if importance not in get_args(Importance):
        raise ValueError(f"`importance` must be one of {', '.join(get_args(Importance))}, but got {importance!r}.")
    if importance == "obs":
        return _removal_order([(weight, moments.spread(bias))], size, chunk)
    if importance == "fisher":
        assert information is not None, "fisher needs the units' information"
        return information.argsort(descending=True, stable=True)
    energy = moments.spread(bias).diagonal()  # A bias takes over what a unit says on average.
    reading = weight.double().square().sum(dim=0)
    scores = {"magnitude": reading, "activation": energy, "activation_weight": reading * energy}[importance]
    return scores.reshape(-1, size).sum(dim=1).argsort(descending=True, stable=True)


def stream_order(places: Sequence[tuple[Tensor, Tensor]], importance: Importance) -> Tensor:
    """Coordinates of the residual stream from most to least important to all that read it, ``(width,)`` of int64.

    What a place loses counts as a share of what its projections give, so that no place outweighs the others.

    Args:
        places: Of each place that reads the stream, the weight ``(out, width)`` of its projections, or any other with
            the same Gram matrix, and the second moments or the covariance ``(width, width)`` of what it reads.
        importance: As of units, see `unit_order`; ``fisher`` tells of units alone, so that coordinates are ordered by
            ``activation_weight`` there.
    """
    scaled = [
        (weight.double() / (weight.double() @ spread * weight.double()).sum().clamp_min(1e-30).sqrt(), spread)
        for weight, spread in places
    ]
    width = scaled[0][0].shape[1]
    if importance == "obs":
        return _removal_order(scaled, 1, max(1, width // _STREAM_CHUNKS))
    importance = "activation_weight" if importance == "fisher" else importance
    scores = torch.zeros(width, dtype=torch.float64)
    for weight, spread in scaled:
        reading, energy = weight.square().sum(dim=0), spread.diagonal()
        scores += {"magnitude": reading, "activation": energy, "activation_weight": reading * energy}[importance]
    return scores.argsort(descending=True, stable=True)


def _removal_order(places: Sequence[tuple[Tensor, Tensor]], size: int, chunk: int) -> Tensor:
    """Remove the units whose loss, after refitting the rest, rises least; the last to go is the most important."""
    units = torch.arange(places[0][0].shape[1] // size)
    removed: list[Tensor] = []
    left = [(weight.double().clone(), torch.linalg.inv(damped(spread, 1e-3))) for weight, spread in places]
    while len(units) > chunk:
        scores = torch.stack([_removal_scores(current, inverse, size) for current, inverse in left]).sum(dim=0)
        order = scores.argsort(stable=True)
        gone, rest = order[:chunk], order[chunk:].sort().values
        removed.append(units[gone])
        left = [_without(current, inverse, features(gone, size), features(rest, size)) for current, inverse in left]
        units = units[rest]
    last = sum(weight.double().square().sum(dim=0).reshape(-1, size).sum(dim=1) for weight, _ in places)
    assert isinstance(last, Tensor)
    removed.append(units[last[units].argsort(stable=True)])
    return torch.cat(removed).flip(0)


def _removal_scores(current: Tensor, inverse: Tensor, size: int) -> Tensor:
    """Loss of removing unit u from the refitted rest, ``(units,)``: trace(W_u (C^-1)_uu^-1 W_u')."""
    count = current.shape[1] // size
    if size == 1:
        return current.square().sum(dim=0) / inverse.diagonal()
    columns = current.reshape(-1, count, size).permute(1, 2, 0)
    blocks = inverse.reshape(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    scores: Tensor = (columns * torch.linalg.solve(blocks, columns)).sum(dim=(1, 2))
    return scores


def _without(current: Tensor, inverse: Tensor, gone: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and inverse once the rest was refitted to stand in for the features that are gone."""
    update = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, rest])
    return current[:, rest] - current[:, gone] @ update, inverse[rest][:, rest] - inverse[rest][:, gone] @ update


def features(order: Tensor, size: int) -> Tensor:
    """Feature indices of units in the given order: ``(units * size,)``."""
    return (order[:, None] * size + torch.arange(size)).reshape(-1)
