from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.engine.allocate import allocate, ladder, warm_starts
from nas.engine.costs import SubnetCosts
from nas.engine.limits import Limit
from nas.engine.samplers import Feasible
from nas.engine.sensitivity import Sensitivity, count_evaluations, measure_sensitivity
from tests.engine.worlds import Formula, LinearLatency, tiny_space


def costs_of(space):
    return SubnetCosts(space, predictors={"latency_ms": LinearLatency()})


def every_row(space):
    return np.array(list(itertools.product(*(range(len(d.choices)) for d in space.dimensions))), dtype=np.int64)


@given(seed=st.integers(0, 1000), skip=st.booleans(), min_blocks=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_allocation_is_optimal_for_every_budget(seed, skip, min_blocks):
    choices = {"skip": [True, False] if skip else [False], "heads": [1, 4], "ffn": [16, 32, 64]}
    space = tiny_space(3, choices=choices, min_blocks=min_blocks)
    generator = np.random.default_rng(seed)
    losses = [np.append(generator.random(len(d.choices) - 1), 0.0) for d in space.dimensions]
    sensitivity = Sensitivity(1.0, tuple(losses), 0)
    costs = costs_of(space)
    rows = every_row(space)
    canonical = space.encode(space.decode(rows))
    rows = rows[np.all(rows == canonical, axis=1)]  # Inert choices at their largest, enough blocks kept.
    latency, loss = costs(space.table(rows))["latency_ms"].value, sensitivity(rows)
    found = allocate(space, sensitivity, costs, "latency_ms")
    found_latency, found_loss = costs(space.table(found))["latency_ms"].value, sensitivity(found)
    for budget in np.linspace(latency.min(), latency.max(), 15):
        best = loss[latency <= budget + 1e-9].min()
        assert found_loss[found_latency <= budget + 1e-9].min() == pytest.approx(best)


def test_choices_that_all_blocks_share_are_allocated_too():
    choices = {"skip": [False], "heads": [2, 4], "ffn": [32, 64], "precision": ["int8", "fp32"]}
    space = tiny_space(2, choices=choices, per_block=("heads", "ffn"))
    sensitivity = measure_sensitivity(space, Formula(), "cosine")
    rows = allocate(space, sensitivity, SubnetCosts(space), "weight_mb")
    assert {block.precision for subnet in space.decode(rows) for block in subnet.blocks} == {"int8"}


def test_a_narrower_stream_is_measured_as_one_variant_of_the_model_and_allocated_under():
    space = tiny_space(2, choices={"skip": [False], "heads": [2, 4], "ffn": [32, 64], "hidden_size": [16, 32]})
    formula = Formula()

    def evaluate(subnet, steps):
        return {"cosine": formula(subnet, steps)["cosine"] * (0.9 if subnet.hidden_size == 16 else 1.0)}

    sensitivity = measure_sensitivity(space, evaluate, "cosine")
    at = next(i for i, d in enumerate(space.dimensions) if d.name == "hidden_size")
    assert sensitivity.losses[at].tolist() == pytest.approx([0.1, 0.0])
    assert formula.calls == sensitivity.evaluations == 1 + 1 + 4
    rows = allocate(space, sensitivity, SubnetCosts(space), "parameters")
    assert {subnet.hidden_size for subnet in space.decode(rows)} == {16, 32}
    sizes = SubnetCosts(space)(space.table(rows))["parameters"].value
    assert all(np.diff(sizes) > 0)
    assert all(np.diff(sensitivity(rows)) < 0)


def test_the_ladder_keeps_to_the_limits_and_has_no_repeats():
    space = tiny_space(4)
    costs = costs_of(space)
    sensitivity = measure_sensitivity(space, Formula(), "cosine")
    limit = Limit("latency_ms", 0.6 * costs.of(space.teacher)["latency_ms"][0], upper=True, predicted=True)
    feasible = Feasible(space, costs, [limit])
    rows = allocate(space, sensitivity, costs, "latency_ms")
    found = ladder(space, rows, sensitivity, costs, "latency_ms", 8, feasible)
    assert len(found) == len(set(found)) >= 4
    assert costs(found)["latency_ms"].upper.max() <= limit.bound
    starts = warm_starts(space, costs, sensitivity=sensitivity, cost="latency_ms", feasible=feasible)
    assert len({start.subnet for start in starts}) == len(starts)
    assert "largest" not in {start.origin for start in starts}


def test_allocation_beats_uniform_subnets_of_the_same_latency():
    space = tiny_space(6)
    costs = costs_of(space)
    sensitivity = measure_sensitivity(space, Formula(), "cosine")
    rows = allocate(space, sensitivity, costs, "latency_ms")
    subnets = space.decode(rows)
    latency = costs(subnets)["latency_ms"].value
    quality = np.array([Formula()(subnet, 0)["cosine"] for subnet in subnets])
    for uniform in space.uniform():
        budget = costs([uniform])["latency_ms"].value[0]
        assert quality[latency <= budget + 1e-9].max() >= Formula()(uniform, 0)["cosine"] - 1e-9


def test_merging_states_stays_close_to_the_optimum():
    space = tiny_space(6)
    costs = costs_of(space)
    sensitivity = measure_sensitivity(space, Formula(), "cosine")
    exact = allocate(space, sensitivity, costs, "latency_ms")
    merged = allocate(space, sensitivity, costs, "latency_ms", max_states=300)
    assert len(merged) <= len(exact)
    best = [sensitivity(exact)[costs(space.table(exact))["latency_ms"].value <= b].min() for b in (6.0, 10.0, 14.0)]
    near = [sensitivity(merged)[costs(space.table(merged))["latency_ms"].value <= b].min() for b in (6.0, 10.0, 14.0)]
    assert np.allclose(best, near, rtol=0.05)


def test_sensitivity_keeps_to_its_bound_and_interpolates_the_rest():
    space = tiny_space(4)
    full = measure_sensitivity(space, Formula(), "cosine")
    evaluate = Formula()
    few = measure_sensitivity(space, evaluate, "cosine", max_evaluations=24)
    assert full.evaluations == count_evaluations(space) == 1 + 4 * (1 + 3 + 3)
    assert evaluate.calls == few.evaluations <= 24
    for exact, thin in zip(full.losses, few.losses, strict=True):
        assert thin[0] == pytest.approx(exact[0])
        assert np.all(np.diff(thin) <= 0)
        assert thin[-1] == 0


def test_sensitivity_of_a_metric_to_minimise_has_the_other_sign():
    space = tiny_space(2)
    up = measure_sensitivity(space, Formula(), "cosine")
    down = measure_sensitivity(space, lambda s, k: {"loss": -Formula()(s, k)["cosine"]}, "loss", maximize=False)
    assert all(np.allclose(a, b) for a, b in zip(up.losses, down.losses, strict=True))


def test_sensitivity_says_what_is_wrong():
    space = tiny_space(2)
    with pytest.raises(ValueError, match="gives no 'accuracy'"):
        measure_sensitivity(space, Formula(), "accuracy")
    with pytest.raises(ValueError, match="`max_evaluations` must be at least 7"):
        measure_sensitivity(space, Formula(), "cosine", max_evaluations=3)
