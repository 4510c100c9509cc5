"""A predictor is judged by rows that it has not seen, in the order in which they were measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from latency_models.measurement import Measurement
from latency_models.predictors import MIN_ROWS, SubnetPredictor, additive
from latency_models.profile import DeviceProfile
from latency_models.trust import CONFIDENCES, Trust, cross_validate, with_learning
from search_spaces.cost import costs
from tests.latency_models.test_profile import HEADER, SPACE

SUBNETS = list(dict.fromkeys(SPACE.sample(np.random.default_rng(1), 60)))


def profile_of(path, count, *, reference=True, noise=0.01):
    """Rows whose latency follows from the subnet, with a little noise."""
    profile = DeviceProfile.open(path / "profile.jsonl", HEADER)
    generator = np.random.default_rng(0)
    macs = costs(HEADER.shape, SUBNETS[:count], HEADER.workload).macs
    for index, subnet in enumerate(SUBNETS[:count]):
        value = float((1.0 + macs[index] / macs.max()) * (1 + noise * generator.standard_normal()))
        beside = (2.0, 2.0, 2.0) if reference else ()
        level = 2.0 if reference else None
        times = (10.0 * index, 10.0 * index + 1, 10.0 * index + 2)
        profile.append(subnet, Measurement((value,) * 3, times, (1, 2, 3), beside, level))
    return profile


def predictor():
    return SubnetPredictor(HEADER.shape, HEADER.workload, additive())


def test_every_row_is_predicted_by_a_predictor_that_has_not_seen_it(tmp_path):
    profile = profile_of(tmp_path, 40)
    fitted = []

    class Recorded(SubnetPredictor):
        def fit(self, subnets, values, order=None):
            fitted.append(set(subnets))
            return super().fit(subnets, values, order)

        def predict(self, subnets, confidence=0.9):
            assert not fitted[-1] & set(subnets)
            return super().predict(subnets, confidence)

    found = cross_validate(profile, lambda: Recorded(HEADER.shape, HEADER.workload, additive()), repeats=1)
    subnets, measured = profile.training_data()
    assert list(found.subnets) == subnets
    assert found.measured.tolist() == measured.tolist()
    assert found.folds == 5
    assert (found.lower <= found.predicted).all()
    assert (found.predicted <= found.upper).all()
    assert found.mape == pytest.approx(100 * np.abs(found.predicted / measured - 1).mean())
    assert found.mape < 5


def test_wider_bounds_hold_more_and_more_rows_err_less(tmp_path):
    found = cross_validate(profile_of(tmp_path, 40), predictor, repeats=1)
    shares = [share for _, share in found.coverage]
    assert [level for level, _ in found.coverage] == list(CONFIDENCES)
    assert shares == sorted(shares)
    assert [point.rows for point in found.learning] == [8, 12, 16, 24, 32]
    assert all(point.low <= point.mape <= point.high for point in found.learning)
    assert found.learning[-1].mape < found.learning[0].mape


def test_the_reference_is_told_where_there_was_one(tmp_path):
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    own = cross_validate(profile_of(tmp_path / "with", 14), predictor, repeats=1)
    assert own.reference_drift.tolist() == [0.0] * 14
    other = cross_validate(profile_of(tmp_path / "without", 14, reference=False), predictor, repeats=1)
    assert np.isnan(other.reference_drift).all()


def test_few_rows_are_left_out_one_by_one_and_too_few_are_refused(tmp_path):
    (tmp_path / "few").mkdir()
    found = cross_validate(profile_of(tmp_path / "few", MIN_ROWS + 1), predictor)
    assert found.folds == MIN_ROWS + 1
    assert found.drift is None
    assert found.learning == ()
    with pytest.raises(ValueError, match=f"from {MIN_ROWS + 1} measured subnets on, but there are {MIN_ROWS}"):
        cross_validate(profile_of(tmp_path, MIN_ROWS), predictor)


def test_a_kept_judgement_is_read_back_exactly_and_its_curve_can_come_later(tmp_path):
    profile = profile_of(tmp_path, 14)
    whole = cross_validate(profile, predictor, repeats=1)
    quick = cross_validate(profile, predictor, repeats=0)
    assert quick.learning == ()
    assert whole.learning
    assert with_learning(quick, predictor, repeats=1).to_dict() == whole.to_dict()
    again = Trust.from_dict(json.loads(json.dumps(whole.to_dict(), allow_nan=False)))
    assert again.to_dict() == whole.to_dict()
    assert again.subnets == whole.subnets
    assert again.drift.segments == whole.drift.segments
    with pytest.raises(ValueError, match="the data do not fit"):
        Trust.from_dict({"subnets": []})
