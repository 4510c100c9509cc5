"""Physical features: what a device has to do for a subnet, as sums over operators, never as averages over layers.

An operator's time is a non-negative mixture of its arithmetic, the bytes it moves, and the kernels it launches. A
feature is one of these *products* (``ffn_in.flops = sum over blocks of tokens x inputs x outputs``), so that a device
is described by one non-negative coefficient per product. Two things break that linearity on real devices, and are kept
beside the products: kernels are chosen per size (`Features.sizes`), and per width or data layout of the whole model
(`Features.groups`).

The same features come from a `SubnetTable` (`from_table`) and from any plain table of measurements (`from_products`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from latency_models.products import (
    ABSENT,
    Features,
    Floats,
    Integers,
    aligned,
    from_products,
    join,
    matmul,
    totals,
)
from search_spaces.cost import Projection, Workload, costs, projections
from search_spaces.shapes import ModelShape
from search_spaces.subnet import PRECISIONS, RANKS, SubnetConfig, SubnetTable

__all__ = [
    "ABSENT",
    "Features",
    "Floats",
    "Integers",
    "aligned",
    "from_products",
    "from_table",
    "join",
    "matmul",
    "totals",
]

ALIGNMENTS = (8, 16, 32, 64)
_BITS = dict(zip(PRECISIONS, (32, 16, 8, 4), strict=True))
_OPERATOR = {"query": "qkv", "key_value": "qkv"}
_MOST_DISTINCT = 256


def from_table(
    shape: ModelShape, subnets: SubnetTable | Sequence[SubnetConfig], workload: Workload | None = None
) -> Features:
    """Features of subnets of one teacher, for one workload.

    Args:
        shape: The teacher's sizes.
        subnets: Canonical subnets, as columns or as objects.
        workload: What one run processes.
    """
    table = subnets if isinstance(subnets, SubnetTable) else SubnetTable.from_subnets(subnets)
    workload = workload or Workload()
    products = _block_products(shape, table, workload)
    width = table.hidden_size.astype(np.float64)
    tokens = workload.batch_size * workload.new_tokens
    head = tokens * shape.head_macs_per_token + workload.batch_size * shape.head_macs_per_sequence
    products["embedding.read"] = tokens * width
    stem = workload.batch_size * shape.stem_macs_per_sequence
    products["head.flops"] = head - stem * (1 - width / shape.hidden_size)
    narrow = (table.hidden_size < shape.hidden_size).astype(np.float64)
    products |= matmul("output", width, shape.hidden_size, narrow, tokens)
    cost = costs(shape, table, workload)
    there = ~table.skipped
    sizes = {name: np.where(there, getattr(table, name), ABSENT) for name in ("heads", "ffn", *RANKS, "precision")}
    return from_products(
        {name: values for name, values in products.items() if values.any()},
        flops=cost.macs,
        parameters=cost.parameters,
        sizes=sizes,
        groups={"hidden_size": table.hidden_size},
    )


def _block_products(shape: ModelShape, table: SubnetTable, workload: Workload) -> dict[str, Floats]:
    """Products that are sums over blocks, ``(subnets,)`` each.

    Many subnets are made of few distinct blocks: those are computed once, and counted.
    """
    distinct, counts = _distinct_blocks(table)
    rows = table if distinct is None else distinct
    tokens = workload.batch_size * workload.new_tokens
    products: dict[str, Floats] = {}
    for projection in projections(shape, rows):
        for name, values in _projection_products(projection, rows, tokens).items():
            products[name] = products[name] + values if name in products else values
    products |= _other_products(shape, rows, workload)
    if distinct is None:
        return products
    summed = counts @ np.column_stack(list(products.values()))
    return dict(zip(products, summed.T, strict=True))


def _distinct_blocks(table: SubnetTable) -> tuple[SubnetTable | None, Floats]:
    """The distinct blocks as subnets of one block, and how often each subnet has them, ``(subnets, distinct)``.

    None where there are too many of them for counting to pay.
    """
    rows, blocks = table.heads.shape
    columns = {field.name: getattr(table, field.name) for field in fields(SubnetTable)}
    columns["hidden_size"] = np.broadcast_to(columns["hidden_size"][:, None], (rows, blocks))
    code = np.zeros((rows, blocks), dtype=np.int64)
    for values in columns.values():
        code = code * (int(values.max(initial=0)) + 1) + values
    # A space with very many sizes could overflow the code; far below that, counting no longer pays anyway.
    if rows < 2 or np.prod([float(values.max(initial=0)) + 1.0 for values in columns.values()]) > 2.0**62:
        return None, np.zeros((0, 0))
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    if len(first) > _MOST_DISTINCT:
        return None, np.zeros((0, 0))
    place = inverse.reshape(rows, blocks) + np.arange(rows)[:, None] * len(first)
    counts = np.bincount(place.ravel(), minlength=rows * len(first)).reshape(rows, len(first)).astype(np.float64)
    of_block = {name: values.ravel()[first] for name, values in columns.items()}
    hidden = of_block.pop("hidden_size")
    return SubnetTable(hidden_size=hidden, **{name: values[:, None] for name, values in of_block.items()}), counts


def _projection_products(projection: Projection, table: SubnetTable, tokens: int) -> dict[str, Floats]:
    """Products of one group of projections: apart by precision, and by dense or factored, as other kernels run."""
    products: dict[str, Floats] = {}
    operator = _OPERATOR.get(projection.name, projection.name)
    k, n, rank = projection.inputs, projection.outputs, projection.rank
    there = ~table.skipped & (k > 0) & (n > 0)
    for index, precision in enumerate(PRECISIONS):
        of_precision = there & (table.precision == index)
        dense, factored = of_precision & (rank == 0), of_precision & (rank > 0)
        name = f"{operator}.{precision}"
        if dense.any():
            products |= matmul(name, k, n, projection.count * dense, tokens)
            products[f"{name}.weight_bytes"] = (projection.count * dense * k * n).sum(axis=1) * _BITS[precision] / 8.0
            for multiple in ALIGNMENTS:
                padded = _round_up(k, multiple) * _round_up(n, multiple) - k * n
                products[f"padding_{multiple}.flops"] = products.get(
                    f"padding_{multiple}.flops", np.zeros(len(table))
                ) + tokens * (projection.count * dense * padded).sum(axis=1)
        if factored.any():
            down = matmul(f"{name}.factored", k, rank, projection.count * factored, tokens)
            up = matmul(f"{name}.factored", rank, n, projection.count * factored, tokens)
            products |= {key: down[key] + up[key] for key in down}
    return products


def _other_products(shape: ModelShape, table: SubnetTable, workload: Workload) -> dict[str, Floats]:
    """Products of the rest of the blocks: attention, norms and activations."""
    tokens = workload.batch_size * workload.new_tokens
    there = ~table.skipped
    heads = (table.heads * there).sum(axis=1).astype(np.float64)
    width = table.hidden_size.astype(np.float64)
    return {
        "attention.flops": 2.0 * heads * shape.head_dim * tokens * workload.sequence_length,
        "attention.probabilities": heads * tokens * workload.sequence_length,
        "attention.cache": (table.kv_heads * there).sum(axis=1) * 2.0 * shape.head_dim * workload.sequence_length,
        "attention.kernels": (there & (table.heads > 0)).sum(axis=1).astype(np.float64),
        "ffn.activations": tokens * (table.ffn * there).sum(axis=1).astype(np.float64),
        "ffn.kernels": (there & (table.ffn > 0)).sum(axis=1).astype(np.float64),
        "norm.read": tokens * there.sum(axis=1) * width,
        "norm.kernels": there.sum(axis=1).astype(np.float64),
    }


def _round_up(size: Integers, multiple: int) -> Integers:
    return -(-size // multiple) * multiple
