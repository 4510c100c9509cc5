"""A search on a space with a trial for each of its subnets evaluates them all, and ends."""

from __future__ import annotations

import pytest

from nas.engine.allocate import all_starts
from nas.engine.costs import SubnetCosts
from nas.engine.guided_sampler import GuidedSampler
from nas.engine.limits import Limit, Objectives
from nas.engine.objective import Objective
from nas.engine.samplers import Feasible, bind
from nas.engine.search import Search
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny_bert

SHAPE = ModelShape.from_model(tiny_bert())


@pytest.mark.parametrize(
    ("choices", "count"), [({}, 1), ({"ffn": [32]}, 1), ({"ffn": [32, 64], "precision": ["int8", "fp32"]}, 4)]
)
def test_all_subnets_of_a_small_space_are_evaluated(tmp_path, choices, count):
    space = SearchSpace.from_choices(SHAPE, choices, per_block=[])
    costs, goals = SubnetCosts(space), Objectives({"acc": "maximize", "macs": "minimize"})
    starts = all_starts(space, Feasible(space, costs, ()), 60)
    assert len(starts) == count

    def evaluate(subnet, _):
        return {"acc": float(sum(block.ffn for block in subnet.blocks))}

    sampler = bind(GuidedSampler(), space, costs, (), goals)
    objective = Objective(space, costs, evaluate, goals)
    found = Search(tmp_path, "small", objective, sampler, count, warm_start=starts).run()
    assert {candidate.subnet for candidate in found} == {start.subnet for start in starts}


def test_only_feasible_ones_count_and_only_where_there_are_trials_enough():
    space = SearchSpace.from_choices(SHAPE, {"ffn": [16, 32, 64]}, per_block=[])
    costs = SubnetCosts(space)
    middle = costs.of(all_starts(space, Feasible(space, costs, ()), 3)[1].subnet)
    limit = Limit("macs", middle["macs"][0], upper=True, predicted=True)
    assert [s.origin for s in all_starts(space, Feasible(space, costs, (limit,)), 3)] == ["smallest", "member"]
    assert all_starts(space, Feasible(space, costs, ()), 2) == []
