"""The guided sampler: better than chance, never twice the same, never beyond a limit, the same after a restart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.engine.candidates import losses_of
from nas.engine.costs import SubnetCosts
from nas.engine.guided import Guide, Observations, chance_to_complete, farthest, offspring
from nas.engine.guided_sampler import GuidedSampler
from nas.engine.landscape import SubnetLandscape
from nas.engine.limits import Objectives
from nas.engine.pareto import hypervolume
from nas.engine.storage import JournalStorage
from tests.engine.worlds import Formula, LinearLatency, tiny_search, tiny_space


def trials_of(search):
    backend = JournalStorage().open(search.directory).backend
    return optuna.load_study(study_name=search.name, storage=backend).get_trials(deepcopy=False)


def volume(search, found):
    losses = losses_of(found, search.objective.objectives)
    return hypervolume(losses, np.array([-0.5, 20.0]))


def test_it_covers_more_than_random_and_nsga2_with_the_same_trials(tmp_path):
    samplers = {
        "guided": GuidedSampler,
        "random": optuna.samplers.RandomSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
    }
    covered = {}
    for name, sampler in samplers.items():
        for seed in range(2):
            search = tiny_search(tmp_path / f"{name}{seed}", 40, sampler=sampler(seed=seed), space=tiny_space(6))
            covered[name] = covered.get(name, 0.0) + volume(search, search.run()) / 2
    assert covered["guided"] > covered["random"]
    assert covered["guided"] > covered["nsga2"]


def test_it_tells_hidden_sizes_apart(tmp_path):
    choices = {"skip": [False], "heads": [2, 4], "ffn": [32, 64], "hidden_size": [16, 32]}
    space, formula = tiny_space(2, choices=choices), Formula()
    teacher = space.teacher
    rows = space.encode([teacher, replace(teacher, hidden_size=16)])
    search = tiny_search(tmp_path, 32, sampler=GuidedSampler(), space=space, evaluate=None)
    described = SubnetLandscape(space, search.objective.costs, [], search.objective.objectives).describe(rows)
    assert described.keys[0] != described.keys[1]
    assert not np.array_equal(described.features[0], described.features[1])

    def evaluate(subnet, steps):
        return {"cosine": formula(subnet, steps)["cosine"] * (0.5 if subnet.hidden_size == 16 else 1.0)}

    found = tiny_search(tmp_path / "study", 24, sampler=GuidedSampler(), space=space, evaluate=evaluate).run()
    proposed = [candidate.subnet.hidden_size for candidate in found]
    assert {*proposed} == {16, 32}
    # Half of the space has the narrower stream, which costs quality and, to this predictor, saves nothing.
    assert np.mean([size == 32 for size in proposed[8:16]]) > 0.6


def test_no_subnet_is_proposed_twice_and_none_beyond_a_limit(tmp_path):
    objectives = Objectives({"cosine": "maximize", "latency_ms": "minimize"}, {"latency_ms": "0.4x"})
    evaluate = Formula()
    search = tiny_search(tmp_path, 30, sampler=GuidedSampler(), objectives=objectives, evaluate=evaluate)
    found = search.run()
    assert evaluate.calls == 30
    assert len({candidate.subnet for candidate in found}) == 30
    assert max(c.predicted["latency_ms"][2] for c in found) <= search.objective.limits[0].bound


def test_an_interrupted_study_goes_on_as_if_it_had_not_been(tmp_path):
    whole = [c.subnet for c in tiny_search(tmp_path / "whole", 16, sampler=GuidedSampler(seed=3)).run()]
    for total in (5, 11, 16):
        parts = [c.subnet for c in tiny_search(tmp_path / "parts", total, sampler=GuidedSampler(seed=3)).run()]
    assert parts == whole
    other = [c.subnet for c in tiny_search(tmp_path / "other", 16, sampler=GuidedSampler(seed=4)).run()]
    assert other != whole


def test_a_metric_with_a_limit_is_learnt(tmp_path):
    objectives = Objectives({"latency_ms": "minimize"}, {"cosine": ">= 0.85"})
    shares = {}
    for name, sampler in (("guided", GuidedSampler()), ("random", optuna.samplers.RandomSampler(seed=0))):
        search = tiny_search(tmp_path / name, 40, sampler=sampler, objectives=objectives, space=tiny_space(6))
        able = [c for c in search.run() if c.feasible]
        shares[name] = min(c.values["latency_ms"] for c in able)
    assert shares["guided"] < shares["random"]


@pytest.mark.parametrize(
    "goals",
    [
        {"cosine": "maximize"},
        {"cosine": "maximize", "recall": "maximize"},
        {"cosine": "maximize", "latency_ms": "minimize", "parameters": "minimize"},
    ],
)
def test_any_number_of_goals(tmp_path, goals):
    search = tiny_search(tmp_path, 20, sampler=GuidedSampler(), objectives=Objectives(goals))
    assert len(search.run()) == 20


def test_blocks_that_share_choices(tmp_path):
    space = tiny_space(4, per_block=("skip", "heads"), choices={"precision": ["int8", "fp32"]})
    search = tiny_search(tmp_path, 20, sampler=GuidedSampler(), space=space)
    assert len({c.subnet for c in search.run()}) == 20


def test_a_small_space_is_gone_through_whole_and_then_repeats(tmp_path):
    space = tiny_space(1, choices={"skip": [False], "heads": [2, 4], "ffn": [32, 48, 64]})
    evaluate = Formula()
    search = tiny_search(tmp_path, 8, sampler=GuidedSampler(startup_trials=3), space=space, evaluate=evaluate)
    assert len(search.run()) == 6
    assert evaluate.calls == 6
    outcomes = [t.user_attrs["result"]["outcome"] for t in trials_of(search)]
    assert outcomes == ["evaluated"] * 6 + ["duplicate"] * 2


def test_what_others_are_evaluating_is_not_proposed_again_and_its_neighbourhood_waits(tmp_path):
    search = tiny_search(tmp_path, 12, sampler=GuidedSampler())
    search.run()
    study = optuna.load_study(
        study_name="study", storage=JournalStorage().open(tmp_path).backend, sampler=search.settings.sampler
    )
    subnets = [search.objective.propose(study.ask()).subnet for _ in range(6)]
    assert len(set(subnets)) == 6
    latencies = search.objective.costs(subnets)["latency_ms"].value
    assert latencies.max() - latencies.min() > 0.5


def test_failed_subnets_are_avoided_but_those_of_dead_workers_are_not(tmp_path):
    search = tiny_search(tmp_path, 10, sampler=GuidedSampler())
    search.run()
    study = optuna.load_study(
        study_name="study", storage=JournalStorage().open(tmp_path).backend, sampler=search.settings.sampler
    )
    first = study.ask()
    lost = search.objective.propose(first).subnet
    study.tell(first, state=optuna.trial.TrialState.FAIL)  # Without a reason: its worker died.
    world = search.settings.sampler._bound
    world.read(study.get_trials(deepcopy=False), besides=-1)
    row = search.objective.space.encode([lost])
    assert len(world.fresh(row).left) == 1
    second = study.ask()
    failed = search.objective.propose(second).subnet
    second.set_user_attr("reason", "MemoryError")
    study.tell(second, state=optuna.trial.TrialState.FAIL)
    world.read(study.get_trials(deepcopy=False), besides=-1)
    assert len(world.fresh(search.objective.space.encode([failed])).left) == 0


def test_longer_distilled_trials_are_not_mixed_with_others(tmp_path):
    search = tiny_search(tmp_path, 10, sampler=GuidedSampler())
    search.run()
    study = optuna.load_study(
        study_name="study", storage=JournalStorage().open(tmp_path).backend, sampler=search.settings.sampler
    )
    first = study.get_trials(deepcopy=False)[0]
    study.enqueue_trial(first.params, user_attrs={"steps": 50})
    promoted = study.ask()
    search.objective.record(promoted, search.objective.measure(search.objective.propose(promoted)))
    study.tell(promoted, [0.5, 3.0])
    world = search.settings.sampler._bound
    world.read(study.get_trials(deepcopy=False), besides=-1)
    assert len(world.observations().losses) == 10


def test_wrong_settings_say_what_is_wrong():
    with pytest.raises(ValueError, match="`startup_trials` must be at least 2"):
        GuidedSampler(startup_trials=1)
    with pytest.raises(ValueError, match="must be bound to a space first"):
        optuna.create_study(sampler=GuidedSampler()).ask({"x": optuna.distributions.IntDistribution(0, 1)})


@given(seed=st.integers(0, 100), counts=st.lists(st.integers(1, 5), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_offspring_stay_within_their_levels_and_near_their_parents(seed, counts):
    generator = np.random.default_rng(seed)
    counts = np.array(counts, dtype=np.int64)
    parents = generator.integers(0, counts, size=(3, len(counts)))
    children = offspring(parents, counts, 40, generator)
    assert children.shape == (40, len(counts))
    assert np.all((children >= 0) & (children < counts))
    inherited = (children[:, None, :] == parents[None, :, :]).any(axis=1)
    assert np.all((~inherited).sum(axis=1) <= 3)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_what_lies_near_failures_is_less_likely_to_complete(seed, failed, completed):
    generator = np.random.default_rng(seed)
    rows, gone, done = (generator.integers(0, 3, size=(count, 12)) for count in (20, failed, completed))
    chances = chance_to_complete(rows, done, gone)
    assert np.all((chances > 0) & (chances <= 1))
    assert np.all(chance_to_complete(rows, done, gone[:0]) == 1)
    assert np.all(chance_to_complete(rows, np.concatenate([done, rows]), gone) >= chances)
    assert np.all(chance_to_complete(rows, done, np.concatenate([gone, rows])) <= chances)
    steps = np.repeat(gone[:1], 13, axis=0)
    steps[np.tri(13, 12, -1, dtype=bool)] += 3
    assert np.all(np.diff(chance_to_complete(steps, done[:0], gone[:1])) >= 0), "farther away it is safer"


def test_many_candidates_are_scored_as_few_are():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(3000, 6))
    quality = rows @ np.array([1.0, -1.0, 0.5, 0.0, 0.0, 0.2])
    losses = np.stack([quality, rows[:, 3]], axis=1)
    guide = Guide([6], [False, True])
    guide.observe(Observations(rows[:30], losses[:30], np.zeros((30, 0)), rows[:0], losses[:0]))
    hidden = np.stack([np.zeros(len(rows)), rows[:, 3]], axis=1)
    everything = guide.score(rows, hidden, np.full(2, 0.5))
    assert guide.best(rows, hidden, generator)[0] == np.argmax(everything)


def test_evaluations_without_a_model_are_spread_over_the_known_costs():
    points = np.array([[3.0], [1.0], [9.0], [5.0]])
    assert farthest(points, points[:0]) == 1
    assert farthest(points, np.array([[1.0]])) == 2
    assert farthest(points, np.array([[1.0], [9.0]])) == 3


def test_a_landscape_lists_each_architecture_of_a_small_space_once():
    space = tiny_space(2, choices={"heads": [2, 4], "ffn": [64]})
    costs = SubnetCosts(space, predictors={"latency_ms": LinearLatency()})
    landscape = SubnetLandscape(space, costs, (), Objectives({"cosine": "maximize", "latency_ms": "minimize"}))
    assert landscape.pool is not None
    subnets = space.decode(landscape.pool)
    assert len(subnets) == len(set(subnets)) == 8
    found = landscape.describe(landscape.pool)
    assert found.features.shape == (8, sum(map(len, landscape.groups)))
    assert found.losses[:, 1].tolist() == costs(subnets)["latency_ms"].value.tolist()
