"""Columns say what the engine says: the same front, the same volume, whatever a trial lacks."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from nas.dashboard.thinning import thin
from nas.dashboard.trials import TrialRow, Trials
from nas.engine.candidates import candidates_of, pareto_front
from nas.engine.limits import Objectives
from nas.engine.pareto import hypervolume, hypervolume_history
from nas.engine.storage import JournalStorage
from tests.dashboard.synthetic import GOALS

OBJECTIVES = Objectives(GOALS)


def stored(folder, name):
    backend = JournalStorage().open(folder).backend
    return optuna.load_study(study_name=name, storage=backend).get_trials(deepcopy=False)


def test_the_front_is_the_engines(root):
    trials = stored(root / "first", "first")
    columns = Trials([TrialRow.from_trial(trial, tuple(GOALS)) for trial in trials], OBJECTIVES)
    expected = [candidate.number for candidate in pareto_front(candidates_of(trials, OBJECTIVES), OBJECTIVES)]
    assert [columns.rows[i].number for i in columns.front] == expected
    assert columns.quality == "cosine"
    assert columns.cost == "latency_ms"
    assert {"cosine", "recall", "latency_ms", "parameters"} <= set(columns.quantities)


def test_only_the_longest_distilled_compete(root):
    trials = stored(root / "first", "first")
    rows = [TrialRow.from_trial(trial, tuple(GOALS)) for trial in trials]
    first = next(i for i, row in enumerate(rows) if row.feasible)
    lifted = [row if i != first else _with_steps(row) for i, row in enumerate(rows)]
    assert Trials(lifted, OBJECTIVES).front.tolist() == [first]


def _with_steps(row):
    from dataclasses import replace

    return replace(row, steps=100)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), max_size=40), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_hypervolume_history_is_the_hypervolume_of_every_beginning(points, chunk):
    losses, reference = np.array(points, dtype=np.float64).reshape(-1, 2), np.array([0.5, 0.5])
    expected = [hypervolume(losses[: i + 1], reference) for i in range(len(losses))]
    np.testing.assert_allclose(hypervolume_history(losses, reference, chunk), expected, atol=1e-12)


@given(st.integers(0, 3000), st.integers(1, 400))
@settings(max_examples=25, deadline=None)
def test_thinning_keeps_at_most_so_many_and_covers_the_whole(count, most):
    generator = np.random.default_rng(count)
    x, y = generator.normal(size=count), generator.normal(size=count)
    kept = thin(x, y, most)
    assert len(kept) <= max(most, 1)
    assert len(set(kept.tolist())) == len(kept)
    assert np.all(np.diff(kept) > 0)
    if count <= most:
        assert len(kept) == count
    elif most >= 100:
        assert len(kept) > most / 4
        assert np.ptp(x[kept]) > 0.6 * np.ptp(x)


def test_identical_points_are_one():
    assert thin(np.zeros(5000), np.zeros(5000)).tolist() == [0]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"subnet": 3, "predicted": "nonsense", "result": [1], "steps": "many", "worker": None},
        {"predicted": {"latency_ms": [1.0]}, "result": {"metrics": {"cosine": "high"}}},
    ],
)
def test_trials_of_other_programs_are_shown_as_far_as_they_go(attributes):
    trial = create_trial(params={"x": 1}, distributions={"x": IntDistribution(0, 3)}, value=0.5, user_attrs=attributes)
    row = TrialRow.from_trial(trial, ("loss",))
    columns = Trials([row], Objectives({"loss": "minimize"}))
    assert row.numbers == {"loss": 0.5}
    assert columns.front.tolist() == [0]


def test_a_failed_trial_has_a_reason_and_an_abandoned_one_does_not_count():
    failed = create_trial(state=TrialState.FAIL, user_attrs={"reason": "out of memory"})
    gone = create_trial(state=TrialState.FAIL)
    columns = Trials(
        [TrialRow.from_trial(trial, ("loss",)) for trial in (failed, gone)], Objectives({"loss": "minimize"})
    )
    assert [row.outcome for row in columns.rows] == ["failed", "abandoned"]
    assert columns.finished.tolist() == [True, False]
    assert columns.front.size == 0
