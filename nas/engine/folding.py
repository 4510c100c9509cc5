"""Precisions of blocks that cost no less than a more exact one are no choice: they are folded into that."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from nas.engine.costs import ANALYTIC, SubnetCosts
from search_spaces.choices import Dimension
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig


def fold_precisions(
    space: SearchSpace, costs: SubnetCosts, names: Collection[str]
) -> tuple[SearchSpace, dict[str, str]]:
    """The space without precisions that cost the same on the device as a more exact one.

    The full model is compared with all its blocks in one precision or the other. Predicted costs differ where one's
    expected value is outside of the other's interval.

    Args:
        space: The choices.
        costs: Known costs of subnets.
        names: The costs that the search has to do with; others make no difference.

    Returns:
        The space, and what was folded into what.
    """
    known = [name for name in names if name in costs.names]
    choices = [d.choices for d in space.dimensions if d.name == "precision"]
    folded: dict[str, str] = {}
    for precision in dict.fromkeys(str(choice) for row in choices for choice in row):
        exact = {str(choice) for row in choices if precision in row for choice in row[row.index(precision) + 1 :]}
        for other in sorted(exact):
            if not any(_cheaper(space, costs, name, precision, other) for name in known):
                folded[precision] = other
                break
    kept = (_without(dimension, folded) for dimension in space.dimensions)
    return replace(space, dimensions=tuple(d for d in kept if d.name != "precision" or d.choices != ("fp32",))), folded


def _without(dimension: Dimension, folded: Collection[str]) -> Dimension:
    if dimension.name != "precision":
        return dimension
    # A block whose choices are all folded keeps the most exact one.
    left = tuple(choice for choice in dimension.choices if choice not in folded) or dimension.choices[-1:]
    return replace(dimension, choices=left)


def _cheaper(space: SearchSpace, costs: SubnetCosts, name: str, precision: str, exact: str) -> bool:
    """Whether blocks of a precision cost less than those of a more exact one."""
    wholes = [_whole(space, precision), _whole(space, exact)]
    bounds = costs(wholes)[name]
    sign = -1.0 if name == "throughput" else 1.0
    value = sign * bounds.value
    edge = np.minimum(sign * bounds.lower, sign * bounds.upper)
    if name in ANALYTIC:
        return bool(value[0] < value[1])
    return bool(value[0] < edge[1])


def _whole(space: SearchSpace, precision: str) -> SubnetConfig:
    teacher = space.teacher
    return replace(teacher, blocks=tuple(replace(b, precision=precision) for b in teacher.blocks))  # type: ignore[arg-type]
