"""Small spaces are listed whole."""

from __future__ import annotations

import numpy as np
import pytest

from search_spaces.members import combinations, few_members, members
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny, tiny_bert, tiny_space

SHAPE = ModelShape.from_model(tiny_bert())


def space(**choices) -> SearchSpace:
    return SearchSpace.from_choices(SHAPE, choices, per_block=["heads", "rank_ffn_in", "skip"])


@pytest.mark.parametrize(
    ("choices", "count"),
    [
        ({}, 1),
        ({"ffn": [64]}, 1),
        ({"ffn": [16, 32, 64]}, 3),
        ({"ffn": [32, 64], "precision": ["int8", "fp32"]}, 4),
        ({"heads": [2, 4]}, 8),
        # A rank that saves nothing is no choice.
        ({"rank_ffn_in": [0, 30]}, 1),
        # Something is always left: the first block comes back where all are skipped, which is the same as skipping two.
        ({"skip": [False, True]}, 7),
    ],
)
def test_members_are_all_distinct_subnets(choices, count):
    made = space(**choices)
    found = members(made)
    assert found is not None
    assert len(found) == len(set(found)) == count
    assert all(made.contains(subnet) for subnet in found)
    assert {made.smallest, made.largest} <= set(found)
    assert len(combinations(made)) == made.size
    assert few_members(made, 8) == (found if count < 8 else [])


def test_spaces_with_too_many_combinations_are_not_listed_but_known_to_be_few():
    large = tiny_space(tiny_bert())
    assert members(large) is None
    assert few_members(large, 8) == []
    ranks = space(rank_ffn_in=list(range(23, 33)), heads=[4, 4])
    assert members(ranks, most=10) is None
    assert set(few_members(ranks, 8)) == {ranks.largest}
    assert np.array_equal(combinations(space()), np.zeros((1, 0)))


@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize("switch", ["skip", "no_attention", "no_ffn"])
def test_members_with_a_switch_that_all_blocks_share_are_of_the_space(model_type, switch):
    """Some blocks come back where all were to go, because something has to be there."""
    shape = ModelShape.from_model(tiny(model_type, language_model=model_type == "llama"))
    shared = SearchSpace.from_choices(shape, {switch: [False, True], "ffn": [16, 64]}, per_block=[])
    found = members(shared)
    assert found is not None
    assert shared.decode(shared.encode(found)) == found
