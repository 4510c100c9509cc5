"""What each choice of each block costs in quality: the loss of the whole model when one block takes one variant.

Layer-wise reconstruction error is not used: summed over blocks it chose worse allocations than uniform ones (measured
on MiniLM). One-block replacement is the score of Puzzle (Bercovich et al. 2024, arXiv 2411.19146).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.engine.objective import Evaluate
from search_spaces.space import SearchSpace

Floats = NDArray[np.float64]
Levels = NDArray[np.int64]


@dataclass(frozen=True)
class Sensitivity:
    """Replacement losses of single choices.

    Args:
        baseline: The largest subnet's metric.
        losses: One array per dimension of the space, ``(choices,)``: how much worse the metric is when that dimension
            alone takes that choice; 0 for the largest. Skipping has its own dimension.
        evaluations: How many evaluations it took.
    """

    baseline: float
    losses: tuple[Floats, ...]
    evaluations: int

    def __call__(self, levels: Levels) -> Floats:
        """Summed losses of rows of parameter levels, ``(rows, dimensions)``; inert choices must be at their largest."""
        total = np.zeros(len(levels))
        for position, table in enumerate(self.losses):
            total += table[levels[:, position]]
        return total


def measure_sensitivity(
    space: SearchSpace,
    evaluate: Evaluate,
    metric: str,
    *,
    maximize: bool = True,
    steps: int = 0,
    max_evaluations: int = 150,
    advance: Callable[[str], None] | None = None,
) -> Sensitivity:
    """Evaluate the model with one dimension of one block changed at a time.

    A block's variants are products of its dimensions, so that all of them together would be thousands; the losses of
    one block's dimensions are added instead, and the search's true evaluations correct what interacts.

    Args:
        space: The choices.
        evaluate: Gives metrics of a subnet after so many steps of distillation.
        metric: The metric that counts.
        maximize: Whether more of it is better.
        steps: Of distillation in each evaluation.
        max_evaluations: A bound: where there are more choices, evenly spread ones are evaluated and the others are
            interpolated between their neighbours.
        advance: Called after each evaluation with what was evaluated; drives a progress line.

    Raises:
        ValueError: The bound is too small for the space, or the evaluation does not give the metric.
    """
    chosen = _levels_to_measure(space, max_evaluations)
    top = np.array([len(d.choices) - 1 for d in space.dimensions], dtype=np.int64)
    sign = 1.0 if maximize else -1.0

    def value(levels: Levels, text: str) -> float:
        metrics = evaluate(space.decode(levels[None, :])[0], steps)
        if metric not in metrics:
            raise ValueError(f"sensitivity: the evaluation gives no {metric!r}; it gives {', '.join(sorted(metrics))}.")
        if advance is not None:
            advance(text)
        return float(metrics[metric])

    baseline = value(top, "largest")
    losses: list[Floats] = []
    for position, levels in enumerate(chosen):
        dimension = space.dimensions[position]
        known = {int(top[position]): 0.0}
        for level in levels:
            row = top.copy()
            row[position] = level
            text = f"{dimension.parameter}={dimension.choices[level]}"
            known[level] = max(0.0, sign * (baseline - value(row, text)))
        at = sorted(known)
        losses.append(np.interp(np.arange(top[position] + 1), at, [known[level] for level in at]))
    return Sensitivity(baseline, tuple(losses), 1 + sum(map(len, chosen)))


def count_evaluations(space: SearchSpace, max_evaluations: int = 150) -> int:
    """How many evaluations `measure_sensitivity` will take."""
    return 1 + sum(map(len, _levels_to_measure(space, max_evaluations)))


def least_evaluations(space: SearchSpace) -> int:
    """The least that `measure_sensitivity` needs: the largest subnet, and one choice of each dimension that varies."""
    return 1 + sum(len(dimension.choices) > 1 for dimension in space.dimensions)


def _levels_to_measure(space: SearchSpace, max_evaluations: int) -> list[list[int]]:
    """Levels of each dimension below its largest, thinned evenly until all of them fit; the cheapest is always in."""
    tops = [len(d.choices) - 1 for d in space.dimensions]
    least = least_evaluations(space)
    if max_evaluations < least:
        raise ValueError(f"`max_evaluations` must be at least {least} for this space, but got {max_evaluations}.")
    for most in _shrinking(max(tops, default=0)):
        chosen = [_evenly(top, most) for top in tops]
        if 1 + sum(map(len, chosen)) <= max_evaluations:
            return chosen
    raise AssertionError("One level a dimension fits, as was checked.")


def _shrinking(most: int) -> Iterator[int]:
    yield from range(max(most, 1), 0, -1)


def _evenly(top: int, count: int) -> list[int]:
    if top <= count:
        return list(range(top))
    return sorted({round(level) for level in np.linspace(0, top - 1, count)} | {0})[:count] if count > 1 else [0]
