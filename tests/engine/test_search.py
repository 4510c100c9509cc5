from __future__ import annotations

import json
import subprocess
import sys

import optuna
import pytest

from nas.engine.allocate import warm_starts
from nas.engine.candidates import pareto_front, pick, shown
from nas.engine.errors import SearchFailedError, StudyChangedError
from nas.engine.limits import Objectives
from nas.engine.storage import JournalStorage
from search_spaces.subnet import SubnetConfig
from tests.engine.worlds import Formula, tiny_search, tiny_space


def trials_of(search):
    backend = JournalStorage().open(search.directory).backend
    return optuna.load_study(study_name=search.name, storage=backend).get_trials(deepcopy=False)


@pytest.mark.parametrize("name", ["RandomSampler", "TPESampler", "NSGAIISampler"])
def test_any_sampler_finishes_exactly_the_trials_asked_for(tmp_path, name):
    search = tiny_search(tmp_path, 25, sampler=getattr(optuna.samplers, name)(seed=1))
    found = search.run()
    trials = trials_of(search)
    assert [t.state.name for t in trials] == ["COMPLETE"] * 25
    assert len({t.user_attrs["subnet"] for t in trials}) == 25
    assert len(found) == 25


def test_a_finished_study_is_continued_to_the_new_total_and_not_beyond(tmp_path):
    tiny_search(tmp_path, 6).run()
    evaluate = Formula()
    search = tiny_search(tmp_path, 10, evaluate=evaluate)
    search.run()
    assert evaluate.calls == 4
    assert len(trials_of(search)) == 10
    again = Formula()
    tiny_search(tmp_path, 10, evaluate=again).run()
    assert again.calls == 0


def test_the_same_seed_gives_the_same_study(tmp_path):
    first = [c.subnet for c in tiny_search(tmp_path / "a", 12, seed=3).run()]
    second = [c.subnet for c in tiny_search(tmp_path / "b", 12, seed=3).run()]
    other = [c.subnet for c in tiny_search(tmp_path / "c", 12, seed=4).run()]
    assert first == second
    assert first != other


def test_candidates_are_rebuilt_from_json_and_not_from_parameters(tmp_path):
    search = tiny_search(tmp_path, 5)
    for candidate, trial in zip(search.run(), trials_of(search), strict=True):
        assert candidate.subnet == SubnetConfig.from_json(trial.user_attrs["subnet"])
        assert search.objective.space.canonical(candidate.subnet) == candidate.subnet


def test_infeasible_subnets_are_not_evaluated_and_reported_feasible_ones_keep_to_the_bound(tmp_path):
    objectives = Objectives({"cosine": "maximize", "latency_ms": "minimize"}, {"latency_ms": "0.4x"})
    evaluate = Formula()
    search = tiny_search(tmp_path, 30, objectives=objectives, evaluate=evaluate)
    found = search.run()
    bound = search.objective.limits[0].bound
    assert len(found) == 30
    assert all(c.predicted["latency_ms"][2] <= bound for c in found)
    assert all(c.feasible for c in found)


def test_an_infeasible_warm_start_costs_no_evaluation(tmp_path):
    objectives = Objectives({"cosine": "maximize"}, {"latency_ms": "0.4x"})
    evaluate = Formula()
    space = tiny_space()
    from nas.engine.allocate import WarmStart

    search = tiny_search(
        tmp_path, 3, objectives=objectives, evaluate=evaluate, warm_start=[WarmStart("largest", space.largest)]
    )
    search.run()
    first = trials_of(search)[0]
    assert first.state.name == "PRUNED"
    assert first.user_attrs["result"]["outcome"] == "infeasible"
    assert first.constraints["latency_ms"] > 0
    assert evaluate.calls == 2


def test_a_quality_limit_marks_candidates_after_their_evaluation(tmp_path):
    objectives = Objectives({"cosine": "maximize", "latency_ms": "minimize"}, {"cosine": "0.8x"})
    search = tiny_search(tmp_path, 30, objectives=objectives)
    found = search.run()
    bound = search.objective.limits[0].bound
    assert {c.feasible for c in found} == {True, False}
    assert all(c.feasible == (c.metrics["cosine"] >= bound) for c in found)
    assert all(c.feasible for c in pareto_front(found, search.objective.objectives))


