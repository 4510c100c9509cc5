"""All subnets of a space, where they are few enough to be listed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig

MOST_LISTED = 4096
_SAMPLE = 2000


def members(space: SearchSpace, most: int = MOST_LISTED) -> list[SubnetConfig] | None:
    """Every distinct canonical subnet of a space, or None where it has more combinations of choices than can be listed.

    Args:
        space: The space.
        most: Combinations up to which they are listed.
    """
    return None if space.size > most else list(dict.fromkeys(space.decode(combinations(space))))


def few_members(space: SearchSpace, below: int) -> list[SubnetConfig]:
    """Every distinct canonical subnet of a space that has fewer than so many; else none.

    Many combinations of choices may be few subnets, such as those of ranks that save nothing. Where they cannot be
    listed, a sample tells.

    Args:
        space: The space.
        below: How many subnets are no longer few.
    """
    found = members(space)
    if found is None:
        drawn = space.sample(np.random.default_rng(0), _SAMPLE)
        found = list(dict.fromkeys([space.smallest, space.largest, *drawn]))
    return found if len(found) < below else []


def combinations(space: SearchSpace) -> NDArray[np.int64]:
    """Rows of levels of all combinations of choices, ``(combinations, dimensions)``; one row where nothing varies."""
    counts = [len(dimension.choices) for dimension in space.dimensions]
    rows: NDArray[np.int64] = np.indices(counts, dtype=np.int64).reshape(len(counts), space.size).T
    return rows
