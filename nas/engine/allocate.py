"""Where to begin a search: the exact solutions of a multiple-choice knapsack, for a ladder of budgets.

Each block takes one variant; quality losses (one-block replacement) and latencies (predicted, one block changed at a
time) are added over blocks. Block by block, only the states survive that no other state beats in both sums (Nemhauser
and Ullmann 1969), so that one pass gives the optimum for every budget at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latency_models.predictors import MIN_ROWS
from nas.engine.costs import SubnetCosts
from nas.engine.pareto import non_dominated
from nas.engine.samplers import Feasible
from nas.engine.sensitivity import Sensitivity
from search_spaces.members import few_members, members
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig

Floats = NDArray[np.float64]
Levels = NDArray[np.int64]
_MAX_VARIANTS = 20_000


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A subnet to evaluate first; origins are ``largest, smallest, uniform, allocated, member``."""

    origin: str
    subnet: SubnetConfig


def allocate(
    space: SearchSpace,
    sensitivity: Sensitivity,
    costs: SubnetCosts,
    cost: str,
    *,
    max_states: int = 20_000,
) -> Levels:
    """All the allocations that are optimal for some budget of the additive cost, cheapest first.

    Args:
        space: The choices.
        sensitivity: Quality losses.
        costs: Known costs of subnets.
        cost: The one to spend, e.g. ``latency_ms``.
        max_states: Where more allocations than this are undominated after a block, those of nearly equal cost are
            merged, the better one kept; below, the result is exact.

    Returns:
        Rows of parameter levels, ``(allocations, dimensions)``; inert choices are at their largest.
    """
    top = np.array([len(d.choices) - 1 for d in space.dimensions], dtype=np.int64)
    blocks = space.shape.num_blocks
    found: list[Levels] = []
    for shared in _shared_rows(space, top):
        groups = [_variants(space, block, shared) for block in range(blocks)]
        base = float(costs(space.table(shared[None, :]))[cost].value[0])
        found.append(_knapsack(space, sensitivity, costs, cost, groups, base, max_states))
    rows = np.unique(np.concatenate(found), axis=0)
    value = costs(space.table(rows))[cost].value
    keep = np.flatnonzero(non_dominated(np.stack([value, sensitivity(rows)], axis=1)))
    ordered: Levels = rows[keep[np.argsort(value[keep], kind="stable")]]
    return ordered


def ladder(
    space: SearchSpace,
    allocations: Levels,
    sensitivity: Sensitivity,
    costs: SubnetCosts,
    cost: str,
    count: int,
    feasible: Feasible | None = None,
) -> list[SubnetConfig]:
    """The best allocation for each of ``count`` budgets, evenly spaced in the cost's logarithm; without repeats.

    The budgets are spent in the costs of whole subnets, not in the sums that the knapsack added up.
    """
    if feasible is not None:
        allocations = allocations[feasible(allocations)]
    if not len(allocations) or count < 1:
        return []
    value = np.maximum(costs(space.table(allocations))[cost].value, 1e-12)
    loss = sensitivity(allocations)
    chosen: dict[int, None] = {}
    for budget in np.geomspace(value.min(), value.max(), count + 1)[1:]:
        able = np.flatnonzero(value <= budget * (1 + 1e-9))
        chosen[int(able[np.argmin(loss[able])])] = None
    return space.decode(allocations[list(chosen)])


def warm_starts(
    space: SearchSpace,
    costs: SubnetCosts,
    *,
    sensitivity: Sensitivity | None = None,
    cost: str = "macs",
    feasible: Feasible | None = None,
    uniform: int = 4,
    allocated: int = 12,
) -> list[WarmStart]:
    """Subnets to begin with, feasible and without repeats: largest, smallest, uniform ones, and the ladder.

    Args:
        space: The choices.
        costs: Known costs of subnets.
        sensitivity: Quality losses; without them there is no ladder.
        cost: What the ladder spends.
        feasible: Which rows of levels keep to the limits.
        uniform: How many uniform subnets, spread by their cost.
        allocated: How many budgets the ladder has.
    """
    same = space.uniform()
    order = np.argsort(costs(same)[cost].value, kind="stable")
    spread = order[np.unique(np.linspace(0, len(order) - 1, min(uniform, len(order))).round().astype(int))]
    starts = [WarmStart("largest", space.largest), WarmStart("smallest", space.smallest)]
    starts += [WarmStart("uniform", same[int(i)]) for i in spread]
    if sensitivity is not None:
        rows = allocate(space, sensitivity, costs, cost)
        found = ladder(space, rows, sensitivity, costs, cost, allocated, feasible)
        starts += [WarmStart("allocated", subnet) for subnet in found]
    unique: dict[SubnetConfig, WarmStart] = {}
    for start in starts:
        unique.setdefault(start.subnet, start)
    kept = list(unique.values())
    if feasible is not None:
        ok = feasible(space.encode([start.subnet for start in kept]))
        kept = [start for start, able in zip(kept, ok.tolist(), strict=True) if able]
    return kept


def all_starts(space: SearchSpace, feasible: Feasible, most: int) -> list[WarmStart]:
    """Every feasible subnet of a space that has at most so many subnets; else none.

    Args:
        space: The choices.
        feasible: Which rows of levels keep to the limits.
        most: How many a search can evaluate.
    """
    found = members(space)
    found = few_members(space, MIN_ROWS) if found is None else found
    if not found or len(found) > most:
        return []
    able = feasible(space.encode(found)).tolist()
    origins = {space.smallest: "smallest", space.largest: "largest"}
    return [WarmStart(origins.get(m, "member"), m) for m, ok in zip(found, able, strict=True) if ok]


