"""Fronts and what they cover, against definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nas.engine.candidates import Candidate, nearest_to_feasible
from nas.engine.pareto import beaten, crowding, domination_ranks, hypervolume, knee, non_dominated, spread
from search_spaces.subnet import BlockConfig, SubnetConfig

POINTS = st.integers(2, 3).flatmap(
    lambda goals: arrays(np.float64, st.tuples(st.integers(1, 12), st.just(goals)), elements=st.integers(0, 6))
)


def dominates(a, b):
    return bool(np.all(a <= b) and np.any(a < b))


@given(losses=POINTS)
@settings(max_examples=80, deadline=None)
def test_the_front_is_what_nobody_dominates(losses):
    keep = non_dominated(losses)
    for index, row in enumerate(losses):
        earlier = any(np.array_equal(row, other) for other in losses[:index])
        assert keep[index] == (not earlier and not any(dominates(other, row) for other in losses))


@given(losses=POINTS)
@settings(max_examples=80, deadline=None)
def test_beaten_rows_have_a_row_of_the_front_at_least_as_good(losses):
    front = losses[: max(1, len(losses) // 2)]
    expected = [any(np.all(other <= row) for other in front) for row in losses]
    assert beaten(losses, front).tolist() == expected


@given(losses=POINTS)
@settings(max_examples=50, deadline=None)
def test_each_rank_is_the_front_of_what_is_left(losses):
    ranks = domination_ranks(losses)
    assert ranks.min() == 0
    for index, row in enumerate(losses):
        above = [int(ranks[i]) for i, other in enumerate(losses) if dominates(other, row)]
        assert ranks[index] == max(above, default=-1) + 1


@given(losses=POINTS)
@settings(max_examples=40, deadline=None)
def test_hypervolume_counts_the_cells_that_are_dominated(losses):
    goals = losses.shape[1]
    cells = np.stack(np.meshgrid(*[np.arange(7)] * goals, indexing="ij"), axis=-1).reshape(-1, goals)
    covered = sum(any(np.all(row <= cell) for row in losses) for cell in cells)
    assert hypervolume(losses, np.full(goals, 7.0)) == pytest.approx(covered)


def test_spread_keeps_the_ends_and_the_knee_is_between():
    losses = np.array([[0.0, 1.0], [0.1, 0.3], [0.2, 0.25], [1.0, 0.0], [0.6, 0.1]])
    assert knee(losses) == 1
    chosen = spread(losses, 3)
    assert {0, 3} <= set(chosen)
    assert len(chosen) == 3
    assert crowding(losses)[[0, 3]].tolist() == [np.inf, np.inf]


def test_where_nothing_keeps_to_the_constraints_the_nearest_is_told():
    subnet = SubnetConfig((BlockConfig(4, 4, 64),), 32)
    found = [
        Candidate(3, subnet, {"cosine": 0.5}, {"cosine": 0.5}, violations={"cosine": 0.75}),
        Candidate(7, subnet, {"cosine": 0.9}, {"cosine": 0.9}, violations={"cosine": 0.55, "ece": 0.1}),
    ]
    assert not any(candidate.feasible for candidate in found)
    assert nearest_to_feasible(found[:1]) == "trial 3 comes nearest, with cosine 0.5 (75% off its limit)"
    assert (
        nearest_to_feasible(found)
        == "trial 7 comes nearest, with cosine 0.9 (55% off its limit), ece (10% off its limit)"
    )
    assert "no trial" in nearest_to_feasible([])
