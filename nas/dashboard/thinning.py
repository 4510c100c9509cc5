"""Fewer points that look like all of them: what makes a figure of ten thousand trials quick to draw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.engine.pareto import Floats

MOST_POINTS = 1500


def thin(x: Floats, y: Floats, most: int = MOST_POINTS) -> NDArray[np.int64]:
    """Indices of at most ``most`` points, one in each occupied cell of the finest grid that permits it.

    Args:
        x: ``(points,)`` finite horizontal coordinates.
        y: ``(points,)`` finite vertical ones.
        most: How many may stay; where there are fewer, all do.

    Returns:
        Sorted indices; in each cell the first point.
    """
    if len(x) <= most:
        return np.arange(len(x))

    def firsts(cells: int) -> NDArray[np.int64]:
        places = _cells(x, cells) * cells + _cells(y, cells)
        return np.asarray(np.unique(places, return_index=True)[1], dtype=np.int64)

    # A grid of one cell always permits; finer ones are tried by halving the gap.
    low, high, best = 1, 2048, firsts(1)
    while high - low > 1:
        middle = (low + high) // 2
        kept = firsts(middle)
        if len(kept) <= most:
            low, best = middle, kept
        else:
            high = middle
    return np.sort(best)


def _cells(values: Floats, count: int) -> NDArray[np.int64]:
    span = float(values.max() - values.min()) or 1.0
    cells: NDArray[np.int64] = np.minimum((values - values.min()) / span * count, count - 1).astype(np.int64)
    return cells
