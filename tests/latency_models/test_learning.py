"""Learning from few rows: predicting, finding drift, choosing what to measure, borrowing from other devices, saving."""

from __future__ import annotations

import json

import numpy as np
import pytest

from latency_models.active import ActiveProfiling, curve_text
from latency_models.additive import AdditiveModel
from latency_models.drift import detect
from latency_models.features import from_table
from latency_models.informed import InformedModel, shares_of
from latency_models.predictors import PREDICTORS, SubnetPredictor, weights_of
from latency_models.saved import describe, fit_profile, fit_sources, load_predictor, save_predictor
from latency_models.transfer import fit_source, transfer
from search_spaces.cost import Workload, costs
from tests.models import tiny_bert, tiny_space

SPACE = tiny_space(tiny_bert())
WORKLOAD = Workload()


def latency(subnets, seed=0, slope=1e-6, noise=0.003):
    """A device that is a line in MACs and blocks, with a little noise."""
    macs = costs(SPACE.shape, subnets, WORKLOAD).macs.astype(float)
    blocks = np.array([subnet.depth for subnet in subnets], dtype=float)
    return (0.2 + 0.1 * blocks + slope * macs) * np.exp(noise * np.random.default_rng(seed).normal(size=len(macs)))


class Stored:
    """A profile of which only the training data matter."""

    content_hash = "0123456789abcdef"

    def __init__(self, count: int = 30) -> None:
        self.subnets = SPACE.sample(np.random.default_rng(1), count)

    def training_data(self, quantity: str = "latency_ms"):
        assert quantity == "latency_ms"
        return self.subnets, latency(self.subnets)


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_thirty_rows_predict_the_others_with_intervals(name):
    train, test = (SPACE.sample(np.random.default_rng(seed), count) for seed, count in ((2, 30), (3, 60)))
    predictor = SubnetPredictor(SPACE.shape, WORKLOAD, PREDICTORS[name]()).fit(train, latency(train))
    found, truth = predictor.predict(test, 0.9), latency(test, 5)
    assert np.mean(np.abs(found.value / truth - 1)) < 0.05
    assert np.mean((found.lower <= truth) & (truth <= found.upper)) > 0.75
    assert np.all(found.lower <= found.value)


def test_a_shifted_stretch_is_found_and_a_steady_profile_has_none():
    subnets = SPACE.sample(np.random.default_rng(4), 400)
    features, steady = from_table(SPACE.shape, subnets, WORKLOAD), latency(subnets)
    assert not detect(features, steady).segments
    shifted = steady.copy()
    shifted[150:270] *= 1.2
    report = detect(features, shifted)
    assert len(report.segments) == 1
    assert np.median(np.abs(report.steady(shifted) / steady - 1)) < 0.03
    assert str(report)
    json.dumps(report.to_dict())


def test_active_profiling_ends_and_remembers_its_curve():
    active = ActiveProfiling(SPACE, WORKLOAD, start=12, batch=6, candidates=50, make=PREDICTORS["additive"])
    measured: list = []
    for _ in range(8):
        proposed = active.propose(measured, latency(measured) if measured else None)
        if not proposed:
            break
        assert not set(proposed) & set(measured)
        measured += proposed
    assert active.finished
    assert curve_text(active.curve)


def test_subnets_that_judge_are_never_proposed():
    judges = frozenset(SPACE.sample(np.random.default_rng(9), 200))
    active = ActiveProfiling(SPACE, WORKLOAD, start=12, batch=6, candidates=300, target=1e-9, exclude=judges)
    measured = active.propose()
    assert len(measured) == 12
    measured = [*measured, *active.propose(measured, latency(measured))]
    assert not set(measured) & judges


def test_a_continued_profile_stops_where_the_first_run_would_have():
    settings = {"start": 12, "batch": 6, "candidates": 50, "make": PREDICTORS["additive"]}
    first = ActiveProfiling(SPACE, WORKLOAD, **settings)
    measured: list = []
    while proposed := first.propose(measured, latency(measured) if measured else None):
        measured += proposed
    continued = ActiveProfiling(SPACE, WORKLOAD, **settings)
    assert continued.propose(measured, latency(measured)) == []
    assert [point.n for point in continued.curve] == [point.n for point in first.curve]


def test_shares_of_other_devices_make_up_for_missing_rows():
    def fitted(model, count=6):
        few, test = SPACE.sample(np.random.default_rng(10), count), SPACE.sample(np.random.default_rng(11), 80)
        values = model.fit(from_table(SPACE.shape, few, WORKLOAD), latency(few)).predict(
            from_table(SPACE.shape, test, WORKLOAD)
        )[0]
        return float(np.mean(np.abs(values / latency(test, noise=0.0) - 1)))

    old = SPACE.sample(np.random.default_rng(6), 100)
    features = from_table(SPACE.shape, old, WORKLOAD)
    known = [shares_of(features, latency(old, slope=slope)) for slope in (0.5e-6, 2e-6)]
    assert sum(known[0].values()) == pytest.approx(1.0, abs=0.02)
    assert fitted(InformedModel(known)) < fitted(AdditiveModel())


def test_one_row_that_all_models_miss_hides_no_difference():
    good, bad = np.full(20, 0.01), np.full(20, 0.02)
    good[3], bad[3] = 3.0, 2.9
    weights = weights_of({"good": good, "bad": bad}, {})
    assert weights["good"] > 0.95


def test_another_device_helps_a_new_one():
    old = SPACE.sample(np.random.default_rng(6), 60)
    source = fit_source(from_table(SPACE.shape, old, WORKLOAD), latency(old, slope=2e-6))
    few, test = SPACE.sample(np.random.default_rng(7), 10), SPACE.sample(np.random.default_rng(8), 50)
    predictor = transfer({"old": source}).fit(from_table(SPACE.shape, few, WORKLOAD), latency(few))
    found = predictor.predict(from_table(SPACE.shape, test, WORKLOAD))
    assert np.mean(np.abs(found.value / latency(test, 9) - 1)) < 0.1
    with pytest.raises(ValueError, match="at least one other device"):
        transfer({})


def test_a_saved_predictor_is_refitted_and_checked(tmp_path):
    profile, path = Stored(), tmp_path / "predictor.json"
    predictor = fit_profile(profile, SPACE.shape, WORKLOAD, name="additive")
    save_predictor(path, describe(predictor, profile, name="additive"))
    again = load_predictor(path, profile)
    assert np.allclose(again.predict(profile.subnets).value, predictor.predict(profile.subnets).value)
    other = Stored(31)
    other.content_hash = "f" * 16
    with pytest.raises(ValueError, match="profile"):
        load_predictor(path, other)
    borrowed = fit_profile(profile, SPACE.shape, WORKLOAD, sources=fit_sources({"old": other}, SPACE.shape, WORKLOAD))
    save_predictor(path, describe(borrowed, profile, sources={"old": other}))
    again = load_predictor(path, profile, [other])
    assert np.allclose(again.predict(profile.subnets).value, borrowed.predict(profile.subnets).value)
    with pytest.raises(ValueError, match="must hold the profile of old"):
        load_predictor(path, profile)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"JSON|read"):
        load_predictor(path, profile)
    with pytest.raises(ValueError, match="must be one of"):
        fit_profile(profile, SPACE.shape, WORKLOAD, name="magic")
