"""Filling a profile: the first design, then the subnets that the predictor is least certain of, until it is good."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_models.active import ActiveProfiling, LearningPoint
from latency_models.predictors import MIN_ROWS
from nas.workbench import Workbench
from search_spaces.members import few_members, members
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from latency_models.meters import EnergyMeter
    from latency_models.profile import DeviceProfile, Header
    from latency_models.profiler import Profiler
    from latency_models.session import Session
    from latency_models.subnet_compiler import SubnetCompiler
    from nas.progress import Progress

METERS = ("peak_memory_mb", "energy_mj")
MIN_SOURCE_ROWS = 20
_SAME = ("workload", "space", "shape", "teacher", "unit")


@dataclass
class Profiling:
    """Measures what a profile lacks.

    Args:
        bench: Settings, space and progress.
        profile: The file, open.
        compiler: Makes subnets run on the device.
        active: Chooses what to measure; its `exclude` are the subnets that judge the predictor.
        profiler: The measurement protocol.
        deadline: Moment of `time.monotonic` after which nothing begins; None for no limit.
    """

    bench: Workbench
    profile: DeviceProfile
    compiler: SubnetCompiler
    active: ActiveProfiling
    profiler: Profiler
    deadline: float | None = None
    energy: EnergyMeter | None = field(default=None, init=False)

    def run(self) -> None:
        """Measure until the predictor is good, its error stops falling, or rows or time are spent."""
        settings = self.bench.config["profile"]
        most = int(settings["num_subnets"])
        if few := few_members(self.bench.space, MIN_ROWS):
            self.bench.say(f"The space has {len(few)} subnets: all of them are measured, and nothing is predicted.")
            most = len(few) + 1  # The full model, too: limits may be shares of its costs.
        judges = self.profile.missing(sorted(self.active.exclude, key=SubnetConfig.to_json))
        self.energy = _energy_meter(self.bench) if "energy_mj" in settings["meters"] else None
        todo = judges + self.profile.missing(self._propose(most))
        if not todo:
            return
        if len(self.profile):
            there = self.profile.latest()
            broken = len({row.subnet for row in self.profile.rows} - set(there))
            left = f"; {broken} that a busy machine had more than halved in speed do not count" if broken else ""
            self.bench.say(f"Continuing the profile {self.profile.path}: {len(there)} subnets are there{left}.")
        reference = self._job(self.bench.space.teacher)
        total = most + len(self.active.exclude) - len(self.profile.latest())
        with self.bench.progress(f"Profiling {self.bench.device.name}", max(total, len(todo))) as bar:
            session = self.profiler.session(reference, self.profile.reference_level)
            try:
                while todo and not self.late:
                    self._measure(self._shuffled(todo), session, bar)
                    todo = self.profile.missing(self._propose(most))
            finally:
                session.close()

    def _propose(self, most: int) -> list[SubnetConfig]:
        """What to measure next, as far as the number of rows allows."""
        known, values = training_rows(self.profile, self.active.exclude)
        if self.active.curve and len(known) >= most:
            return []
        # The last round is asked too: its error belongs to the learning curve.
        return self.active.propose(known, values if known else None)[: max(most - len(known), 0)]

    def _measure(self, subnets: Sequence[SubnetConfig], session: Session, bar: Progress) -> None:
        budget = None if self.deadline is None else self.deadline - time.monotonic()
        # Compiled or even made a chunk at a time: the graphs of all would fill the memory.
        jobs = ((subnet, self._job(subnet)) for subnet in subnets)
        seen: dict[SubnetConfig, dict[str, float]] = {}
        for subnet, measurement in self.profiler.measure(jobs, budget_seconds=budget, session=session):
            again = subnet in seen
            if not again:
                seen[subnet] = self._meters(subnet)
            self.profile.append(subnet, measurement, seen[subnet])
            errors = [point.error for point in self.active.curve]
            best = f", best error {min(errors):.1%}" if errors else ""
            bar.advance(0 if again else 1, text=f"{measurement.p50:.3g} ms{best}")

    def _job(self, subnet: SubnetConfig) -> Callable[[], Any]:
        return self.compiler.isolated_job(subnet) if self.profiler.isolate else self.compiler.job(subnet)

    def _meters(self, subnet: SubnetConfig) -> dict[str, float]:
        """Further quantities of a subnet, those that were asked for."""
        from latency_models.meters import measure_energy, peak_memory_mb

        found = {}
        if "peak_memory_mb" in self.bench.config["profile"]["meters"]:
            with TemporaryDirectory() as folder:
                found["peak_memory_mb"] = peak_memory_mb(self.compiler.file_job(subnet, Path(folder) / "subnet.onnx"))
        if self.energy is not None:
            found["energy_mj"] = measure_energy(self.compiler.compile(subnet), self.energy).millijoules
        return found

    def _shuffled(self, subnets: list[SubnetConfig]) -> list[SubnetConfig]:
        """In random order, so that no kind of subnet meets another state of the machine than the rest."""
        order = np.random.default_rng([self.bench.seed, len(self.profile)]).permutation(len(subnets))
        return [subnets[index] for index in order]

    @property
    def late(self) -> bool:
        """Whether the time is spent."""
        return self.deadline is not None and time.monotonic() >= self.deadline


def training_rows(
    profile: DeviceProfile, judges: frozenset[SubnetConfig], quantity: str = "latency_ms"
) -> tuple[list[SubnetConfig], Any]:
    """The rows that a predictor may learn from, in measurement order: all but the judges'."""
    if not len(profile):
        return [], np.zeros(0)
    subnets, values = profile.training_data(quantity)
    kept = [index for index, subnet in enumerate(subnets) if subnet not in judges]
    return [subnets[index] for index in kept], values[kept]


