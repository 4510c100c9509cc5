"""Whether constraints leave anything of a space, and what is nearest where they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.engine.costs import SubnetCosts
from nas.engine.errors import InfeasibleError
from nas.engine.guided import offspring
from nas.engine.limits import Limit, worst_violations
from search_spaces.space import SearchSpace

Floats = NDArray[np.float64]
Levels = NDArray[np.int64]


def least_violating(
    violation: Callable[[Levels], Floats],
    counts: Levels,
    generator: np.random.Generator,
    *,
    start: Levels | None = None,
    number: int = 400,
    rounds: int = 30,
) -> Levels:
    """Rows of levels that break known limits least, best first: bred from the best of random ones until some hold.

    Args:
        violation: ``(rows,)`` for ``(rows, parameters)``; 0 or less where all limits hold.
        counts: ``(parameters,)`` how many levels each has.
        generator: Where chance comes from.
        start: Rows to look at beside random ones.
        number: How many rows are looked at in a round.
        rounds: How many rounds at most.
    """
    rows: Levels = generator.integers(0, counts, size=(number, len(counts)))
    if start is not None:
        rows = np.concatenate([start, rows])
    broken = violation(rows)
    for _ in range(rounds):
        best = np.argsort(broken, kind="stable")[:20]
        rows, broken = rows[best], broken[best]
        if broken[0] <= 0:
            break
        children = offspring(rows, counts, number, generator)
        rows, broken = np.concatenate([rows, children]), np.concatenate([broken, violation(children)])
    order = np.argsort(broken, kind="stable")
    ordered: Levels = rows[order]
    return ordered


def check_feasible(space: SearchSpace, costs: SubnetCosts, limits: Sequence[Limit], seed: int = 0) -> None:
    """Refuse constraints that nothing in the space keeps to.

    Args:
        space: The space.
        costs: Known costs.
        limits: The constraints; those on metrics are not known before an evaluation, and are left out.
        seed: Of the random subnets that are looked at.

    Raises:
        InfeasibleError: Names the constraint that binds, the nearest subnet's costs, and from where on it would hold.
    """
    known = [limit for limit in limits if limit.predicted]
    if not known:
        return
    counts: Levels = np.array([len(d.choices) for d in space.dimensions], dtype=np.int64)
    generator = np.random.default_rng(seed)

    def violation(rows: Levels) -> Floats:
        return worst_violations(known, costs(space.table(rows)), len(rows))[0]

    ends = space.encode([space.smallest, space.largest])
    nearest = least_violating(violation, counts, generator, start=ends, number=1000)[:1]
    found = costs(space.table(nearest))
    worst, binding = worst_violations(known, found, 1)
    if worst[0] <= 0:
        return
    limit = known[int(binding[0])]
    side = found[limit.name].upper[0] if limit.upper else found[limit.name].lower[0]
    has = ", ".join(
        _interval(k.name, found[k.name].value[0], found[k.name].lower[0], found[k.name].upper[0]) for k in known
    )
    others = f" together with {', '.join(str(k) for k in known if k is not limit)}" if len(known) > 1 else ""
    raise InfeasibleError(
        f"constraints: no subnet of the space keeps to {limit}{others}; the nearest has {has}. It would hold from "
        f"{limit.name} {'<=' if limit.upper else '>='} {side:.4g} on: loosen `constraints.{limit.name}` or give the "
        "space smaller choices."
    )


def _interval(name: str, value: float, lower: float, upper: float) -> str:
    return f"{name} {value:.4g}" + (f" [{lower:.4g}, {upper:.4g}]" if upper > lower else "")
