"""Constraints of every kind, and what is said where nothing keeps to them."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

from nas.engine.costs import Bounds, SubnetCosts
from nas.engine.errors import InfeasibleError
from nas.engine.feasibility import check_feasible, least_violating
from nas.engine.guided_sampler import GuidedSampler
from nas.engine.limits import Limit, Objectives, resolve_limits, worst_violations
from search_spaces.subnet import SubnetTable
from tests.engine.worlds import Formula, LinearLatency, tiny_search, tiny_space


class Energy(LinearLatency):
    """Twice the latency's number, in mJ."""

    def predict(self, subnets, confidence=0.9):
        found = super().predict(subnets, confidence)
        return Bounds(2 * found.value, 2 * found.lower, 2 * found.upper)


class Memory:
    """Known exactly: 10 MB and 0.1 for each neuron."""

    def predict(self, subnets, confidence=0.9):
        table = subnets if isinstance(subnets, SubnetTable) else SubnetTable.from_subnets(subnets)
        value = 10.0 + 0.1 * table.ffn.sum(axis=1)
        return Bounds(value, value, value)


def every_cost(space):
    predictors = {"latency_ms": LinearLatency(), "energy_mj": Energy(), "peak_memory_mb": Memory()}
    return SubnetCosts(space, predictors=predictors)


CONSTRAINTS = {
    "latency_ms": "0.6x",
    "energy_mj": 11.0,
    "peak_memory_mb": "<= 0.7x",
    "throughput": ">= 1.5x",
    "parameters": "0.9x",
    "macs": "0.95x",
    "weight_mb": "0.9x",
    "cosine": ">= 0.7x",
    "recall": 0.2,
}


def limits_of(costs, space, constraints):
    teacher = {name: value for name, (value, _, _) in costs.of(space.teacher).items()}
    objectives = Objectives({"cosine": "maximize", "latency_ms": "minimize"}, constraints)
    return resolve_limits(objectives, teacher, lambda: Formula()(space.teacher, 0))


def test_every_kind_of_constraint_absolute_or_relative():
    space = tiny_space()
    costs = every_cost(space)
    limits = {limit.name: limit for limit in limits_of(costs, space, CONSTRAINTS)}
    teacher = {name: value for name, (value, _, _) in costs.of(space.teacher).items()}
    assert {name for name, limit in limits.items() if limit.predicted} == set(CONSTRAINTS) - {"cosine", "recall"}
    assert limits["latency_ms"].bound == pytest.approx(0.6 * teacher["latency_ms"])
    assert limits["throughput"].bound == pytest.approx(1.5 * teacher["throughput"])
    assert limits["energy_mj"].bound == 11.0
    assert {name for name, limit in limits.items() if not limit.upper} == {"throughput", "cosine", "recall"}
    check_feasible(space, costs, tuple(limits.values()))


@pytest.mark.parametrize("name", ["latency_ms", "energy_mj", "peak_memory_mb", "parameters", "macs", "weight_mb"])
@pytest.mark.parametrize("sampler", [GuidedSampler(), optuna.samplers.NSGAIISampler(seed=0)], ids=["guided", "nsga2"])
def test_hard_constraints_hold_for_all_that_is_evaluated(tmp_path, name, sampler):
    objectives = Objectives({"cosine": "maximize", "macs": "minimize"}, {name: "0.5x"})
    predictors = every_cost(tiny_space()).predictors
    search = tiny_search(tmp_path, 15, sampler=sampler, objectives=objectives, predictors=predictors)
    found = search.run()
    bound = search.objective.limits[0].bound
    assert len(found) == 15
    assert all(candidate.predicted[name][2] <= bound for candidate in found)


def test_nothing_feasible_names_the_binding_constraint_and_the_nearest_subnet():
    space = tiny_space(6)
    costs = every_cost(space)
    smallest = costs.of(space.smallest)
    limits = [
        Limit("latency_ms", smallest["latency_ms"][2] * 0.9, upper=True, predicted=True),
        Limit("parameters", smallest["parameters"][0] * 2, upper=True, predicted=True),
    ]
    with pytest.raises(
        InfeasibleError, match=r"no subnet of the space keeps to latency_ms <= .* together with"
    ) as raised:
        check_feasible(space, costs, limits)
    said = str(raised.value)
    assert f"It would hold from latency_ms <= {smallest['latency_ms'][2]:.4g} on" in said
    assert "loosen `constraints.latency_ms`" in said


def test_a_needle_is_found_where_random_subnets_are_all_infeasible(tmp_path):
    space = tiny_space(12, choices={"skip": [False]})
    costs = every_cost(space)
    bound = costs.of(space.smallest)["latency_ms"][2] * 1.03
    limit = Limit("latency_ms", bound, upper=True, predicted=True)
    counts = np.array([len(d.choices) for d in space.dimensions])

    def violation(rows):
        return worst_violations([limit], costs(space.table(rows)), len(rows))[0]

    generator = np.random.default_rng(0)
    assert violation(generator.integers(0, counts, size=(5000, len(counts)))).min() > 0
    assert violation(least_violating(violation, counts, generator)[:1])[0] <= 0
    check_feasible(space, costs, [limit])
    objectives = Objectives({"cosine": "maximize", "latency_ms": "minimize"}, {"latency_ms": bound})
    for name, sampler in (("guided", GuidedSampler()), ("random", optuna.samplers.RandomSampler(seed=0))):
        search = tiny_search(tmp_path / name, 8, sampler=sampler, objectives=objectives, space=space)
        assert len(search.run()) == 8


def test_constraints_on_metrics_alone_are_not_judged_beforehand():
    space = tiny_space()
    check_feasible(space, every_cost(space), [Limit("cosine", 2.0, upper=False, predicted=False)])
