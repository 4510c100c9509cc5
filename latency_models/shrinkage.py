"""Deviations from the additive model, each shrunk as far as the profile itself says.

Kernels are chosen per size, per width and per layout, so a device deviates from one coefficient per product. The
deviations are columns (counts of block sizes, whole block variants, products within one width), standardised and put
into families. All columns of a family share one prior variance, and the variances maximise the evidence (MacKay 1992),
so that 30 rows keep almost nothing of a family of 60 columns and 8,000 rows keep all of it. Errors are Student-t, so
that a drifting stretch loses its weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from latency_models.additive import AdditiveModel, huber_weights, independent_columns
from latency_models.deviations import Deviations
from latency_models.evidence import maximise_evidence
from latency_models.features import Features, Floats
from latency_models.intervals import Model

DRIFT_ROWS = 40
"""Fewer rows cannot tell drift from coefficients."""
MOST = 4.0
"""Deviations by more than this factor are extrapolation, not physics."""


@dataclass
class ShrinkageModel:
    """The additive model plus deviations under evidence-chosen shrinkage; a Bayesian linear model in closed form.

    Where the measurement's order is known, slow drift of the machine is one more family: an Ornstein-Uhlenbeck process
    over the order, relative and absolute. It explains training rows and is left out of predictions, which are
    made for the machine's median state.

    Args:
        terms: Families of deviations, of `TERMS`. ``("variants",)`` is a lookup table per block variant.
        degrees: Degrees of freedom of the errors' Student-t distribution.
        prior: What the deviations are deviations from.
    """

    terms: tuple[str, ...] = ("products", "levels", "groups")
    degrees: float = 4.0
    drift: bool = True
    prior: Model = field(default_factory=AdditiveModel)
    start_: tuple[Floats, float] | None = field(default=None, init=False, repr=False)

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:
        """Fit to ``(rows,)`` positive values."""
        drift = self.drift and order is not None and len(values) >= DRIFT_ROWS
        order = order if drift else None
        self._fit_once(features, values, values, order)
        if drift and len(values) >= 2 * DRIFT_ROWS:
            # The prior knows no drift: it is fitted again to values from which the drift found so far is taken out.
            level = self.level_[0] + self.level_[1] * self.size_ / _positive(self.prior.predict(features)[0])
            self._fit_once(features, values, values / (1.0 + np.clip(self.drift_ - level, -0.5, 1.0)), order)
        return self

    def _fit_once(self, features: Features, values: Floats, steady: Floats, order: Floats | None) -> None:
        self.prior.fit(features, steady, order)
        base = _positive(self.prior.predict(features)[0])
        self.size_ = float(np.exp(np.log(base).mean()))
        self.deviations_ = Deviations.of(features, self.terms)
        self.kept_, self.scales_ = [], []
        families: list[Floats] = []
        for relative in self.deviations_.build(features, base):
            scale = np.sqrt((relative**2).mean(axis=0))
            index = independent_columns(relative / np.where(scale > 0, scale, 1.0), np.asarray(scale > 0))
            self.kept_.append(index)
            self.scales_.append(scale[index])
            families.append(relative[:, index] / scale[index])
        count = sum(family.shape[1] for family in families)
        absolute = self.size_ / base
        slow = drift_columns(order) if order is not None else np.zeros((len(base), 0))
        if slow.size:
            families += [slow, slow * absolute[:, None]]
        posterior = maximise_evidence(families, values / base - 1.0, self.degrees, start=self.start_)
        self.start_ = (posterior.variances, posterior.noise)
        self.mean_, self.covariance_ = posterior.mean[:count], posterior.covariance[:count, :count]
        self.noise_ = posterior.noise
        of_time = posterior.mean[count:].reshape(2, -1) @ slow.T
        self.drift_ = of_time[0] + of_time[1] * absolute
        weights = huber_weights(self.drift_ - np.median(self.drift_))
        self.level_ = (of_time * weights).sum(axis=1) / weights.sum()

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)``, and their relative standard deviation, uncertainty of the coefficients included."""
        base = _positive(self.prior.predict(features)[0])
        families = self.deviations_.build(features, base)
        matrix = np.column_stack([f[:, i] / s for f, i, s in zip(families, self.kept_, self.scales_, strict=True)])
        relative = 1.0 + matrix @ self.mean_ + self.level_[0] + self.level_[1] * self.size_ / base
        spread = np.sqrt(self.noise_ + ((matrix @ self.covariance_) * matrix).sum(axis=1))
        return base * np.clip(relative, 1.0 / MOST, MOST), spread


def drift_columns(order: Floats, span: float = 0.1, knots: int = 64) -> Floats:
    """Square root ``(rows, knots)`` of an Ornstein-Uhlenbeck covariance over the order.

    Args:
        order: ``(rows,)`` places in the measurement's order.
        span: Correlation length, as a share of the whole.
        knots: Most columns; more rows than that are interpolated between them.
    """
    time = (order - order.min()) / max(float(np.ptp(order)), 1e-300)
    at = np.quantile(time, np.linspace(0, 1, min(knots, len(time))))
    across = np.exp(-np.abs(time[:, None] - at) / span)
    among = np.exp(-np.abs(at[:, None] - at) / span) + 1e-6 * np.eye(len(at))
    root: Floats = np.linalg.solve(np.linalg.cholesky(among), across.T).T
    return root


def _positive(values: Floats) -> Floats:
    return np.maximum(values, 1e-12 * max(float(values.max(initial=0.0)), 1e-300))
