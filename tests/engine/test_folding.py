"""Precisions that cost the same as a more exact one are no choice."""

from __future__ import annotations

import numpy as np
import pytest

from nas.engine.costs import Bounds, SubnetCosts
from nas.engine.folding import fold_precisions
from search_spaces.subnet import PRECISIONS, SubnetTable
from tests.engine.worlds import tiny_space

CHOICES = {"heads": [2, 4], "precision": ["int4", "int8", "fp32"]}
PER_BLOCK = ("heads", "precision")


class PrecisionLatency:
    """So many milliseconds a block, by its precision, known to a twentieth."""

    def __init__(self, **milliseconds: float) -> None:
        self.milliseconds = np.array([milliseconds.get(name, 9.0) for name in PRECISIONS])

    def predict(self, subnets, confidence=0.9):
        table = subnets if isinstance(subnets, SubnetTable) else SubnetTable.from_subnets(subnets)
        value = self.milliseconds[table.precision].sum(axis=1)
        return Bounds(value, 0.95 * value, 1.05 * value)


def folded(names, per_block=PER_BLOCK, **milliseconds):
    space = tiny_space(2, choices=CHOICES, per_block=per_block)
    costs = SubnetCosts(space, predictors={"latency_ms": PrecisionLatency(**milliseconds)})
    found, folded = fold_precisions(space, costs, names)
    left = {d.choices for d in found.dimensions if d.name == "precision"}
    assert [d for d in found.dimensions if d.name == "heads"] == [d for d in space.dimensions if d.name == "heads"]
    return left, folded


@pytest.mark.parametrize("per_block", [PER_BLOCK, ("heads",)])
def test_cheaper_precisions_stay(per_block):
    left, gone = folded({"latency_ms", "cosine"}, per_block, int4=2.0, int8=4.0, fp32=8.0)
    assert (left, gone) == ({("int4", "int8", "fp32")}, {})


@pytest.mark.parametrize("name", ["latency_ms", "throughput"])
def test_what_is_no_faster_is_folded_into_the_more_exact(name):
    left, gone = folded({name}, int4=7.9, int8=4.0, fp32=8.0)
    assert left == {("int8", "fp32")}
    assert set(gone) == {"int4"}
    assert folded({name}, int4=7.8, int8=8.1, fp32=8.0)[0] == set()


def test_what_is_no_faster_stays_where_it_is_smaller_and_size_counts():
    left, gone = folded({"latency_ms", "weight_mb"}, int4=9.0, int8=8.0, fp32=8.0)
    assert (left, gone) == ({("int4", "int8", "fp32")}, {})


def test_costs_that_do_not_depend_on_precision_make_no_choice_of_it():
    left, gone = folded({"macs", "cosine"}, int4=2.0, int8=4.0, fp32=8.0)
    assert not left
    assert set(gone) == {"int4", "int8"}
