"""One session of measuring: compiles a chunk of models, visits them in random order, watches the reference model."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latency_models.backends.base import Run
from latency_models.measurement import Measurement, median_interval

Compile = Callable[[], Run]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the measurement protocol; see `latency_models.profiler.Profiler`, which checks them."""

    warmup_seconds: float = 0.2
    burst: int = 3
    min_visits: int = 5
    target: float = 0.01
    confidence: float = 0.9
    max_seconds: float = 3.0
    reference_every: int = 4
    seed: int = 0


class Session(Protocol):
    """Measures chunks of models, here or in a process of its own."""

    def chunk(self, compile_runs: Sequence[Compile]) -> list[Measurement]:
        """Compile, warm up and measure some models together; one measurement for each, in their order."""

    def close(self) -> None:
        """Free what the session holds."""


@dataclass(slots=True)
class _Visits:
    """One model's samples of a session: visits to it, each of a few runs in a row."""

    run: Run
    samples: list[list[float]] = field(default_factory=list)
    times: list[list[float]] = field(default_factory=list)
    order: list[list[int]] = field(default_factory=list)
    spent: float = 0.0

    def medians(self) -> list[float]:
        """Median of each visit in milliseconds."""
        return [float(np.median(visit)) for visit in self.samples]


class LocalSession:
    """Measures in this process.

    Args:
        settings: The measurement protocol.
        reference: Compiles the reference model; None for none.
        reference_level: What it usually takes in milliseconds, from earlier sessions; found out when None.
        clock: Gives seconds; must be fine-grained.
        wall_clock: Gives seconds since the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        reference: Compile | None = None,
        reference_level: float | None = None,
        *,
        clock: Clock = time.perf_counter,
        wall_clock: Clock = time.time,
    ) -> None:
        self._settings = settings
        self._level = reference_level
        self._clock = clock
        self._wall_clock = wall_clock
        self._generator = np.random.default_rng(settings.seed)
        self._order = 0
        self._reference = None if reference is None else _Visits(reference())

    def chunk(self, compile_runs: Sequence[Compile]) -> list[Measurement]:
        """Rounds of visits in random order until every model is done; see `Session`."""
        visits = [_Visits(compile_run()) for compile_run in compile_runs]
        for each in visits if self._reference is None else (*visits, self._reference):
            self._warm_up(each.run)
        self._visit_reference()
        active = list(visits)
        while active:
            for place, index in enumerate(self._generator.permutation(len(active))):
                if place and place % self._settings.reference_every == 0:
                    self._visit_reference()
                self._visit(active[index])
            self._visit_reference()
            active = [each for each in active if not self._done(each)]
        return [self._measurement(each) for each in visits]

    def close(self) -> None:
        """Let go of the reference model."""
        self._reference = None

    def _warm_up(self, run: Run) -> None:
        end = self._clock() + self._settings.warmup_seconds
        run()
        while self._clock() < end:
            run()

    def _visit_reference(self) -> None:
        if self._reference is not None:
            self._visit(self._reference)

    def _visit(self, visits: _Visits) -> None:
        """One run that brings the model's weights back into the caches, then the timed ones."""
        run, clock, wall_clock = visits.run, self._clock, self._wall_clock
        samples, times = [], []
        collecting = gc.isenabled()
        gc.disable()
        try:
            entered = clock()
            run()
            for _ in range(self._settings.burst):
                times.append(wall_clock())
                begin = clock()
                run()
                samples.append((clock() - begin) * 1e3)
            visits.spent += clock() - entered
        finally:
            if collecting:
                gc.enable()
        visits.samples.append(samples)
        visits.times.append(times)
        visits.order.append(list(range(self._order, self._order + len(samples))))
        self._order += len(samples)

    def _done(self, visits: _Visits) -> bool:
        """Whether the median is known well enough. Samples of one visit are not independent, so visits count."""
        if len(visits.samples) < self._settings.min_visits:
            return False
        if visits.spent >= self._settings.max_seconds:
            return True
        medians = visits.medians()
        low, high = median_interval(medians, self._settings.confidence)
        return (high - low) / 2 <= self._settings.target * float(np.median(medians))

    def _measurement(self, visits: _Visits) -> Measurement:
        order = [place for visit in visits.order for place in visit]
        return Measurement(
            samples=tuple(sample for visit in visits.samples for sample in visit),
            times=tuple(moment for visit in visits.times for moment in visit),
            order=tuple(order),
            reference=tuple(self._reference_at(np.array(order, dtype=np.float64)).tolist()),
            reference_level=self._usual_level(),
        )

    def _reference_at(self, order: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the reference took at places in the order: medians of its visits, interpolated."""
        if self._reference is None:
            return np.zeros(0)
        places = [float(np.mean(visit)) for visit in self._reference.order]
        return np.interp(order, places, self._reference.medians())

    def _usual_level(self) -> float | None:
        """The given level, or the median over all visits so far."""
        if self._reference is None or self._level is not None:
            return self._level
        return float(np.median(self._reference.medians()))
