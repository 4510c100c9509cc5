"""The quality model and the acquisition: exact where the answer is known, sane where it is not."""

from __future__ import annotations

import numpy as np

from nas.engine.acquisition import expected_hypervolume_improvement, expected_improvement, expected_scalar_improvement
from nas.engine.pareto import hypervolume
from nas.engine.surrogate import FeatureMap, Surrogate


def test_a_linear_quality_is_learnt_and_uncertainty_shrinks_where_it_was_seen():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(80, 4))
    quality = rows @ np.array([1.0, -0.5, 0.25, 0.0])
    features = FeatureMap.make(rows, [[0, 1], [2, 3]])
    surrogate = Surrogate(features.sizes).fit(features(rows[:50]), quality[:50])
    mean, deviation = surrogate.predict(features(rows[50:]))
    assert np.array_equal(mean, surrogate.expect(features(rows[50:])))
    assert np.corrcoef(mean, quality[50:])[0, 1] > 0.98
    assert np.all(deviation > 0)
    far = surrogate.predict(features(rows[50:] + 20))[1]
    assert far.mean() > deviation.mean()


def test_certain_improvements_are_their_plain_differences():
    zero = np.zeros((3, 2)) + 1e-9
    means = np.array([[0.5, 0.5], [2.0, 2.0], [0.1, 0.9]])
    front = np.array([[0.2, 0.8], [0.8, 0.2]])
    reference = np.array([1.0, 1.0])
    gains = expected_hypervolume_improvement(means, zero, front, reference)
    base = hypervolume(front, reference)
    expected = [hypervolume(np.vstack([front, point]), reference) - base for point in means]
    assert np.allclose(gains, expected, atol=1e-6)


def test_expected_improvement_grows_with_uncertainty():
    mean, bound = np.array([1.0]), np.array([0.5])
    small, large = (float(expected_improvement(mean, np.array([d]), bound)[0]) for d in (0.1, 1.0))
    assert 0 <= small < large


def test_scalar_improvement_prefers_the_dominating_candidate():
    seen = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    means = np.array([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]])
    gains = expected_scalar_improvement(means, np.full((2, 3), 0.05), seen, np.full(3, 1 / 3))
    assert gains[0] > gains[1]
