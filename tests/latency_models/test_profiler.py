"""The measurement protocol, on simulated machines whose truth is known."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_models.backends.base import BackendError
from latency_models.measurement import Measurement, median_interval, speedup
from latency_models.profiler import Profiler


class Machine:
    """A clock that runs advance: by their time, the machine's speed at that moment, and noise."""

    def __init__(self, noise=0.0, speed=lambda now: 1.0, seed=0):
        self.now = 0.0
        self.noise = noise
        self.speed = speed
        self.generator = np.random.default_rng(seed)
        self.log = []
        self.alive = 0
        self.most_alive = 0

    def clock(self):
        return self.now

    def compile(self, name, seconds):
        return SimulatedRun(self, name, seconds)

    def profiler(self, **settings):
        defaults = {"warmup_seconds": 0.0, "chunk_size": 4, "max_seconds": 1e9, "target": 0.02}
        return Profiler(**(defaults | settings), clock=self.clock, wall_clock=self.clock)

    def candidates(self, times):
        return [(name, partial(self.compile, name, seconds)) for name, seconds in times.items()]


class SimulatedRun:
    def __init__(self, machine, name, seconds):
        self.machine, self.name, self.seconds = machine, name, seconds
        machine.alive += 1
        machine.most_alive = max(machine.most_alive, machine.alive)

    def __del__(self):
        self.machine.alive -= 1

    def __call__(self):
        machine = self.machine
        noise = math.exp(machine.noise * machine.generator.normal())
        machine.now += self.seconds * machine.speed(machine.now) * noise
        machine.log.append(self.name)

    def outputs(self):
        return {}


TIMES = {f"subnet{index}": 0.001 * (index + 1) for index in range(10)}


def test_medians_are_found_within_the_target():
    machine = Machine(noise=0.03)
    found = dict(machine.profiler().measure(machine.candidates(TIMES), partial(machine.compile, "reference", 0.005)))
    assert list(found) == list(TIMES)
    for name, measurement in found.items():
        assert measurement.p50 == pytest.approx(1e3 * TIMES[name], rel=0.04)
        assert measurement.n >= 15
        assert abs(measurement.drift) < 0.03
        assert measurement.minimum <= measurement.p50 <= measurement.p90 <= measurement.p99


def test_noisier_candidates_get_more_samples_and_no_more_than_their_time():
    quiet, noisy = Machine(noise=0.001), Machine(noise=0.2)
    samples = []
    for machine in (quiet, noisy):
        found = dict(machine.profiler().measure(machine.candidates(TIMES)))
        samples.append(sum(measurement.n for measurement in found.values()))
    assert samples[0] == 10 * 15
    assert samples[1] > 3 * samples[0]
    capped = Machine(noise=0.2)
    found = dict(capped.profiler(max_seconds=0.0).measure(capped.candidates(TIMES)))
    assert all(measurement.n == 15 for measurement in found.values())


def test_visits_are_interleaved_in_random_order_with_the_reference_between():
    machine = Machine(noise=0.01)
    profiler = machine.profiler(burst=2, reference_every=2, retries=0)
    found = dict(profiler.measure(machine.candidates(TIMES), partial(machine.compile, "reference", 0.005)))
    # A visit is one run for the caches and two timed ones; the first run of each model is its warm-up.
    order = machine.log[5:]
    visits = [order[place] for place in range(0, 3 * 8, 3)]
    assert visits[0] == "reference"
    assert sorted(set(visits)) == ["reference", "subnet0", "subnet1", "subnet2", "subnet3"]
    assert [name == "reference" for name in visits] == [True, False, False, True, False, False, True, False]
    rounds = [[name for name in visits[1:6] if name != "reference"]]
    assert rounds[0] != sorted(rounds[0]) or visits[7] != rounds[0][0]
    orders = [place for measurement in found.values() for place in measurement.order]
    assert len(set(orders)) == len(orders)
    for measurement in found.values():
        assert list(measurement.times) == sorted(measurement.times)
        assert len(measurement.reference) == len(measurement.samples) == len(measurement.times)


def test_no_more_than_a_chunk_is_alive():
    machine = Machine()
    source = ((name, job) for name, job in machine.candidates({f"s{i}": 0.001 for i in range(40)}))
    assert len(dict(machine.profiler().measure(source, partial(machine.compile, "reference", 0.001)))) == 40
    assert machine.most_alive <= 5
    assert machine.alive == 0


