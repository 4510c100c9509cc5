"""Spaces with too few subnets to learn from: all are measured, and values are looked up."""

from __future__ import annotations

import numpy as np
import pytest

from latency_models.active import ActiveProfiling
from latency_models.measured import MeasuredValues
from latency_models.predictors import SubnetPredictor
from nas.profiling import held_out_subnets
from search_spaces.cost import Workload
from search_spaces.members import members
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny, tiny_bert

SHAPE, WORKLOAD = ModelShape.from_model(tiny_bert()), Workload()


def space(*widths: int, **choices) -> SearchSpace:
    return SearchSpace.from_choices(SHAPE, {"ffn": list(widths), **choices}, per_block=[])


@pytest.mark.parametrize("widths", [(16,), (16, 32), (16, 32, 64), (10, 20, 30, 40, 50, 60, 62)])
def test_all_subnets_of_a_few_and_the_full_model_are_measured_and_nothing_more(widths):
    few = space(*widths)
    active = ActiveProfiling(few, WORKLOAD)
    design = active.propose()
    assert set(design) == {*(members(few) or ()), few.teacher}
    assert active.propose(design, np.ones(len(design))) == []
    assert active.curve == []
    assert held_out_subnets(few, 12, seed=0) == frozenset()


@pytest.mark.parametrize(("count", "judges"), [(8, 0), (9, 1), (12, 4), (30, 12)])
def test_of_a_small_space_no_more_are_held_out_than_can_be_spared(count, judges):
    small = space(*range(64 - count + 1, 65))
    held_out = held_out_subnets(small, 12, seed=0)
    assert len(held_out) == judges
    design = ActiveProfiling(small, WORKLOAD, start=48, exclude=held_out).design()
    assert set(design) | held_out == set(members(small) or ())


def test_every_subnet_of_a_small_space_is_measured_in_the_end():
    small, measured = space(*range(45, 65)), []
    active = ActiveProfiling(small, WORKLOAD, start=8, batch=4, target=1e-9, patience=99)
    while proposed := active.propose(measured, np.linspace(1, 2, len(measured)) if measured else None):
        assert not set(proposed) & set(measured)
        measured += proposed
    assert set(measured) == set(members(small) or ())


def test_values_are_looked_up_with_intervals_of_the_measurements_noise():
    few = [*(members(space(16, 32, precision=["int8", "fp32"])) or ()), space(16).teacher]
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    table = SubnetPredictor(SHAPE, WORKLOAD, MeasuredValues(noise=0.01)).fit(few, values)
    found = table.predict(few[::-1], 0.9)
    assert found.value.tolist() == values[::-1].tolist()
    assert np.allclose((found.upper - found.value) / found.value, 1.645 * 0.01 * np.sqrt(np.pi / 2), rtol=1e-3)
    assert np.all(table.predict(few, 0.5).upper < found.upper[::-1])
    with pytest.raises(ValueError, match="row 0 is none of them"):
        table.predict([space(48).smallest])
    with pytest.raises(ValueError, match="finite and > 0"):
        SubnetPredictor(SHAPE, WORKLOAD, MeasuredValues()).fit(few[:1], np.array([0.0]))


def test_subnets_that_differ_in_shared_keys_alone_are_told_apart():
    shape = ModelShape.from_model(tiny("llama", language_model=True))
    grouped = SearchSpace.from_choices(shape, {"queries_per_group": [1, 2], "heads": [2, 4]}, per_block=[])
    found = members(grouped)
    values = np.arange(1.0, len(found) + 1)
    table = SubnetPredictor(shape, WORKLOAD, MeasuredValues()).fit(found, values)
    assert table.predict(found).value.tolist() == values.tolist()
