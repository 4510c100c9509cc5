"""Columns along which a device deviates from one coefficient per product, in families of like columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from latency_models.additive import independent_columns
from latency_models.features import ABSENT, Features, Floats, Integers, aligned

TERMS = ("products", "levels", "variants", "groups", "smooth")
"""``products``: another coefficient per product; ``levels``: a cost per block of one size; ``variants``: a cost per
block of one combination of sizes; ``groups``: products and levels apart for every width or layout; ``smooth``: a
Gaussian process over the products."""
LANDMARKS = 64


@dataclass(frozen=True)
class Landmarks:
    """Nystroem's approximation of a Gaussian process with a squared-exponential covariance (Williams and Seeger 2001).

    Args:
        scales: ``(products,)``: a product's standard deviation over the training rows.
        points: ``(landmarks, products)``, over `scales`.
        length: Length scale: the median distance between points.
        root: ``(landmarks, landmarks)``: lower Cholesky factor of the landmarks' covariance.
    """

    scales: Floats
    points: Floats
    length: float
    root: Floats

    @classmethod
    def of(cls, products: Floats) -> Landmarks:
        """Landmarks of a training table's products, at even steps of its rows."""
        scales = products.std(axis=0)
        scales[scales <= 1e-12 * np.abs(products).max(axis=0)] = np.inf
        points = products[np.unique(np.linspace(0, len(products) - 1, LANDMARKS).astype(int))] / scales
        squares = _distances(points, points)
        length = float(np.sqrt(np.median(squares[squares > 0]))) if (squares > 0).any() else 1.0
        covariance = np.exp(-squares / (2 * length**2)) + 1e-6 * np.eye(len(points))
        root: Floats = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        return cls(scales, points, length, root)

    def columns(self, products: Floats) -> Floats:
        """``(rows, landmarks)`` columns of which independent standard normal coefficients give the process."""
        across = np.exp(-_distances(products / self.scales, self.points) / (2 * self.length**2))
        return np.asarray(np.linalg.solve(self.root, across.T).T, dtype=np.float64)


@dataclass(frozen=True)
class Deviations:
    """The families that a training table calls for, to be computed for any other table.

    Args:
        terms: Which of `TERMS` there are.
        names: Products in use.
        levels: Size name -> its values in training.
        variants: ``(variants, sizes)``: the blocks in training.
        groups: Group names -> the combinations of values in training, ``(combinations, names)``.
        landmarks: Of the ``smooth`` term.
    """

    terms: tuple[str, ...]
    names: tuple[str, ...]
    levels: Mapping[str, Integers]
    variants: Integers
    groups: Mapping[tuple[str, ...], Integers]
    landmarks: Landmarks | None

    @classmethod
    def of(cls, features: Features, terms: tuple[str, ...]) -> Deviations:
        """The families of a training table.

        Raises:
            ValueError: A term is unknown.
        """
        if unknown := [term for term in terms if term not in TERMS]:
            raise ValueError(f"`terms` must be of {', '.join(TERMS)}, but got {unknown[0]!r}.")
        used = independent_columns(features.products, np.asarray(features.products.any(axis=0)))
        levels = {
            name: found
            for name, values in features.sizes.items()
            if len(found := np.unique(values[values != ABSENT])) > 1
        }
        return cls(
            terms=terms,
            names=tuple(features.names[index] for index in used),
            levels=levels,
            variants=_variants(features, tuple(levels)) if "variants" in terms else np.zeros((0, 0), dtype=np.int64),
            groups=_combinations(features) if "groups" in terms else {},
            landmarks=Landmarks.of(features.products[:, used]) if "smooth" in terms else None,
        )

    def build(self, features: Features, base: Floats) -> list[Floats]:
        """One matrix ``(rows, columns)`` per family, relative to the base prediction ``(rows,)``."""
        products = aligned(features, self.names).products
        counts = [_counts(features.sizes[name], values) for name, values in self.levels.items()]
        families: list[Floats] = []
        if "products" in self.terms:
            families.append(products / base[:, None])
        if "levels" in self.terms and counts:
            families.append(np.column_stack(counts) / base[:, None])
        if len(self.variants):
            blocks = np.stack([features.sizes[name] for name in self.levels], axis=-1)
            per_variant = [(blocks == variant).all(axis=2).sum(axis=1) for variant in self.variants]
            families.append(np.column_stack(per_variant) / base[:, None])
        if self.landmarks is not None:
            families.append(self.landmarks.columns(products))
        inner = np.column_stack([products, *counts]) / base[:, None] if self.groups else products
        for names, values in self.groups.items():
            own = np.stack([features.groups[name] for name in names], axis=1)
            families.append(np.column_stack([inner * (own == value).all(axis=1)[:, None] for value in values]))
        return families or [np.zeros((len(features), 0))]


def _counts(sizes: Integers, values: Integers) -> Floats:
    """``(rows, values)``: how many blocks of each row have each size."""
    return np.column_stack([(sizes == value).sum(axis=1) for value in values]).astype(np.float64)


def _variants(features: Features, names: tuple[str, ...]) -> Integers:
    """The distinct blocks of a table, ``(variants, sizes)``."""
    if not names:
        return np.zeros((0, 0), dtype=np.int64)
    blocks = np.stack([features.sizes[name] for name in names], axis=-1).reshape(-1, len(names))
    return np.unique(blocks[(blocks != ABSENT).any(axis=1)], axis=0)


def _combinations(features: Features) -> dict[tuple[str, ...], Integers]:
    """Every set of the groups that vary -> the combinations of their values in a table."""
    varying = [name for name, values in features.groups.items() if len(np.unique(values)) > 1]
    return {
        names: np.unique(np.stack([features.groups[name] for name in names], axis=1), axis=0)
        for count in range(1, len(varying) + 1)
        for names in combinations(varying, count)
    }


def _distances(one: Floats, other: Floats) -> Floats:
    """Squared distances ``(rows of one, rows of other)``."""
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    distances: Floats = np.maximum(squares, 0.0)
    return distances
