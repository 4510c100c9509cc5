"""What a step of the supernet's training runs, stage by stage."""

from __future__ import annotations

import pytest

from nas.distillation.schedule import ElasticSchedule, largest_reduced
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny_bert

CHOICES = {"skip": [False, True], "heads": [1, 2, 4], "ffn": [16, 32, 64], "rank_qkv": [0, 8]}


def space(**changes):
    choices = {name: values for name, values in (CHOICES | changes).items() if values is not None}
    return SearchSpace.from_choices(ModelShape.from_model(tiny_bert()), choices)


def varied(found):
    """Names of what differs from the teacher in any block."""
    full = space().teacher.blocks[0]
    names = {"heads", "ffn", "rank_qkv"}
    left = [block for subnet in found for block in subnet.blocks if not block.skipped]
    changed = {name for name in names for block in left if getattr(block, name) != getattr(full, name)}
    return changed | ({"skip"} if any(subnet.depth < 3 for subnet in found) else set())


def test_all_at_once_runs_the_two_ends_and_random_subnets():
    schedule = ElasticSchedule.of(space())
    found = schedule.subnets(0.0, step=3, count=2, seed=1, large=True)
    assert found[0] == space().smallest
    assert found[1] == largest_reduced(space())
    assert len(found) == 4
    assert found == schedule.subnets(0.9, step=3, count=2, seed=1, large=True)
    assert found[2:] != schedule.subnets(0.0, step=4, count=2, seed=1, large=True)[2:]
    assert schedule.subnets(0.0, step=3, count=0, seed=1, large=False) == [space().smallest]


def test_stages_open_one_after_the_other():
    schedule = ElasticSchedule.of(space(), {"width": 1, "depth": 1, "rank": 2})
    assert [(stage.name, stage.end) for stage in schedule.stages] == [("width", 0.25), ("depth", 0.5), ("rank", 1.0)]
    seen = [
        varied([s for step in range(20) for s in schedule.subnets(spent, step, 2, 0, large=True)])
        for spent in (0.0, 0.24, 0.25, 0.5, 0.99)
    ]
    width, depth = {"heads", "ffn"}, {"heads", "ffn", "skip"}
    assert seen == [width, width, depth, {*depth, "rank_qkv"}, {*depth, "rank_qkv"}]


def test_a_stage_without_anything_to_train_gives_its_share_to_the_next():
    schedule = ElasticSchedule.of(space(), ["depth", "width", "rank"])
    assert [stage.name for stage in schedule.stages] == ["depth + width", "rank"]
    assert schedule.stages[0].end == pytest.approx(2 / 3)
    without = ElasticSchedule.of(space(no_ffn=[False, True]), ["depth", "width", "rank"])
    assert [stage.name for stage in without.stages] == ["depth", "width", "rank"]


def test_what_is_closed_has_its_most_expensive_choice_and_not_the_teachers():
    narrow = space(skip=None, heads=[1, 2], ffn=[16, 32])
    stage = ElasticSchedule.of(narrow, ["rank", "width"]).at(0.0)
    assert {(b.heads, b.ffn) for s in stage.space.sample(_Fixed(), 4) for b in s.blocks} == {(2, 32)}


class _Fixed:
    def integers(self, low, high, size):
        import numpy as np

        return np.zeros(size, dtype=np.int64)


@pytest.mark.parametrize(
    ("choices", "changed"),
    [
        ({}, {"heads": 2, "ffn": 32}),
        ({"heads": None, "ffn": None, "skip": None}, {"rank_qkv": 8}),
    ],
)
def test_the_largest_reduced_subnet_is_one_level_below_full(choices, changed):
    block = largest_reduced(space(**choices)).blocks[1]
    full = space().teacher.blocks[1]
    assert {n: getattr(block, n) for n in ("heads", "ffn", "rank_qkv") if getattr(block, n) != getattr(full, n)} == (
        changed
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("depth", r"`train.schedule` must be all, a list such as \[depth, width, rank\]"),
        ([], r"`train.schedule` must be all, a list"),
        (["depth", "height"], "`train.schedule` must name stages among depth, width, rank, but got 'height'"),
        (["width", "width"], "`train.schedule` must name every stage once"),
        ({"width": 0, "depth": 1, "rank": 1}, "`train.schedule.width` must be a share > 0 of the steps, but got 0"),
        ({"width": "much"}, "`train.schedule.width` must be a share > 0 of the steps, but got 'much'"),
        (["width", "rank"], "must open everything that varies in the space, but depth is never opened"),
    ],
)
def test_wrong_schedules_are_refused(option, said):
    with pytest.raises(ValueError, match=said):
        ElasticSchedule.of(space(), option)


def test_a_stage_that_opens_nothing_is_refused():
    with pytest.raises(ValueError, match=r"must name what varies in the space \(width\), but got 'rank'"):
        ElasticSchedule.of(space(skip=None, rank_qkv=None), ["width", "rank"])


def test_a_space_of_the_teachers_own_tensors_is_refused():
    with pytest.raises(ValueError, match="`space` must have something to train"):
        ElasticSchedule.of(space(heads=None, ffn=None, rank_qkv=None))
