"""Many fidelities: promotion by successive halving over the front, and Optuna's pruners for one goal."""

from __future__ import annotations

import optuna
import pytest

from nas.engine.candidates import pareto_front
from nas.engine.guided_sampler import GuidedSampler
from nas.engine.limits import Objectives
from nas.engine.rungs import Fidelities, best_first
from nas.engine.storage import JournalStorage
from search_spaces.subnet import SubnetConfig
from tests.engine.worlds import Formula, tiny_search


def trials_of(search):
    backend = JournalStorage().open(search.directory).backend
    return optuna.load_study(study_name=search.name, storage=backend).get_trials(deepcopy=False)


def flipped(subnet: SubnetConfig, steps: int) -> dict[str, float]:
    """Without distillation, few heads are good; with it, many."""
    share = sum(block.heads for block in subnet.blocks) / (4 * len(subnet.blocks))
    return {"cosine": 0.5 + 0.4 * (share if steps else 1 - share), "recall": 0.0}


def test_the_best_share_of_every_rung_is_promoted(tmp_path):
    search = tiny_search(tmp_path, 42, sampler=GuidedSampler(), fidelities=Fidelities((0, 10, 40)))
    found = search.run()
    trials = trials_of(search)
    steps = [int(trial.user_attrs.get("steps", 0)) for trial in trials]
    assert len(trials) == 42
    assert steps.count(10) + steps.count(40) > 12
    assert steps.count(0) >= 2 * steps.count(10)
    assert steps.count(10) >= 2 * steps.count(40) >= 8
    front = pareto_front(found, search.objective.objectives)
    assert {candidate.steps for candidate in front} == {40}
    for trial in trials:
        if "promoted_from" in trial.user_attrs:
            below = trials[trial.user_attrs["promoted_from"]]
            assert below.user_attrs["subnet"] == trial.user_attrs["subnet"]
            assert int(below.user_attrs.get("steps", 0)) < trial.user_attrs["steps"]


def test_no_subnet_climbs_a_rung_twice_also_when_the_search_is_continued(tmp_path):
    for total in (7, 8, 20, 33):
        search = tiny_search(tmp_path, total, fidelities=Fidelities((0, 5)))
        search.run()
    trials = trials_of(search)
    climbed = [trial.user_attrs["subnet"] for trial in trials if trial.user_attrs.get("steps") == 5]
    assert len(climbed) == len(set(climbed)) >= 8


def test_every_rung_ranks_its_own_values(tmp_path):
    objectives = Objectives({"cosine": "maximize"})
    search = tiny_search(tmp_path, 60, evaluate=flipped, objectives=objectives, fidelities=Fidelities((0, 5, 20)))
    trials = search.run() and trials_of(search)
    middle = [trial for trial in trials if trial.user_attrs.get("steps") == 5]
    top = [trial for trial in trials if trial.user_attrs.get("steps") == 20]
    # Those on top were the best of the middle rung when they were promoted, not the best of the first.
    for trial in top:
        below = trials[trial.user_attrs["promoted_from"]]
        earlier = [other.values[0] for other in middle if other.number < trial.number]
        assert below.values[0] >= sorted(earlier)[len(earlier) // 2]


def test_trials_that_break_a_limit_come_last(tmp_path):
    objectives = Objectives({"cosine": "maximize", "latency_ms": "minimize"}, {"recall": ">= 0.7"})
    search = tiny_search(tmp_path, 30, objectives=objectives)
    search.run()
    trials = trials_of(search)
    order = best_first(trials, objectives).tolist()
    able = [max(trials[i].constraints.values()) <= 0 for i in order]
    assert able == sorted(able, reverse=True)
    assert any(able)
    assert not all(able)


def test_a_dead_workers_promotion_is_made_again(tmp_path):
    class Dies(Formula):
        def __call__(self, subnet, steps):
            if steps and not self.calls > 1000:
                self.calls = 1001
                raise KeyboardInterrupt
            return super().__call__(subnet, steps)

    with pytest.raises(KeyboardInterrupt):
        tiny_search(tmp_path, 12, evaluate=Dies(), fidelities=Fidelities((0, 5))).run()
    search = tiny_search(tmp_path, 12, fidelities=Fidelities((0, 5)))
    search.run()
    trials = trials_of(search)
    lost = next(trial for trial in trials if trial.state.name == "FAIL")
    again = next(trial for trial in trials if trial.user_attrs.get("retry_of") == lost.number)
    assert again.user_attrs["subnet"] == lost.user_attrs["subnet"]
    assert again.user_attrs["steps"] == 5
    assert sum(trial.state.name == "COMPLETE" for trial in trials) == 12


def test_a_pruner_ends_trials_of_one_goal_rung_by_rung(tmp_path):
    evaluate = Formula()
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=0)
    fidelities = Fidelities((0, 5, 20), pruner=pruner)
    objectives = Objectives({"cosine": "maximize"})
    search = tiny_search(tmp_path, 24, evaluate=evaluate, objectives=objectives, fidelities=fidelities)
    found = search.run()
    trials = trials_of(search)
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(trials) == 24
    assert pruned
    assert all(trial.user_attrs["result"]["outcome"] == "pruned" for trial in pruned)
    assert evaluate.calls < 3 * 24
    assert {candidate.steps for candidate in found} == {20}


def test_wrong_fidelities_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"`search\.rungs` must be rising"):
        Fidelities((0, 10, 10))
    with pytest.raises(ValueError, match=r"`search\.reduction_factor` must be at least 2"):
        Fidelities((0, 10), reduction_factor=1)
    with pytest.raises(ValueError, match="use `rungs`"):
        tiny_search(tmp_path, 3, fidelities=Fidelities(pruner=optuna.pruners.MedianPruner()))
