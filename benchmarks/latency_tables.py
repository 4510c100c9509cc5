"""Readers of two public sets of latency measurements: their columns as physical features and measured values.

Nothing is fetched and nothing of them is shipped: a benchmark takes the folder in which they lie (``--data DIR``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from latency_models.features import ABSENT, Features, Floats, from_products, matmul

HAT_ATTENTION = 512
"""Width of HAT's query, key and value projections; the number of heads divides it."""
HWGPT_HEAD = 64
HWGPT_TOKENS = 1024
HWGPT_VOCABULARY = 50304


@dataclass(frozen=True)
class Measurements:
    """One measured quantity of many architectures, in measurement order.

    Args:
        name: ``HAT <file stem>`` or ``HW-GPT <column>``, with the table's name where there are several.
        features: Rows of physical features.
        plain: ``(rows, columns)``: the table's own columns as plain numbers, for models that know no physics.
        values: ``(rows,)`` measured values.
        pool: Rows to train on are drawn from the first so many, the others test; None: drawn from all.
    """

    name: str
    features: Features
    plain: Floats
    values: Floats
    pool: int | None

    def split(self, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows to train on, in random order, and rows to test on."""
        generator = np.random.default_rng(seed)
        if self.pool is not None:
            return generator.permutation(self.pool), np.arange(self.pool, len(self.values))
        shuffled = generator.permutation(len(self.values))
        held_out = len(shuffled) // 10
        return shuffled[:-held_out], np.sort(shuffled[-held_out:])


def read_all(directory: Path) -> Iterator[Measurements]:
    """Every measured quantity in ``hat/*.csv.gz`` and ``hwgpt/table_*.csv.gz`` below a directory."""
    for path in sorted((directory / "hat").glob("*.csv.gz")):
        yield read_hat(path)
    tables = sorted((directory / "hwgpt").glob("table_*.csv.gz"))
    for path in tables:
        yield from read_hwgpt(path, suffix=f" of {path.name.removesuffix('.csv.gz')}" if len(tables) > 1 else "")


def read_hat(path: Path) -> Measurements:
    """An encoder-decoder table of HAT (Wang et al. 2020, arXiv 2005.14187): sizes averaged over layers, and latency.

    Only products linear in an averaged size are used: those are exact sums over layers.
    """
    table = pd.read_csv(path)
    plain = table[[name for name in table.columns if not name.startswith("latency_")]].to_numpy(dtype=np.float64)
    width, layers, ffn, heads = (
        table[f"encoder_{name}"].to_numpy(dtype=np.float64)
        for name in ("embed_dim", "layer_num", "ffn_embed_dim_avg", "self_attention_heads_avg")
    )
    own, depth, own_ffn, own_heads, cross_heads, attended = (
        table[f"decoder_{name}"].to_numpy(dtype=np.float64)
        for name in (
            "embed_dim",
            "layer_num",
            "ffn_embed_dim_avg",
            "self_attention_heads_avg",
            "ende_attention_heads_avg",
            "arbitrary_ende_attn_avg",
        )
    )
    products = (
        matmul("encoder.attention", width, 4 * HAT_ATTENTION, layers)
        | matmul("encoder.ffn", width, ffn, layers)
        | matmul("decoder.attention", own, 4 * HAT_ATTENTION, depth)
        | matmul("decoder.cross.query", own, 2 * HAT_ATTENTION, depth)
        | matmul("decoder.cross.key", width, 2 * HAT_ATTENTION, depth * attended)
        | matmul("decoder.ffn", own, own_ffn, depth)
        | {
            "encoder.attention.heads": layers * heads,
            "encoder.embedding.read": width,
            "decoder.attention.heads": depth * own_heads,
            "decoder.cross.heads": depth * cross_heads,
            "decoder.embedding.read": own,
        }
    )
    groups = {"encoder_width": width, "decoder_width": own}
    values = (table["latency_mean_encoder"] + table["latency_mean_decoder"]).to_numpy(dtype=np.float64)
    stem = path.name.removesuffix(".csv.gz")
    return Measurements(f"HAT {stem}", from_products(products, groups=groups), plain, values, pool=None)


def read_hwgpt(path: Path, suffix: str = "") -> Iterator[Measurements]:
    """Latency, energy and memory columns of a table of HW-GPT-Bench (Sukthanker et al. 2024, arXiv 2405.10299)."""
    table = pd.read_csv(path)
    features, plain = _hwgpt_features(table)
    for column in table.columns:
        if column.startswith(("lat_ms_", "energy_wh_", "mem_")):
            values = table[column].to_numpy(dtype=np.float64)
            yield Measurements(f"HW-GPT {column}{suffix}", features, plain, values, pool=len(table) * 4 // 5)


def _hwgpt_features(table: pd.DataFrame) -> tuple[Features, Floats]:
    width = table["embed_dim"].to_numpy(dtype=np.int64)
    biased = table["bias"].to_numpy(dtype=np.int64)
    heads, ratio = hwgpt_blocks(table)
    features = hwgpt_features(width, biased, heads, ratio)
    return features, np.column_stack([width, (heads > 0).sum(axis=1), biased, heads, ratio]).astype(np.float64)


def hwgpt_blocks(table: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Heads and MLP ratios of every block, ``(rows, blocks)`` each, 0 where a row has fewer blocks."""
    return _per_block(table["n_head"]), _per_block(table["mlp_ratio"])


def hwgpt_features(
    width: NDArray[np.int64], biased: NDArray[np.int64], heads: NDArray[np.int64], ratio: NDArray[np.int64]
) -> Features:
    """Physical features of any architecture of HW-GPT-Bench's space, whether or not the table has it.

    Args:
        width: ``(rows,)``, the embedding's.
        biased: ``(rows,)``, 0 or 1.
        heads: ``(rows, blocks)``, 0 where a row has fewer blocks.
        ratio: ``(rows, blocks)``, of each MLP's width to the embedding's.
    """
    there = heads > 0
    layers = there.sum(axis=1)
    ffn = ratio * width[:, None]
    query = heads * HWGPT_HEAD
    across = width[:, None] * there
    outputs = 3 * query.sum(axis=1) + 2 * layers * width + ffn.sum(axis=1)
    products = (
        matmul("qkv", across, 3 * query, 1, HWGPT_TOKENS)
        | matmul("attention_out", query, across, 1, HWGPT_TOKENS)
        | matmul("ffn_in", across, ffn, 1, HWGPT_TOKENS)
        | matmul("ffn_out", ffn, across, 1, HWGPT_TOKENS)
        | {
            "attention.flops": 2.0 * query.sum(axis=1) * HWGPT_TOKENS**2,
            "norm.read": HWGPT_TOKENS * layers * width,
            "head.flops": float(HWGPT_TOKENS * HWGPT_VOCABULARY) * width,
            "bias.kernels": biased * layers,
            "bias.written": HWGPT_TOKENS * biased * outputs,
        }
    )
    # As the table's columns have them: three products of an MLP, and 8 operations per attended pair and token.
    weights = width * (4 * query.sum(axis=1) + 3 * ffn.sum(axis=1))
    written = 3 * query.sum(axis=1) + 2 * layers * width + 2 * ffn.sum(axis=1)
    return from_products(
        products,
        flops=16384 * weights + 8192 * ffn.sum(axis=1) + 81920 * layers * width + 823402496 * width,
        parameters=weights + biased * written + 4 * layers * width + 100510 * width,
        sizes={"heads": np.where(there, heads, ABSENT), "ffn": np.where(there, ffn, ABSENT)},
        groups={"width": width, "bias": biased},
    )


def _per_block(column: pd.Series[str]) -> NDArray[np.int64]:
    """``(rows, blocks)`` of numbers joined by blanks, 0 where a row has fewer blocks."""
    rows = [[int(number) for number in text.split()] for text in column]
    matrix = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for target, row in zip(matrix, rows, strict=True):
        target[: len(row)] = row
    return matrix
