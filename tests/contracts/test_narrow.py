"""Extracted subnets of every model type are cut down to smaller ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from search_spaces.cost import costs
from search_spaces.families import blocks_of
from search_spaces.layout import layouts
from search_spaces.narrow import halfway, narrow
from search_spaces.recalibrate import recalibrate
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig
from tests.contracts.test_families import FAST, MODEL_TYPES, SEEDS, Made, drawn, made
from tests.models import tiny_batches


def cut(it: Made, larger: SubnetConfig, subnet: SubnetConfig) -> Any:
    model = it.supernet.extract(larger)
    narrow(model, it.space.shape, larger, subnet)
    return model


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@settings(FAST)
@given(seed=SEEDS)
def test_what_is_cut_down_is_the_smaller_subnet_but_for_what_it_writes(model_type: str, seed: int) -> None:
    it = made(model_type)
    subnet = drawn(it.space, seed)
    larger = halfway(it.space, subnet)
    assert it.space.contains(larger)
    found, expected = cut(it, larger, subnet), it.supernet.extract(subnet)
    assert {n: p.shape for n, p in found.named_parameters()} == {n: p.shape for n, p in expected.named_parameters()}
    assert torch.isfinite(it.run(found)).all()
    for position, index in enumerate(subnet.kept):
        for path, layout in layouts(it.supernet.family, it.space.shape, subnet.blocks[index]).items():
            before = layouts(it.supernet.family, it.space.shape, larger.blocks[index])[path]
            # What reads the residual stream and is dense has the very same rows; what writes to it was refitted.
            if layout.outputs and not layout.writes and not layout.rank and not before.rank:
                own, other = (blocks_of(model)[position].get_submodule(path) for model in (found, expected))
                assert torch.equal(own.weight, other.weight)
                assert own.bias is None or torch.equal(own.bias, other.bias)


@settings(FAST)
@given(seed=SEEDS)
def test_halfway_lies_between_and_never_has_all_of_a_width(seed: int) -> None:
    it = made("bert")
    subnet = drawn(it.space, seed)
    larger = halfway(it.space, subnet)
    sizes = costs(it.space.shape, [subnet, larger, it.space.teacher]).block_parameters
    assert sizes[0] <= sizes[1] <= sizes[2]
    for own, other in zip(subnet.blocks, larger.blocks, strict=True):
        assert own.heads <= other.heads
        assert own.ffn <= other.ffn
        assert other.heads < it.space.shape.heads or own.heads == other.heads
        assert other.ffn < it.space.shape.ffn or own.ffn == other.ffn


def test_the_cut_model_comes_nearer_to_its_teacher_when_it_is_refitted() -> None:
    it = made("bert")
    subnet = it.space.canonical(SubnetConfig((BlockConfig(1, 1, 16),) * it.space.shape.num_blocks, 32))
    model = cut(it, halfway(it.space, subnet), subnet)
    expected = it.run(it.teacher)
    before = float((it.run(model) - expected).square().mean())
    recalibrate(model, it.teacher, subnet.kept, tiny_batches())
    assert float((it.run(model) - expected).square().mean()) < before


FULL = BlockConfig(4, 4, 64)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"ffn": 48}, {"ffn": 64}, "`ffn` of block 0 must be 1 to 48, but got 64"),
        ({"ffn": 48}, {"ffn": 0}, "`ffn` of block 0 must be 1 to 48, but got 0"),
        ({}, {"ffn": 48}, "`ffn` of block 0 is the teacher's 64, which are in no order"),
        ({"rank_ffn_in": 12}, {}, "`rank_ffn_in` of block 0 must be a part of 12, but got 0"),
    ],
)
def test_what_is_no_part_is_refused(before: dict[str, int], after: dict[str, int], message: str) -> None:
    it = made("bert")
    sides = [SubnetConfig((replace(FULL, **own),) * it.space.shape.num_blocks, 32) for own in (before, after)]
    with pytest.raises(ValueError, match=message):
        narrow(it.supernet.extract(sides[0]), it.space.shape, *sides)
    with pytest.raises(ValueError, match="the same blocks"):
        narrow(it.supernet.extract(sides[0]), it.space.shape, sides[0], replace(sides[0], blocks=(FULL, SKIPPED)))
