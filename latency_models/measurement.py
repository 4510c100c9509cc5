"""What was measured: every raw sample of one candidate, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Measurement:
    """Every sample of one candidate, as it was taken.

    Args:
        samples: Wall-clock times of single runs in milliseconds, in the order in which they were taken.
        times: When each sample began: seconds since the epoch.
        order: Place of each sample among all samples of the session, the reference's included.
        reference: Beside each sample, what the reference model took at that moment (ms), interpolated between the
            nearest measurements of it before and after; empty when there is no reference model.
        reference_level: What the reference model takes when the machine is as usual (ms), or None.

    Raises:
        ValueError: There is no sample, a sample is not a positive number, or the lengths differ.
    """

    samples: tuple[float, ...]
    times: tuple[float, ...] = ()
    order: tuple[int, ...] = ()
    reference: tuple[float, ...] = ()
    reference_level: float | None = None

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("measurement: there must be at least one sample.")
        for name in ("samples", "reference"):
            if bad := [value for value in getattr(self, name) if not (math.isfinite(value) and value > 0)]:
                raise ValueError(f"measurement: `{name}` must be positive numbers, but got {bad[0]!r}.")
        for name in ("times", "order", "reference"):
            if (length := len(getattr(self, name))) not in (0, len(self.samples)):
                raise ValueError(
                    f"measurement: `{name}` must be as long as the samples, {len(self.samples)}, not {length}."
                )
        level = self.reference_level
        if level is not None and not (math.isfinite(level) and level > 0):
            raise ValueError(f"measurement: `reference_level` must be a positive number, but got {level!r}.")

    def quantile(self, share: float) -> float:
        """A quantile of the samples in milliseconds."""
        return float(np.quantile(self.samples, share))

    @property
    def p50(self) -> float:
        """Median in milliseconds: the value that predictors learn."""
        return self.quantile(0.5)

    @property
    def p90(self) -> float:
        """90th percentile in milliseconds."""
        return self.quantile(0.9)

    @property
    def p99(self) -> float:
        """99th percentile in milliseconds; close to the largest sample unless there are hundreds."""
        return self.quantile(0.99)

    @property
    def minimum(self) -> float:
        """Fastest sample in milliseconds."""
        return min(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range relative to the median."""
        return (self.quantile(0.75) - self.quantile(0.25)) / self.p50

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.samples)

    @property
    def drift(self) -> float | None:
        """How far the machine was from its usual level, as a share: +0.2 when the reference took 20 % longer."""
        if not self.reference or self.reference_level is None:
            return None
        return float(np.median(self.reference)) / self.reference_level - 1.0

    @property
    def corrected(self) -> float:
        """The median with every sample put in proportion to the reference beside it (ms); `p50` without a reference."""
        if not self.reference or self.reference_level is None:
            return self.p50
        return float(np.median(np.divide(self.samples, self.reference))) * self.reference_level

    def at_level(self, level: float | None) -> Measurement:
        """The same samples beside another usual level of the reference (ms); unchanged where there is no reference."""
        return replace(self, reference_level=level) if self.reference and level is not None else self


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster a model is than its reference: the median of paired ratios with a 95 % interval."""

    value: float
    low: float
    high: float


def speedup(measured: Measurement, seed: int = 0) -> Ratio | None:
    """How many times faster a model was than the reference beside it; None where there was none.

    Args:
        measured: Samples, each with the reference's beside it.
        seed: Of the bootstrap that the interval is of.
    """
    if not measured.reference:
        return None
    ratios = np.divide(measured.reference, measured.samples)
    generator = np.random.default_rng(seed)
    medians = np.median(generator.choice(ratios, size=(1000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    value = float(np.median(ratios))
    return Ratio(value, min(float(low), value), max(float(high), value))


def median_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Distribution-free confidence interval of a median by the sign test.

    Returns ``(-inf, inf)`` when there are too few values for that confidence (fewer than 5 for 90 %).
    """
    ordered = sorted(values)
    count = len(ordered)
    # Probability that fewer than `depth` of `count` values lie below the median, summed from the outside.
    tail, depth = 0.0, 0
    while depth < count // 2 + 1:
        tail += math.comb(count, depth) / 2**count
        if 2 * tail > 1 - confidence:
            break
        depth += 1
    if depth == 0:
        return -math.inf, math.inf
    return ordered[depth - 1], ordered[count - depth]