def test_a_duplicate_costs_nothing_and_is_recorded_as_such(tmp_path):
    evaluate = Formula()
    space = tiny_space(1, choices={"skip": [False], "heads": [2, 4], "ffn": [64]})
    search = tiny_search(tmp_path, 5, evaluate=evaluate, space=space)
    found = search.run()
    outcomes = [t.user_attrs["result"]["outcome"] for t in trials_of(search)]
    assert evaluate.calls == 2
    assert sorted(outcomes) == ["duplicate"] * 3 + ["evaluated"] * 2
    assert len(found) == 2


def test_the_cache_serves_another_study_of_the_same_context(tmp_path):
    tiny_search(tmp_path, 8, cache=True, name="one").run()
    evaluate = Formula()
    search = tiny_search(tmp_path, 8, cache=True, name="two", evaluate=evaluate)
    search.run()
    assert evaluate.calls == 0
    assert {t.user_attrs["result"]["outcome"] for t in trials_of(search)} == {"cached"}


def test_warm_starts_come_first_and_say_what_they_are(tmp_path):
    space = tiny_space()
    starts = warm_starts(space, tiny_search(tmp_path, 8).objective.costs, uniform=3)
    search = tiny_search(tmp_path, 8, warm_start=lambda: starts)
    found = search.run()
    assert [c.origin for c in found[:2]] == ["largest", "smallest"]
    assert found[0].subnet == space.largest
    assert found[-1].origin == "sampler"


def test_failures_are_recorded_with_their_reason_and_the_search_goes_on(tmp_path):
    formula = Formula()

    def evaluate(subnet, steps):
        metrics = dict(formula(subnet, steps))
        if formula.calls % 4 == 0:
            raise MemoryError("out of memory")
        if formula.calls % 7 == 0:
            return {**metrics, "cosine": float("nan")}
        return metrics

    search = tiny_search(tmp_path, 20, evaluate=evaluate, max_failure_share=0.6)
    search.run()
    failed = [t for t in trials_of(search) if t.state.name == "FAIL"]
    assert len(trials_of(search)) == 20
    assert {t.user_attrs["reason"].split(":")[0] for t in failed} == {"MemoryError", "ValueError"}


def test_too_many_failures_stop_the_search_with_the_commonest_reason(tmp_path):
    def evaluate(subnet, steps):
        raise RuntimeError("the disk of the data set is gone")

    with pytest.raises(SearchFailedError, match="the disk of the data set is gone"):
        tiny_search(tmp_path, 50, evaluate=evaluate).run()