def _shared_rows(space: SearchSpace, top: Levels, most: int = 16) -> list[Levels]:
    """The largest subnet under each setting of the dimensions that all blocks share."""
    positions = [i for i, d in enumerate(space.dimensions) if d.block is None and len(d.choices) > 1]
    if not positions:
        return [top]
    grids = np.meshgrid(*(np.arange(top[i] + 1) for i in positions), indexing="ij")
    settings = np.stack([grid.ravel() for grid in grids], axis=1)[::-1]
    if len(settings) > most:
        settings = settings[np.linspace(0, len(settings) - 1, most).round().astype(int)]
    rows = np.repeat(top[None, :], len(settings), axis=0)
    rows[:, positions] = settings
    return list(rows)


def _variants(space: SearchSpace, block: int, base: Levels) -> Levels:
    """Rows in which this block alone takes each of its variants; a skipped block counts once."""
    positions = [i for i, d in enumerate(space.dimensions) if d.block == block]
    choices = [np.arange(len(space.dimensions[i].choices)) for i in positions]
    while np.prod([len(c) for c in choices], dtype=np.float64) > _MAX_VARIANTS:
        widest = int(np.argmax([len(c) for c in choices]))
        thinned = np.unique(np.concatenate((choices[widest][:1], choices[widest][1::2], choices[widest][-1:])))
        choices[widest] = thinned if len(thinned) < len(choices[widest]) else choices[widest][[0, -1]]
    grids = np.meshgrid(*choices, indexing="ij") if positions else []
    rows: Levels = np.repeat(base[None, :], grids[0].size if positions else 1, axis=0)
    for position, grid in zip(positions, grids, strict=True):
        rows[:, position] = grid.ravel()
    for position in positions:
        dimension = space.dimensions[position]
        if dimension.name == "skip":
            skipped = np.array([bool(c) for c in dimension.choices])[rows[:, position]]
            inert = [p for p in positions if p != position]
            for other in inert:
                rows[skipped, other] = base[other]
    return np.unique(rows, axis=0)


def _knapsack(
    space: SearchSpace,
    sensitivity: Sensitivity,
    costs: SubnetCosts,
    cost: str,
    groups: Sequence[Levels],
    base: float,
    max_states: int,
) -> Levels:
    """The undominated sums over one choice per group; see the module."""
    most_skips = space.shape.num_blocks - space.min_blocks
    spent, lost = np.zeros(1), np.zeros(1)
    skips = np.zeros(1, dtype=np.int64)
    rows = groups[0][:1].copy()
    for block, group in enumerate(groups):
        positions = [i for i, d in enumerate(space.dimensions) if d.block == block]
        table = space.table(group)
        skipped = table.skipped[:, block].astype(np.int64)
        price: Floats = costs(table)[cost].value - base
        loss = _own_loss(sensitivity, group, positions)
        best = np.flatnonzero(_undominated(price, loss, skipped))
        variants, price, loss, skipped = group[best], price[best], loss[best], skipped[best]
        spent, lost = (spent[:, None] + price).ravel(), (lost[:, None] + loss).ravel()
        skips = (skips[:, None] + skipped).ravel()
        keep = np.flatnonzero(_undominated(spent, lost, skips) & (skips <= most_skips))
        keep = _merged(keep, spent, lost, skips, max_states)
        state, variant = np.divmod(keep, len(variants))
        spent, lost, skips = spent[keep], lost[keep], skips[keep]
        rows = rows[state]
        rows[:, positions] = variants[variant][:, positions]
    return rows


def _own_loss(sensitivity: Sensitivity, variants: Levels, positions: Sequence[int]) -> Floats:
    loss = np.zeros(len(variants))
    for position in positions:
        loss += sensitivity.losses[position][variants[:, position]]
    return loss


def _undominated(price: Floats, loss: Floats, skips: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Per number of skipped blocks, which states no other beats in both sums.

    A state may not displace one with fewer skips: that one can still skip where this one must not.
    """
    keep = np.zeros(len(price), dtype=bool)
    for count in np.unique(skips):
        at = np.flatnonzero(skips == count)
        keep[at[non_dominated(np.stack([price[at], loss[at]], axis=1))]] = True
    return keep


def _merged(
    keep: NDArray[np.intp], spent: Floats, lost: Floats, skips: NDArray[np.int64], max_states: int
) -> NDArray[np.intp]:
    """At most about ``max_states`` of the kept states: the best of each of so many equal slices of the cost."""
    if len(keep) <= max_states:
        return keep
    each = max(2, max_states // len(np.unique(skips[keep])))
    low, high = spent[keep].min(), spent[keep].max()
    slices = np.floor((spent[keep] - low) / max(high - low, 1e-12) * (each - 1)).astype(np.int64)
    order = np.lexsort((lost[keep], slices, skips[keep]))
    group = np.stack([skips[keep][order], slices[order]], axis=1)
    first = np.concatenate(([True], np.any(group[1:] != group[:-1], axis=1)))
    chosen: NDArray[np.intp] = keep[order[first]]
    return chosen
