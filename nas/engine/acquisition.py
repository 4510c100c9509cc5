"""Which candidate to evaluate next: expected improvement of the hypervolume, uncertainty included.

Smaller is better everywhere. A known value has a standard deviation of 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from nas.engine.pareto import non_dominated

Floats = NDArray[np.float64]
_ROOT_2_PI = float(np.sqrt(2 * np.pi))


def expected_improvement(mean: Floats, deviation: Floats, bound: Floats | float) -> Floats:
    """E[max(bound - value, 0)] of normal values; all three broadcast."""
    if not np.any(deviation > 1e-12):
        return np.maximum(bound - mean, 0.0)
    safe = np.maximum(deviation, 1e-12)
    z = (bound - mean) / safe
    density = np.exp(-0.5 * np.minimum(z * z, 1400.0)) / _ROOT_2_PI
    return np.where(deviation > 1e-12, (bound - mean) * ndtr(z) + safe * density, np.maximum(bound - mean, 0.0))


def chance_below(mean: Floats, deviation: Floats, bound: Floats | float) -> Floats:
    """P(value < bound) of normal values; all three broadcast."""
    z = (bound - mean) / np.maximum(deviation, 1e-12)
    return np.where(deviation > 1e-12, ndtr(z), (mean < bound).astype(np.float64))


def expected_hypervolume_improvement(means: Floats, deviations: Floats, front: Floats, reference: Floats) -> Floats:
    """Exact for two independent normal objectives.

    The area between the front and the reference is cut into strips along the first objective; a candidate's gain in a
    strip is its width there times its depth there (Emmerich et al. 2011; Yang et al. 2019, arXiv 1904.12672).

    Args:
        means: ``(candidates, 2)``.
        deviations: ``(candidates, 2)``.
        front: ``(points, 2)`` evaluated so far; dominated and too bad ones do no harm.
        reference: ``(2,)``.

    Returns:
        ``(candidates,)``.
    """
    points = front[np.all(front < reference, axis=1)]
    points = points[non_dominated(points)]
    points = points[np.argsort(points[:, 0], kind="stable")]
    # Strip i reaches from left[i] to right[i]; what is not yet dominated there lies below top[i].
    left = np.concatenate(([-np.inf], points[:, 0]))
    right = np.concatenate((points[:, 0], [reference[0]]))
    top = np.concatenate(([reference[1]], points[:, 1]))
    depth = expected_improvement(means[:, 1:], deviations[:, 1:], top)
    to_right = expected_improvement(means[:, :1], deviations[:, :1], right)
    finite = np.where(np.isfinite(left), left, 0.0)
    to_left = np.where(np.isfinite(left), expected_improvement(means[:, :1], deviations[:, :1], finite), 0.0)
    width = np.maximum(to_right - to_left, 0.0)
    gains: Floats = np.sum(width * depth, axis=1)
    return gains


def expected_scalar_improvement(
    means: Floats, deviations: Floats, seen: Floats, weights: Floats, slope: float = 0.05
) -> Floats:
    """Expected improvement of an augmented Chebyshev scalarisation: for three and more objectives.

    Knowles 2006 (ParEGO); random weights from trial to trial spread the search over the front.

    Args:
        means: ``(candidates, objectives)``.
        deviations: ``(candidates, objectives)``.
        seen: ``(points, objectives)`` evaluated so far.
        weights: ``(objectives,)``, positive, sum 1.
        slope: Share of the plain sum, which keeps weakly dominated points out.
    """
    low, high = seen.min(axis=0), seen.max(axis=0)
    span = np.where(high > low, high - low, 1.0)

    def scalar(points: Floats) -> Floats:
        weighted = weights * (points - low) / span
        value: Floats = weighted.max(axis=1) + slope * weighted.sum(axis=1)
        return value

    centre = scalar(means)
    active = np.argmax(weights * (means - low) / span, axis=1)
    spread = (weights / span)[active] * deviations[np.arange(len(means)), active]
    return expected_improvement(centre, spread, scalar(seen).min())