def test_an_evaluation_that_takes_too_long_fails(tmp_path):
    import time

    formula = Formula()

    def evaluate(subnet, steps):
        metrics = formula(subnet, steps)
        if formula.calls == 2:
            ends = time.monotonic() + 30
            while time.monotonic() < ends:
                time.sleep(0.01)
        return metrics

    search = tiny_search(tmp_path, 4, evaluate=evaluate, trial_timeout_s=0.5)
    search.run()
    assert [t.state.name for t in trials_of(search)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "trial_timeout_s" in trials_of(search)[1].user_attrs["reason"]


def test_a_study_of_another_task_is_refused_with_the_difference(tmp_path):
    tiny_search(tmp_path, 3, context={"task": {"name": "texts", "seed": 1}}).run()
    changed = {"task": {"name": "texts", "seed": 2}}
    with pytest.raises(StudyChangedError, match=r"task\.seed: 1 -> 2"):
        tiny_search(tmp_path, 3, context=changed).run()
    new = tiny_search(tmp_path, 3, context=changed, on_change="new")
    new.run()
    assert new.name == "study-2"


def test_a_study_of_another_space_is_refused(tmp_path):
    tiny_search(tmp_path, 3).run()
    with pytest.raises(StudyChangedError, match="space"):
        tiny_search(tmp_path, 3, space=tiny_space(3)).run()


def interrupted(directory, trials, times):
    command = [sys.executable, "-m", "tests.engine.interrupted", str(directory), str(trials), str(times)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_ctrl_c_stops_after_the_running_trial_and_the_study_can_be_continued(tmp_path):
    done = interrupted(tmp_path, 10, 1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"found": 4, "interrupted": True}
    assert len(tiny_search(tmp_path, 10).run()) == 10


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing(tmp_path):
    done = interrupted(tmp_path, 6, 2)
    assert done.returncode == 130, done.stderr
    search = tiny_search(tmp_path, 6)
    assert len(search.run()) == 6
    trials = trials_of(search)
    assert [t.state.name for t in trials].count("COMPLETE") == 6
    retried = [t for t in trials if "retry_of" in t.user_attrs]
    assert retried[0].user_attrs["subnet"] == trials[3].user_attrs["subnet"]


def test_picks_and_the_front(tmp_path):
    search = tiny_search(tmp_path, 40)
    objectives = search.objective.objectives
    front = pareto_front(search.run(), objectives)
    assert front == sorted(front, key=lambda c: c.values["latency_ms"])
    assert pick(front, objectives, "fastest") == front[0]
    assert pick(front, objectives, "smallest").number_of("parameters") == min(c.number_of("parameters") for c in front)
    assert pick(front, objectives, "knee") in front
    middle = front[len(front) // 2].values["latency_ms"]
    assert pick(front, objectives, "best_under", {"latency_ms": middle}) == front[len(front) // 2]
    with pytest.raises(ValueError, match="no candidate keeps"):
        pick(front, objectives, "best_under", {"latency_ms": 0.1})
    with pytest.raises(ValueError, match="knee"):
        pick(front, objectives, "nicest")
    some = shown(front, objectives, 3)
    assert len(some) == min(3, len(front))
    assert (some[0], some[-1]) == (front[0], front[-1])


def test_trackers_hear_of_every_trial(tmp_path):
    heard = []

    class Tracker:
        def trial_finished(self, trial, status):
            heard.append((trial.number, status))

        def search_finished(self, front):
            heard.append(len(front))

    tiny_search(tmp_path, 6, trackers=[Tracker()]).run()
    assert [entry[0] for entry in heard[:-1]] == list(range(6))
    assert heard[-1] >= 1
    volumes = [entry[1].hypervolume for entry in heard[:-1]]
    assert heard[-2][1].finished == 6
    assert volumes[-1] >= volumes[0]
    assert "trials/min" in str(heard[-2][1])


def test_trackers_of_installed_packages_are_loaded_by_name(monkeypatch):
    import importlib.metadata

    from nas.engine.progress import load_trackers

    point = importlib.metadata.EntryPoint("counting", "collections:Counter", "hwnas.trackers")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "hwnas.trackers" else [])
    assert len(load_trackers(["counting"])) == 1
    with pytest.raises(ValueError, match=r"`search.trackers` must name entry points of hwnas.trackers \(counting\)"):
        load_trackers(["mlflow"])


def test_the_live_line_shows_trials_share_and_time_left_also_after_a_continuation(tmp_path):
    import io

    from nas.engine.progress import LiveLine
    from nas.progress import Progress

    tiny_search(tmp_path, 8).run()
    stream, clock = io.StringIO(), iter(range(0, 10_000, 20))
    with Progress("Searching", 10, mode="plain", stream=stream, clock=lambda: float(next(clock))) as bar:
        tiny_search(tmp_path, 10, trackers=[LiveLine(bar)]).run()
        assert bar.done == 10
    said = [line for line in stream.getvalue().splitlines() if "9/10" in line]
    assert len(said) == 1
    for word in ("feasible 100%", "hypervolume", "best cosine", "best latency_ms", "trials/min", "left"):
        assert word in said[0]


def test_watching_tells_of_the_trials_of_others(tmp_path):
    heard = []

    class Tracker:
        def trial_finished(self, trial, status):
            heard.append((trial.number, status.finished))

        def search_finished(self, front):
            heard.append("end")

    def busy(interrupted):
        if not heard:
            tiny_search(tmp_path, 5).run()
        return False

    search = tiny_search(tmp_path, 5, trackers=[Tracker()])
    assert len(search.watch(busy)) == 5
    assert search.complete
    assert heard == [(number, 5) for number in range(5)] + ["end"]


def test_the_context_never_holds_a_password(tmp_path):
    tiny_search(tmp_path, 2, context={"storage": "postgresql://me:secret@host/db"}).run()
    text = (tmp_path / "journal.log").read_text()
    assert "secret" not in text
    assert "me:***@host" in json.loads(text.splitlines()[1])["user_attr"]["context"]
