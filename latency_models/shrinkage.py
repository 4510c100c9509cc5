"""Deviations from the additive model, each shrunk as far as the profile itself says.

Kernels are chosen per size, per width and per layout, so a device deviates from one coefficient per product. The
deviations are columns (counts of block sizes, whole block variants, products within one width), standardised and put
into families. All columns of a family share one prior variance, and the variances maximise the evidence (MacKay 1992),
so that 30 rows keep almost nothing of a family of 60 columns and 8,000 rows keep all of it. Errors are Student-t, so
that a drifting stretch loses its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Self

import numpy as np

from latency_models.additive import AdditiveModel, independent_columns
from latency_models.features import ABSENT, Features, Floats, Integers, aligned

TERMS = ("products", "levels", "variants", "groups")


@dataclass(frozen=True)
class Columns:
    """The deviation columns that a training table calls for, to be computed for any other table.

    Args:
        terms: Which of `TERMS` there are.
        names: Products in use.
        levels: Size name -> its values in training.
        variants: ``(variants, sizes)``: the blocks in training.
        groups: Group names -> the combinations of values in training, ``(combinations, names)``.
    """

    terms: tuple[str, ...]
    names: tuple[str, ...]
    levels: Mapping[str, Integers]
    variants: Integers
    groups: Mapping[tuple[str, ...], Integers]

    @classmethod
    def of(cls, features: Features, terms: tuple[str, ...]) -> Columns:
        """The columns of a training table."""
        used = independent_columns(features.products, np.asarray(features.products.any(axis=0)))
        levels = {
            name: found
            for name, values in features.sizes.items()
            if len(found := np.unique(values[values != ABSENT])) > 1
        }
        blocks = np.stack([features.sizes[name] for name in levels], axis=-1) if levels else None
        variants = np.zeros((0, 0), dtype=np.int64)
        if blocks is not None and "variants" in terms:
            flat = blocks.reshape(-1, blocks.shape[-1])
            variants = np.unique(flat[(flat != ABSENT).any(axis=1)], axis=0)
        varying = [name for name, values in features.groups.items() if len(np.unique(values)) > 1]
        groups = {}
        for count in range(1, len(varying) + 1):
            for names in combinations(varying, count):
                found = np.unique(np.stack([features.groups[name] for name in names], axis=1), axis=0)
                if "groups" in terms:
                    groups[names] = found
        return cls(terms, tuple(features.names[i] for i in used), levels, variants, groups)

    def build(self, features: Features) -> list[Floats]:
        """One matrix ``(rows, columns)`` per family, not yet standardised."""
        products = aligned(features, self.names).products
        counts = [
            np.column_stack([(features.sizes[name] == value).sum(axis=1) for value in values]).astype(np.float64)
            for name, values in self.levels.items()
        ]
        families: list[Floats] = []
        if "products" in self.terms:
            families.append(products)
        if "levels" in self.terms and counts:
            families.append(np.column_stack(counts))
        if len(self.variants):
            blocks = np.stack([features.sizes[name] for name in self.levels], axis=-1)
            families.append(
                np.column_stack([(blocks == variant).all(axis=2).sum(axis=1) for variant in self.variants]).astype(
                    float
                )
            )
        inner = np.column_stack([products, *counts])
        for names, values in self.groups.items():
            own = np.stack([features.groups[name] for name in names], axis=1)
            families.append(np.column_stack([inner * (own == value).all(axis=1)[:, None] for value in values]))
        return families


@dataclass
class ShrinkageModel:
    """The additive model plus deviations under evidence-chosen shrinkage; a Bayesian linear model in closed form.

    Args:
        terms: Families of deviations, of `TERMS`. ``("variants",)`` is a lookup table per block variant.
        degrees: Degrees of freedom of the errors' Student-t distribution.
        prior: What the deviations are deviations from.
    """

    terms: tuple[str, ...] = ("products", "levels", "groups")
    degrees: float = 4.0
    prior: AdditiveModel = field(default_factory=AdditiveModel)

    def fit(self, features: Features, values: Floats, order: Floats | None = None) -> Self:
        """Fit to ``(rows,)`` positive values."""
        self.prior.fit(features, values, order)
        base = _positive(self.prior.predict(features)[0])
        self.columns_ = Columns.of(features, self.terms)
        families = [family / base[:, None] for family in self.columns_.build(features)]
        self.kept_, self.scales_, kept = [], [], []
        for family in families:
            scale = np.sqrt((family**2).mean(axis=0))
            index = independent_columns(family / np.where(scale > 0, scale, 1.0), scale > 0)
            self.kept_.append(index)
            self.scales_.append(scale[index])
            kept.append(family[:, index] / scale[index])
        owner = np.concatenate([np.full(k.shape[1], i) for i, k in enumerate(kept)]).astype(int)
        result = evidence(np.column_stack(kept), values / base - 1.0, owner, self.degrees)
        self.mean_, self.covariance_, self.noise_ = result
        return self

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Values ``(rows,)``, and their relative standard deviation, uncertainty of the coefficients included."""
        base = _positive(self.prior.predict(features)[0])
        families = self.columns_.build(features)
        matrix = (
            np.column_stack([f[:, i] / s for f, i, s in zip(families, self.kept_, self.scales_, strict=True)])
            / base[:, None]
        )
        relative = 1.0 + matrix @ self.mean_
        spread = np.sqrt(self.noise_ + np.einsum("ij,jk,ik->i", matrix, self.covariance_, matrix, optimize=True))
        return base * np.maximum(relative, 1e-3), spread


def evidence(
    matrix: Floats, target: Floats, owner: Integers, degrees: float, rounds: int = 60
) -> tuple[Floats, Floats, float]:
    """Bayesian regression whose noise and family variances maximise the evidence, under Student-t errors.

    MacKay's fixed-point updates (1992, "Bayesian interpolation"), inside the usual scale-mixture weights of the t.

    Args:
        matrix: ``(rows, columns)``, standardised.
        target: ``(rows,)``.
        owner: ``(columns,)``: the family of each column.
        degrees: Degrees of freedom of the errors.
        rounds: Most updates.

    Returns:
        Posterior mean ``(columns,)``, covariance ``(columns, columns)`` and noise variance.
    """
    rows, columns = matrix.shape
    count = int(owner.max()) + 1
    noise = float(np.var(target)) / 2 + 1e-12
    variances = np.full(count, noise)
    weights = np.ones(rows)
    mean: Floats = np.zeros(columns)
    covariance: Floats = np.eye(columns)
    for _ in range(rounds):
        before = noise
        gram = (matrix * weights[:, None]).T @ matrix / noise
        precision = 1.0 / np.maximum(variances[owner], 1e-14)
        covariance = np.asarray(np.linalg.inv(gram + np.diag(precision)), dtype=np.float64)
        mean = covariance @ (matrix.T @ (weights * target)) / noise
        gamma = 1.0 - precision * np.diag(covariance)
        for family in range(count):
            mine = owner == family
            variances[family] = (mean[mine] ** 2).sum() / max(gamma[mine].sum(), 1e-6) + 1e-14
        residual = target - matrix @ mean
        noise = float((weights * residual**2).sum() / max(rows - gamma.sum(), 0.1 * rows)) + 1e-14
        spread = np.einsum("ij,jk,ik->i", matrix, covariance, matrix, optimize=True)
        weights = (degrees + 1.0) / (degrees + (residual**2 + spread) / noise)
        if abs(noise - before) < 1e-4 * noise:
            break
    return mean, covariance, noise


def _positive(values: Floats) -> Floats:
    return np.maximum(values, 1e-12 * max(float(values.max(initial=0.0)), 1e-300))