def test_what_was_measured_on_a_slowed_machine_is_flagged_and_measured_again():
    # Throttled by 25 % for a while that covers some chunks, but not the end.
    slow = (0.5, 2.5)
    machine = Machine(noise=0.01, speed=lambda now: 1.25 if slow[0] < now < slow[1] else 1.0)
    times = {f"subnet{index}": 0.004 for index in range(24)}
    reference = partial(machine.compile, "reference", 0.004)
    seen = list(machine.profiler(retries=2).measure(machine.candidates(times), reference, reference_level=4.0))
    first = dict(reversed(seen))
    best = {}
    for name, measurement in seen:
        if name not in best or abs(measurement.drift) < abs(best[name].drift):
            best[name] = measurement
    flagged = [name for name, measurement in first.items() if abs(measurement.drift) > 0.03]
    assert len(flagged) >= 4
    assert len(seen) > 24
    assert all(measurement.p50 == pytest.approx(4.0, rel=0.03) for measurement in best.values())
    # Even a drifted row gives the right value in proportion to the reference beside it.
    assert all(measurement.corrected == pytest.approx(4.0, rel=0.03) for _, measurement in seen)


def test_budget_ends_between_chunks_and_progress_tells_the_time_left():
    machine = Machine()
    seen = []
    profiler = machine.profiler(chunk_size=2)
    list(profiler.measure(machine.candidates(TIMES), progress=lambda *state: seen.append(state)))
    assert [state[:2] for state in seen] == [(2, 10), (4, 10), (6, 10), (8, 10), (10, 10)]
    assert seen[-1][2] == 0
    assert all(left > 0 for _, _, left in seen[:-1])
    spent = list(machine.profiler(chunk_size=2).measure(machine.candidates(TIMES), budget_seconds=0.05))
    assert 2 <= len(spent) < 10


def test_a_consumer_that_stops_frees_the_session():
    machine = Machine()
    results = machine.profiler(chunk_size=2).measure(machine.candidates(TIMES), partial(machine.compile, "r", 0.001))
    next(results)
    results.close()
    assert machine.alive == 0


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"burst": 0}, "`burst` must be a whole number >= 1, but got 0"),
        ({"retries": -1}, "`retries` must be a whole number >= 0, but got -1"),
        ({"target": 2}, "`target` must be a share between 0 and 1, but got 2"),
        ({"max_seconds": math.nan}, "`max_seconds` must be >= 0, but got nan"),
    ],
)
def test_settings_are_checked(setting, rule):
    with pytest.raises(ValueError, match=rule):
        Profiler(**setting)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99]))
def test_interval_of_the_median_contains_it(values, confidence):
    low, high = median_interval(values, confidence)
    assert low <= float(np.median(values)) <= high
    wider = median_interval(values, 0.999)
    assert wider[0] <= low
    assert wider[1] >= high


def test_interval_of_the_median_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside = [
        low <= 1.0 <= high
        for low, high in (median_interval(generator.lognormal(sigma=0.3, size=11).tolist(), 0.9) for _ in range(2000))
    ]
    assert 0.9 <= np.mean(inside) < 0.97
    assert median_interval([1, 2, 3, 4], 0.9) == (-math.inf, math.inf)
    assert median_interval([5, 1, 2, 3, 4], 0.9) == (1, 5)


def test_measurements_are_checked():
    with pytest.raises(ValueError, match="at least one sample"):
        Measurement(())
    with pytest.raises(ValueError, match="must be positive numbers, but got -1"):
        Measurement((1.0, -1.0))
    with pytest.raises(ValueError, match="must be as long as the samples, 2, not 1"):
        Measurement((1.0, 2.0), times=(1.0,))
    with pytest.raises(ValueError, match="`reference_level` must be a positive number, but got nan"):
        Measurement((1.0,), reference_level=math.nan)
    assert Measurement((2.0, 4.0)).drift is None
    assert Measurement((2.0, 4.0)).corrected == 3.0


def sleeping_run(seconds):
    return partial(__import__("time").sleep, seconds)


def failing_run():
    raise BackendError("device 'x': gone.")


def dying_run():
    __import__("os")._exit(3)


def test_isolated_measurements_come_from_a_process_of_their_own():
    profiler = Profiler(warmup_seconds=0.0, burst=1, max_seconds=0.0, isolate=True, chunk_size=1)
    jobs = [("short", partial(sleeping_run, 0.001)), ("long", partial(sleeping_run, 0.004))]
    found = dict(profiler.measure(jobs, partial(sleeping_run, 0.002)))
    assert 1.0 <= found["short"].p50 < found["long"].p50
    assert found["long"].order[0] > found["short"].order[-1]


@pytest.mark.parametrize(("job", "text"), [(failing_run, "device 'x': gone"), (dying_run, "exit code 3")])
def test_errors_of_the_other_process_arrive_in_one_line(job, text):
    with pytest.raises(BackendError, match=text):
        list(Profiler(isolate=True, retries=0).measure([("x", job)]))


def test_speed_up_is_the_median_of_paired_ratios():
    samples, reference = (2.0, 4.0, 2.0), (4.0, 8.0, 6.0)
    measured = Measurement(samples, (1.0, 2.0, 3.0), (0, 2, 4), reference, 5.0)
    found = speedup(measured)
    assert found is not None
    assert found.value == 2.0
    assert found.low <= 2.0 <= found.high
    assert found == speedup(measured), "the same seed, the same interval"
    assert speedup(Measurement(samples, (1.0, 2.0, 3.0), (0, 1, 2))) is None
