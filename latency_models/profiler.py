"""The measurement protocol: warm up, interleave, repeat until sure, and never trust a machine to stay as it is."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from latency_models.backends.base import Run
from latency_models.measurement import Measurement, median_interval

__all__ = ["Measurement", "Profiler", "Progress"]

Key = TypeVar("Key", bound=Hashable)
Progress = Callable[[int, int | None, float | None], None]


@dataclass(slots=True)
class _Visits:
    """One model's samples of a chunk: visits to it, each of a few runs in a row."""

    run: Run
    samples: list[list[float]] = field(default_factory=list)
    times: list[list[float]] = field(default_factory=list)
    order: list[list[int]] = field(default_factory=list)
    spent: float = 0.0


class Profiler(Generic[Key]):
    """Measures latencies of many models in one session.

    Candidates are compiled a chunk at a time, so that memory stays bounded. Within a chunk, the visits to each are
    spread over rounds in random order; the reference model is visited in every round, before, between and after. A
    visit is one run that only warms the caches up, then a few timed ones. A candidate is done when the confidence
    interval of its median is narrow enough or its time is spent. Candidates whose neighbouring visits to the reference
    are off its usual level are measured again, later.

    Args:
        warmup_seconds: How long each model runs before its first sample.
        burst: Timed runs per visit.
        min_visits: Visits before a candidate may be done; 5 give a 93 % interval of the median.
        target: Half-width of the median's confidence interval, relative to it, at which a candidate is done.
        confidence: Of that interval.
        max_seconds: Time for one candidate, warm-up not counted; it gets `min_visits` nevertheless.
        chunk_size: Candidates that are compiled at the same time.
        reference_every: Visits to candidates between two visits to the reference.
        drift_threshold: Share by which the reference may be off before a candidate is measured again.
        retries: How often a candidate is measured again.
        seed: Of the random order.
        clock: Gives seconds; tests pass their own.
        wall_clock: Gives seconds since the epoch.
    """

    def __init__(
        self,
        *,
        warmup_seconds: float = 0.2,
        burst: int = 3,
        min_visits: int = 5,
        target: float = 0.01,
        confidence: float = 0.9,
        max_seconds: float = 3.0,
        chunk_size: int = 8,
        reference_every: int = 4,
        drift_threshold: float = 0.03,
        retries: int = 1,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        for name, value in (("burst", burst), ("min_visits", min_visits), ("chunk_size", chunk_size)):
            if value < 1:
                raise ValueError(f"profiler: `{name}` must be >= 1, but got {value}.")
        if reference_every < 1 or retries < 0:
            raise ValueError("profiler: `reference_every` must be >= 1 and `retries` >= 0.")
        if not 0 < target < 1 or not 0 < confidence < 1 or drift_threshold <= 0:
            raise ValueError("profiler: `target`, `confidence` and `drift_threshold` must be shares between 0 and 1.")
        self.warmup_seconds = warmup_seconds
        self.burst = burst
        self.min_visits = min_visits
        self.target = target
        self.confidence = confidence
        self.max_seconds = max_seconds
        self.chunk_size = chunk_size
        self.reference_every = reference_every
        self.drift_threshold = drift_threshold
        self.retries = retries
        self.seed = seed
        self._clock = clock
        self._wall_clock = wall_clock

    def measure(
        self,
        candidates: Iterable[tuple[Key, Callable[[], Run]]],
        reference: Run | None = None,
        *,
        reference_level: float | None = None,
        budget_seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Key, Measurement]]:
        """Measure candidates; each is handed over when its chunk is done, so that a killed session loses one chunk.

        Args:
            candidates: Keys with what compiles them; read lazily, a chunk at a time.
            reference: The reference model, compiled. Without one there is no drift.
            reference_level: What it usually takes in milliseconds, from earlier sessions; found out when None.
            budget_seconds: No chunk begins after so many seconds.
            progress: Called with (done, total or None, seconds left or None).

        Yields:
            Keys with their measurements. A key comes again when it was measured again; the later one counts.
        """
        session = _Session(self, reference, reference_level, self._clock, self._wall_clock)
        total = len(candidates) if isinstance(candidates, Sequence) else None
        started, done = self._clock(), 0
        again: list[tuple[Key, Callable[[], Run]]] = []
        for attempt in range(self.retries + 1):
            source = iter(candidates if attempt == 0 else again)
            again = []
            while chunk := list(islice(source, self.chunk_size)):
                if budget_seconds is not None and self._clock() - started >= budget_seconds:
                    return
                for (key, compile_run), measurement in session.chunk(chunk):
                    yield key, measurement
                    if abs(measurement.drift or 0.0) > self.drift_threshold:
                        again.append((key, compile_run))
                if attempt == 0:
                    done += len(chunk)
                if progress is not None:
                    progress(done, total, _seconds_left(self._clock() - started, done, total, budget_seconds))
            if not again:
                return

    class _Session(Generic[Key]):
    """One call of `Profiler.measure`: the order of samples and the reference's history."""

    def __init__(
        self,
        profiler: Profiler[Key],
        reference: Run | None,
        level: float | None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._profiler = profiler
        self._level = level
        self._clock = clock
        self._wall_clock = wall_clock
        self._generator = np.random.default_rng(profiler.seed)
        self._order = 0
        self._reference = None if reference is None else _Visits(reference)

    def chunk(
        self, chunk: Sequence[tuple[Key, Callable[[], Run]]]
    ) -> list[tuple[tuple[Key, Callable[[], Run]], Measurement]]:
        """Compile, warm up and measure a chunk; see `Profiler`."""
        visits = [_Visits(compile_run()) for _, compile_run in chunk]
        for each in (*visits, *((self._reference,) if self._reference else ())):
            self._warm_up(each.run)
        active = list(visits)
        self._visit_reference()
        while active:
            since = 0
            for index in self._generator.permutation(len(active)):
                if since == self._profiler.reference_every:
                    self._visit_reference()
                    since = 0
                self._visit(active[index])
                since += 1
            self._visit_reference()
            active = [each for each in active if not self._done(each)]
        return [(pair, self._measurement(each)) for pair, each in zip(chunk, visits, strict=True)]

    def _warm_up(self, run: Run) -> None:
        end = self._clock() + self._profiler.warmup_seconds
        run()
        while self._clock() < end:
            run()

    def _visit_reference(self) -> None:
        if self._reference is not None:
            self._visit(self._reference)

    def _visit(self, visits: _Visits) -> None:
        """One run that brings the model's weights back into the caches, then the timed ones."""
        run, clock = visits.run, self._clock
        samples, times, order = [], [], []
        collecting = gc.isenabled()
        gc.disable()
        try:
            entered = clock()
            run()
            for _ in range(self._profiler.burst):
                times.append(self._wall_clock())
                begin = clock()
                run()
                samples.append((clock() - begin) * 1e3)
                order.append(self._order)
                self._order += 1
            visits.spent += clock() - entered
        finally:
            if collecting:
                gc.enable()
        visits.samples.append(samples)
        visits.times.append(times)
        visits.order.append(order)

    def _done(self, visits: _Visits) -> bool:
        """Whether the median is known well enough. Samples of one visit are not independent, so visits count."""
        if len(visits.samples) < self._profiler.min_visits:
            return False
        if visits.spent >= self._profiler.max_seconds:
            return True
        medians = [float(np.median(samples)) for samples in visits.samples]
        low, high = median_interval(medians, self._profiler.confidence)
        return (high - low) / 2 <= self._profiler.target * float(np.median(medians))

    def _measurement(self, visits: _Visits) -> Measurement:
        order = [place for visit in visits.order for place in visit]
        return Measurement(
            samples=tuple(sample for visit in visits.samples for sample in visit),
            times=tuple(time for visit in visits.times for time in visit),
            order=tuple(order),
            reference=tuple(self._reference_at(np.array(order, dtype=np.float64)).tolist()),
            reference_level=self._usual_level(),
        )

    def _reference_at(self, order: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the reference took at places in the order: medians of its visits, interpolated."""
        if self._reference is None:
            return np.zeros(0)
        places = [float(np.mean(visit)) for visit in self._reference.order]
        medians = [float(np.median(visit)) for visit in self._reference.samples]
        return np.interp(order, places, medians)

    def _usual_level(self) -> float | None:
        """The given level, or the median over all visits so far."""
        if self._reference is None or self._level is not None:
            return self._level
        return float(np.median([np.median(visit) for visit in self._reference.samples]))


def _seconds_left(elapsed: float, done: int, total: int | None, budget: float | None) -> float | None:
    """Time left by the pace so far, at most what the budget leaves."""
    by_budget = None if budget is None else max(budget - elapsed, 0.0)
    if total is None or done == 0:
        return by_budget
    by_pace = elapsed / done * (total - done)
    return by_pace if by_budget is None else min(by_pace, by_budget)
