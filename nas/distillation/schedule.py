"""Which subnets a supernet's training step runs: what varies is opened all at once, or stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from search_spaces.choices import SWITCHES
from search_spaces.space import SearchSpace
from search_spaces.subnet import RANKS, SubnetConfig

# What a stage opens. Precisions are no part of it: rounding has no gradients.
STAGES: Mapping[str, tuple[str, ...]] = {
    "depth": SWITCHES,
    "width": ("heads", "queries_per_group", "ffn", "hidden_size"),
    "rank": RANKS,
}
ALL = "all"


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    Args:
        name: What it opens beside what is open already, such as ``depth + width``.
        space: The subnets that it trains: dimensions that are not open yet are at their most expensive choice.
        end: Share of the training at which it ends.
    """

    name: str
    space: SearchSpace
    end: float


@dataclass(frozen=True)
class ElasticSchedule:
    """The stages of a supernet's training (Cai et al. 2020, arXiv 1908.09791, shrink progressively; "all" does not).

    Args:
        space: All the subnets.
        stages: In order; the last ends at 1.
    """

    space: SearchSpace
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, space: SearchSpace, option: Any = ALL) -> ElasticSchedule:
        """What ``train.schedule`` says.

        A stage that has nothing to train gives its share to the next one: blocks that are only left out leave others
        that are the teacher's own.

        Args:
            space: All the subnets.
            option: ``all``, a list of stages that share the training evenly, or a mapping of stages to shares.

        Raises:
            ValueError: A stage is unknown, opens nothing, or something is never opened.
        """
        space = space.without("precision")
        shares = _shares(option)
        varying = {name for name, opens in STAGES.items() if _varies(space, opens)}
        if not _trains(space):
            raise ValueError(
                "`space` must have something to train, but all of its subnets are the teacher's own tensors; "
                "vary heads, ffn or a rank."
            )
        if shares is None:
            return cls(space, (Stage(" + ".join(n for n in STAGES if n in varying), space, 1.0),))
        if idle := [name for name in shares if name not in varying]:
            raise ValueError(
                f"`train.schedule` must name what varies in the space ({', '.join(sorted(varying))}), "
                f"but got {idle[0]!r}; leave it out."
            )
        if absent := sorted(varying - set(shares)):
            raise ValueError(
                f"`train.schedule` must open everything that varies in the space, but {absent[0]} is never opened; "
                f"add it, or take a space without."
            )
        return cls(space, _stages(space, shares))

    def at(self, spent: float) -> Stage:
        """The stage after this share of the training."""
        return next((stage for stage in self.stages if spent < stage.end), self.stages[-1])

    def subnets(self, spent: float, step: int, count: int, seed: int, *, large: bool) -> list[SubnetConfig]:
        """What one step trains: the smallest subnet, random ones, and the largest that is not the teacher.

        Args:
            spent: Share of the training that is over.
            step: The step's number: the same step and seed draw the same subnets, whatever was drawn before.
            count: How many random subnets.
            seed: Of the drawing.
            large: Whether the largest subnet but the teacher is among them.
        """
        space = self.at(spent).space
        drawn = space.sample(np.random.default_rng([seed, step]), count)
        ends = [space.smallest, *([largest_reduced(space)] if large else [])]
        return [subnet for subnet in (*ends, *drawn) if subnet != space.teacher]


def largest_reduced(space: SearchSpace) -> SubnetConfig:
    """The largest subnet that is not the teacher everywhere: what guards a training's upper end.

    It is one level below full in every width; where no width varies, in every rank, else without whatever a block may
    lose. The teacher itself needs no guard: it runs its own tensors.
    """
    full = [len(dimension.choices) - 1 for dimension in space.dimensions]
    for names in (("heads", "queries_per_group", "ffn"), ("hidden_size",), RANKS, SWITCHES):
        row = [
            max(top - 1, 0) if dimension.name in names else top
            for top, dimension in zip(full, space.dimensions, strict=True)
        ]
        found = space.decode(np.array([row], dtype=np.int64))[0]
        if found != space.teacher and row != full:
            return found
    return space.largest


def opened(space: SearchSpace, names: Sequence[str]) -> SearchSpace:
    """The space in which only these dimensions vary; all others have their most expensive choice."""
    dimensions = (d if d.name in names else replace(d, choices=d.choices[-1:]) for d in space.dimensions)
    return replace(space, dimensions=tuple(dimensions))


def _stages(space: SearchSpace, shares: Mapping[str, float]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    names: list[str] = []
    fresh: list[str] = []
    total, begun = sum(shares.values()), 0.0
    for name, share in shares.items():
        names += STAGES[name]
        fresh.append(name)
        begun += share / total
        found = opened(space, names)
        if _trains(found):
            stages.append(Stage(" + ".join(fresh), found, begun))
            fresh = []
    # Sums of shares may end a little below 1.
    return (*stages[:-1], replace(stages[-1], space=space, end=1.0, name=" + ".join([stages[-1].name, *fresh])))


def _shares(option: Any) -> dict[str, float] | None:
    """Stage -> share, as they are given; None for all at once."""
    if option == ALL:
        return None
    known = ", ".join(STAGES)
    if not isinstance(option, Mapping | list | tuple) or not option:
        raise ValueError(
            f"`train.schedule` must be all, a list such as [{known}], or a mapping of these to shares, "
            f"but got {option!r}."
        )
    if strange := [name for name in option if name not in STAGES]:
        raise ValueError(f"`train.schedule` must name stages among {known}, but got {strange[0]!r}.")
    if len(set(option)) < len(option):
        raise ValueError(f"`train.schedule` must name every stage once, but got {list(option)}.")
    shares = dict(option) if isinstance(option, Mapping) else dict.fromkeys(option, 1)
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < float("inf"):
            raise ValueError(f"`train.schedule.{name}` must be a share > 0 of the steps, but got {share!r}.")
    return {name: float(share) for name, share in shares.items()}


def _varies(space: SearchSpace, names: Sequence[str]) -> bool:
    return any(d.name in names and len(d.choices) > 1 for d in space.dimensions)


def _trains(space: SearchSpace) -> bool:
    """Whether any subnet runs a tensor that is not the teacher's: leaving out whole blocks alone needs none."""
    kept = replace(
        space,
        dimensions=tuple(replace(d, choices=d.choices[-1:]) if d.name == "skip" else d for d in space.dimensions),
    )
    return kept.smallest.plain != space.teacher
