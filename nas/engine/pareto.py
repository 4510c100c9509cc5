"""Pareto fronts: which candidates nobody beats, how much they cover, and which of them people want to see."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Reference point of the hypervolume, in the units of `in_first_units`: a little worse than the first rows.
REFERENCE = 0.1
Pick = Literal["knee", "fastest", "smallest", "best_under"]


def non_dominated(losses: Floats) -> NDArray[np.bool_]:
    """Which rows no other row dominates (at least as small everywhere, smaller somewhere).

    Args:
        losses: ``(points, objectives)``, smaller is better. Of equal rows, the first counts.

    Returns:
        ``(points,)`` of bool.
    """
    keep = np.zeros(len(losses), dtype=bool)
    if not len(losses):
        return keep
    order = np.lexsort(losses.T[::-1])
    if losses.shape[1] == 2:
        second = losses[order, 1]
        best = np.minimum.accumulate(np.concatenate(([np.inf], second[:-1])))
        keep[order[second < best]] = True
        return keep
    front: list[int] = []
    for index in order:
        # In lexicographic order only earlier rows can dominate, and equal rows follow their first.
        if not front or not np.any(np.all(losses[front] <= losses[index], axis=1)):
            front.append(int(index))
    keep[front] = True
    return keep


def beaten(losses: Floats, front: Floats) -> NDArray[np.bool_]:
    """Which rows of losses some row of a front equals or beats in every objective, ``(points,)``."""
    if losses.shape[1] != 2:
        found: NDArray[np.bool_] = np.any(np.all(front[None, :, :] <= losses[:, None, :], axis=2), axis=1)
        return found
    ordered = front[np.argsort(front[:, 0], kind="stable")]
    best = np.concatenate(([np.inf], np.minimum.accumulate(ordered[:, 1])))
    below: NDArray[np.bool_] = best[np.searchsorted(ordered[:, 0], losses[:, 0], side="right")] <= losses[:, 1]
    return below


def domination_ranks(losses: Floats) -> NDArray[np.int64]:
    """Index of the front that each row is on: 0 for the Pareto front, 1 for the front without it, and so on."""
    ranks = np.full(len(losses), -1, dtype=np.int64)
    rank = 0
    while (left := np.flatnonzero(ranks < 0)).size:
        front = non_dominated(losses[left])
        # Equal rows share a front, although only the first of them counts as non-dominated.
        members = losses[left][front]
        same = (losses[left][:, None, :] == members[None, :, :]).all(axis=2).any(axis=1)
        ranks[left[same]] = rank
        rank += 1
    return ranks


def hypervolume(losses: Floats, reference: Floats) -> float:
    """Volume between the front of the rows and a reference point that is worse than they are; exact.

    Args:
        losses: ``(points, objectives)``, smaller is better; rows beyond the reference count nothing.
        reference: ``(objectives,)``.
    """
    points = losses[np.all(losses < reference, axis=1)]
    points = points[non_dominated(points)]
    return _volume(points, np.asarray(reference, dtype=np.float64))


def _volume(points: Floats, reference: Floats) -> float:
    """Slices along the last objective; points are non-dominated and better than the reference."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    if points.shape[1] == 2:
        # By rising second objective, the first falls along a front.
        widths = np.minimum.accumulate(np.concatenate(([reference[0]], points[:-1, 0]))) - points[:, 0]
        return float(np.sum(np.maximum(widths, 0.0) * (reference[1] - points[:, 1])))
    edges = np.concatenate((points[:, -1], [reference[-1]]))
    total = 0.0
    for index in range(len(points)):
        depth = edges[index + 1] - edges[index]
        if depth > 0:
            below = points[: index + 1, :-1]
            total += float(depth) * _volume(below[non_dominated(below)], reference[:-1])
    return total


def in_first_units(losses: Floats, first: int = 10) -> Floats:
    """Losses in units of the box that the first rows span, whose worst corner becomes the origin.

    A hypervolume against `REFERENCE` everywhere then only grows as rows are added, and is comparable between runs
    of the same search.

    Args:
        losses: ``(points, objectives)``, smaller is better, in the order in which they were found; at least one row.
        first: How many rows span the box.
    """
    low, high = losses[:first].min(axis=0), losses[:first].max(axis=0)
    span = np.where(high > low, high - low, np.maximum(np.abs(high), 1e-12))
    scaled: Floats = (losses - high) / span
    return scaled


def hypervolume_history(losses: Floats, reference: Floats, chunk: int = 512) -> Floats:
    """``(points,)``: the hypervolume of the first row, of the first two rows, and so on; exact.

    Only rows that the front so far does not dominate change the volume; they are found a chunk at a time, so that long
    histories with few improvements take milliseconds.

    Args:
        losses: ``(points, objectives)``, smaller is better.
        reference: ``(objectives,)``.
        chunk: Rows that are compared with the front at once.
    """
    history = np.zeros(len(losses))
    front = np.empty((0, losses.shape[1]))
    volume, row = 0.0, 0
    while row < len(losses):
        part = losses[row : row + chunk]
        news = np.flatnonzero(~beaten(part, front) & np.all(part < reference, axis=1))
        stop = row + (int(news[0]) if news.size else len(part))
        history[row:stop] = volume
        if news.size:
            front = np.vstack([front, losses[stop]])
            front = front[non_dominated(front)]
            volume = _volume(front, np.asarray(reference, dtype=np.float64))
            history[stop] = volume
            stop += 1
        row = stop
    return history


def crowding(losses: Floats) -> Floats:
    """How lonely each row is among the others: sum of the gaps between its neighbours; infinite at the ends."""
    distances = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]] if len(column) else 0.0
        distances[order[[0, -1]]] = np.inf
        if span > 0:
            distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distances


def knee(losses: Floats) -> int:
    """Index of the row that lies farthest below the plane through the ends of the front, objectives scaled to [0, 1].

    Source: the distance-to-chord reading of Das (1999), "On characterizing the knee of the Pareto curve".
    """
    low, high = losses.min(axis=0), losses.max(axis=0)
    scaled = (losses - low) / np.where(high > low, high - low, 1.0)
    return int(np.argmin(scaled.sum(axis=1)))


def spread(losses: Floats, count: int) -> list[int]:
    """Indices of at most ``count`` rows spread along a front, ends included, sorted by the first objective."""
    order = [int(i) for i in np.argsort(losses[:, 0], kind="stable")]
    if len(order) <= count:
        return order
    low, high = losses.min(axis=0), losses.max(axis=0)
    scaled = (losses - low) / np.where(high > low, high - low, 1.0)
    chosen = [order[0], order[-1]][:count]
    while len(chosen) < count:
        gaps = np.min(np.linalg.norm(scaled[:, None, :] - scaled[chosen][None, :, :], axis=2), axis=1)
        chosen.append(int(np.argmax(gaps)))
    return [index for index in order if index in set(chosen)]


def check_pick(pick: str | int) -> Pick:
    """The same name, once it is known to be one.

    Raises:
        ValueError: It is not.
    """
    for known in get_args(Pick):
        if pick == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"`pick` must be one of {', '.join(get_args(Pick))}, or a trial's number, but got {pick!r}.")