def held_out_subnets(space: SearchSpace, count: int, seed: int) -> frozenset[SubnetConfig]:
    """Random subnets to judge a predictor on, from which it never learns; not the extremes: designs need those.

    Of a small space fewer, as many as leave enough to learn from.
    """
    every = members(space)
    if every is not None:
        count = max(0, min(count, len(every) - MIN_ROWS))
    drawn = space.sample(np.random.default_rng([seed, 1]), 20 * count)
    extremes = {space.teacher, space.largest, space.smallest}
    chosen = [subnet for subnet in dict.fromkeys(drawn) if subnet not in extremes]
    return frozenset(chosen[:count])


def sibling_profiles(path: Path, header: Header) -> list[DeviceProfile]:
    """The profiles beside this one that other devices have of the same teacher, space and workload."""
    from latency_models.profile import DeviceProfile, ProfileError

    found = []
    for other in sorted(path.parent.glob("*.jsonl")):
        if other == path:
            continue
        try:
            profile = DeviceProfile.read(other)
        except ProfileError:
            # It may be of another version; only a profile that is asked for must be readable.
            continue
        same = all(getattr(profile.header, name) == getattr(header, name) for name in _SAME)
        if same and len(profile.latest()) >= MIN_SOURCE_ROWS:
            found.append(profile)
    return found


def remembered(profile: DeviceProfile, settings: dict[str, Any]) -> list[LearningPoint] | None:
    """The learning curve of a profile that was finished under these settings and has not changed since, or None."""
    path = profile.path.with_suffix(".curve.json")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["profile"] != profile.content_hash or data["settings"] != settings:
            return None
        return [LearningPoint(int(point["n"]), float(point["error"])) for point in data["curve"]]
    except (OSError, ValueError, KeyError, TypeError):
        # It only saves time: whatever is wrong with it, the rows tell the same.
        return None


def remember(profile: DeviceProfile, settings: dict[str, Any], curve: Sequence[LearningPoint]) -> None:
    """Keep the learning curve of a finished profile beside it."""
    data = {"profile": profile.content_hash, "settings": settings, "curve": [asdict(point) for point in curve]}
    path = profile.path.with_suffix(".curve.json")
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _energy_meter(bench: Workbench) -> EnergyMeter | None:
    from latency_models.meters import find_energy_meter

    meter = find_energy_meter(bench.device)
    if meter is None:
        bench.say("No energy: this machine has no counter that may be read.")
    return meter
