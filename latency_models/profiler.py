"""The measurement protocol: warm up, interleave, repeat until sure, and never trust a machine to stay as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from latency_models.measurement import Measurement
from latency_models.session import Clock, Compile, LocalSession, Session, Settings

__all__ = ["Measurement", "Profiler", "Progress"]

Key = TypeVar("Key", bound=Hashable)
# Candidates done, candidates in all and seconds left; the last two may be unknown.
Progress = Callable[[int, int | None, float | None], None]


class Profiler:
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
        isolate: Measure in a process of its own; candidates must then be picklable.
        seed: Of the random order.
        clock: Gives seconds; tests pass their own. Not used inside an isolated process.
        wall_clock: Gives seconds since the epoch; likewise.

    Raises:
        ValueError: A setting breaks its rule.
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
        isolate: bool = False,
        seed: int = 0,
        clock: Clock = time.perf_counter,
        wall_clock: Clock = time.time,
    ) -> None:
        counts = {
            "burst": burst,
            "min_visits": min_visits,
            "chunk_size": chunk_size,
            "reference_every": reference_every,
        }
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"profiler: `{name}` must be a whole number >= 1, but got {count!r}.")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"profiler: `retries` must be a whole number >= 0, but got {retries!r}.")
        shares = {"target": target, "confidence": confidence, "drift_threshold": drift_threshold}
        for name, share in shares.items():
            if not 0 < share < 1:
                raise ValueError(f"profiler: `{name}` must be a share between 0 and 1, but got {share!r}.")
        for name, seconds in {"warmup_seconds": warmup_seconds, "max_seconds": max_seconds}.items():
            if not seconds >= 0:
                raise ValueError(f"profiler: `{name}` must be >= 0, but got {seconds!r}.")
        self.settings = Settings(
            warmup_seconds, burst, min_visits, target, confidence, max_seconds, reference_every, seed
        )
        self.chunk_size = chunk_size
        self.drift_threshold = drift_threshold
        self.retries = retries
        self.isolate = isolate
        self._clock = clock
        self._wall_clock = wall_clock

    def measure(
        self,
        candidates: Iterable[tuple[Key, Compile]],
        reference: Compile | None = None,
        *,
        reference_level: float | None = None,
        budget_seconds: float | None = None,
        progress: Progress | None = None,
        session: Session | None = None,
    ) -> Iterator[tuple[Key, Measurement]]:
        """Measure candidates; each is handed over when its chunk is done, so that a killed session loses one chunk.

        Args:
            candidates: Keys with what compiles them; read lazily, a chunk at a time.
            reference: Compiles the reference model. Without one there is no drift.
            reference_level: What it usually takes in milliseconds, from earlier sessions; found out when None.
            budget_seconds: No chunk begins after so many seconds.
            progress: Called after each chunk with (done, total or None, seconds left or None).
            session: An open session of `session`, to measure in rounds that share one reference; it stays open.

        Yields:
            Keys with their measurements. A key comes again when it was measured again; of the two, the one with less
            drift counts.

        Raises:
            BackendError: A model cannot be compiled or run.
        """
        started = self._clock()
        own = session is None
        session = session or self.session(reference, reference_level)
        total = len(candidates) if isinstance(candidates, Sequence) else None
        done = 0
        again: list[tuple[Key, Compile]] = []
        try:
            for attempt in range(self.retries + 1):
                source = iter(again if attempt else candidates)
                again = []
                while not _spent(self._clock() - started, budget_seconds) and (
                    chunk := list(islice(source, self.chunk_size))
                ):
                    measurements = session.chunk([compile_run for _, compile_run in chunk])
                    for pair, measurement in zip(chunk, measurements, strict=True):
                        yield pair[0], measurement
                        if self.drifted(measurement):
                            again.append(pair)
                    done += 0 if attempt else len(chunk)
                    if progress is not None:
                        left = _seconds_left(self._clock() - started, done, total, budget_seconds)
                        progress(done, total, left)
                if not again:
                    return
        finally:
            if own:
                session.close()

    def drifted(self, measurement: Measurement) -> bool:
        """Whether the machine was off its usual level while the measurement was taken."""
        return abs(measurement.drift or 0.0) > self.drift_threshold

    def session(self, reference: Compile | None = None, reference_level: float | None = None) -> Session:
        """An open session, here or in a process of its own: hand it to `measure`, and close it in the end."""
        level = reference_level
        if not self.isolate:
            return LocalSession(self.settings, reference, level, clock=self._clock, wall_clock=self._wall_clock)
        from latency_models.isolation import RemoteSession

        return RemoteSession(self.settings, reference, level)


def _spent(elapsed: float, budget: float | None) -> bool:
    return budget is not None and elapsed >= budget


def _seconds_left(elapsed: float, done: int, total: int | None, budget: float | None) -> float | None:
    """Time left by the pace so far, at most what the budget leaves."""
    by_budget = None if budget is None else max(budget - elapsed, 0.0)
    if total is None or done == 0:
        return by_budget
    by_pace = elapsed / done * (total - done)
    return by_pace if by_budget is None else min(by_pace, by_budget)
