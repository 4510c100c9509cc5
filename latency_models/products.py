"""Rows of physical features, whatever they were computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
ABSENT = -1
"""The size, in `Features.sizes`, of what a block does not have."""


@dataclass(frozen=True)
class Features:
    """What many subnets ask of a device.

    Args:
        names: Names of the products.
        products: ``(subnets, products)``, non-negative: work that adds up over operators.
        sizes: Name -> ``(subnets, blocks)`` integers: sizes of which kernels may depend, `ABSENT` where there is none.
        groups: Name -> ``(subnets,)`` integers: what all operators of a subnet share and kernels may depend on.
        flops: ``(subnets,)``: the whole workload's multiply-accumulates; the size by which subnets are ordered.
        parameters: ``(subnets,)``: parameter counts.

    Raises:
        ValueError: Shapes disagree, or a product is negative or not finite.
    """

    names: tuple[str, ...]
    products: Floats
    flops: Floats
    parameters: Floats
    sizes: Mapping[str, Integers] = field(default_factory=dict)
    groups: Mapping[str, Integers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, columns = self.products.shape
        if columns != len(self.names):
            raise ValueError(
                f"features: `products` must have a column per name ({len(self.names)}), but got {columns}."
            )
        for name, values in {"flops": self.flops, "parameters": self.parameters, **self.sizes, **self.groups}.items():
            if len(values) != rows:
                raise ValueError(f"features: `{name}` must have {rows} rows, like `products`, but got {len(values)}.")
        if rows and not (np.isfinite(self.products).all() and self.products.min(initial=0.0) >= 0):
            bad = ~np.isfinite(self.products) | (self.products < 0)
            row, column = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"features: products must be finite and >= 0, but row {row} has "
                f"{self.names[column]} = {self.products[row, column]}."
            )

    def __len__(self) -> int:
        return len(self.products)

    def take(self, rows: ArrayLike) -> Features:
        """The same features of some rows (indices, a mask or a slice's indices)."""
        index = np.asarray(rows)
        return Features(
            names=self.names,
            products=self.products[index],
            flops=self.flops[index],
            parameters=self.parameters[index],
            sizes={name: values[index] for name, values in self.sizes.items()},
            groups={name: values[index] for name, values in self.groups.items()},
        )


def from_products(
    products: Mapping[str, ArrayLike],
    *,
    flops: ArrayLike | None = None,
    parameters: ArrayLike | None = None,
    sizes: Mapping[str, ArrayLike] | None = None,
    groups: Mapping[str, ArrayLike] | None = None,
) -> Features:
    """Features of a plain table: one array ``(rows,)`` per product (see `matmul` for those of a matrix product).

    Args:
        products: Name -> non-negative work. A constant is added, for what every run pays.
        flops: The rows' sizes; the sum of the products whose names end in ``.flops`` when not given.
        parameters: The rows' parameter counts; like the FLOPs when not given.
        sizes: Name -> ``(rows, blocks)`` sizes of which kernels may depend.
        groups: Name -> ``(rows,)`` whole numbers that all operators of a row share.

    Raises:
        ValueError: Shapes disagree, or a product is negative or not finite.
    """
    names = tuple(products)
    columns = [np.asarray(products[name], dtype=np.float64) for name in names]
    if not columns:
        raise ValueError("features: `products` must not be empty.")
    matrix = np.column_stack([np.ones(len(columns[0])), *columns])
    counted = sum((c for n, c in zip(names, columns, strict=True) if n.endswith(".flops")), np.zeros(len(matrix)))
    size = counted if flops is None else np.asarray(flops, dtype=np.float64)
    return Features(
        names=("constant", *names),
        products=matrix,
        flops=size,
        parameters=size if parameters is None else np.asarray(parameters, dtype=np.float64),
        sizes={name: np.asarray(values, dtype=np.int64) for name, values in (sizes or {}).items()},
        groups={name: np.asarray(values, dtype=np.int64) for name, values in (groups or {}).items()},
    )


def matmul(
    name: str, inputs: ArrayLike, outputs: ArrayLike, count: ArrayLike = 1, tokens: float = 1
) -> dict[str, Floats]:
    """Products of ``count`` multiplications of ``tokens x inputs`` by ``inputs x outputs``, summed over blocks.

    Args:
        name: The operator's name.
        inputs: ``(rows,)``, or ``(rows, blocks)`` to be summed over blocks. Where rows hold averages over layers,
            products that are linear in the averaged size are still exact.
        outputs: Like ``inputs``.
        count: Like ``inputs``: how many multiplications of these sizes there are.
        tokens: Rows of the left matrix.

    Returns:
        ``name.flops``, ``name.read``, ``name.written`` (elements) and ``name.kernels``, each ``(rows,)``.
    """
    k, n, times = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in (inputs, outputs, count)))
    here = times * ((k > 0) & (n > 0))
    values = {
        f"{name}.flops": tokens * here * k * n,
        f"{name}.read": tokens * here * k,
        f"{name}.written": tokens * here * n,
        f"{name}.kernels": here,
    }
    return {key: value.sum(axis=1) if value.ndim == 2 else value for key, value in values.items()}


def join(parts: Iterable[Features]) -> Features:
    """Rows of several tables one after the other; products that a part lacks are 0 there.

    Raises:
        ValueError: There is no part, or the parts have different sizes or groups.
    """
    tables = list(parts)
    if not tables:
        raise ValueError("features: `join` needs at least one part.")
    names = tuple(dict.fromkeys(name for table in tables for name in table.names))
    for kind in ("sizes", "groups"):
        if len({frozenset(getattr(table, kind)) for table in tables}) > 1:
            raise ValueError(f"features: parts must have the same `{kind}` to be joined.")
    return Features(
        names=names,
        products=np.concatenate([aligned(table, names).products for table in tables]),
        flops=np.concatenate([table.flops for table in tables]),
        parameters=np.concatenate([table.parameters for table in tables]),
        sizes={name: np.concatenate([table.sizes[name] for table in tables]) for name in tables[0].sizes},
        groups={name: np.concatenate([table.groups[name] for table in tables]) for name in tables[0].groups},
    )


def aligned(features: Features, names: Sequence[str]) -> Features:
    """The same rows with the products of these names, in this order; 0 where the rows have no such product."""
    if tuple(names) == features.names:
        return features
    at = {name: index for index, name in enumerate(features.names)}
    products = np.zeros((len(features), len(names)))
    for column, name in enumerate(names):
        if name in at:
            products[:, column] = features.products[:, at[name]]
    return Features(tuple(names), products, features.flops, features.parameters, features.sizes, features.groups)


def totals(features: Features) -> Features:
    """The same rows with one product per kind: all ``.flops`` together, all ``.kernels`` together, and so on."""
    kinds = tuple(dict.fromkeys(name.rpartition(".")[2] for name in features.names))
    of_kind = np.array(
        [[name.rpartition(".")[2] == kind for kind in kinds] for name in features.names], dtype=np.float64
    )
    return Features(
        kinds,
        features.products @ of_kind,
        features.flops,
        features.parameters,
        features.sizes,
        features.groups,
    )
