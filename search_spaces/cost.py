"""What a subnet costs, computed without building it; and the workload that a cost is the cost of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from search_spaces.shapes import ModelShape
from search_spaces.subnet import PRECISIONS, SubnetConfig, SubnetTable, saves

Phase = Literal["encode", "prefill", "decode"]
_BYTES = np.array([{"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}[name] for name in PRECISIONS])


@dataclass(frozen=True, slots=True)
class Workload:
    """What one run of the model processes.

    Args:
        batch_size: Sequences per run.
        sequence_length: Tokens per sequence; for ``decode``, tokens already in the KV cache.
        phase: ``encode`` (all tokens at once), ``prefill`` (a causal model's prompt) or ``decode`` (one new token).

    Raises:
        ValueError: A size is below 1, or the phase is unknown.
    """

    batch_size: int = 1
    sequence_length: int = 128
    phase: Phase = "encode"

    def __post_init__(self) -> None:
        for name in ("batch_size", "sequence_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number >= 1, but got {value!r}.")
        if self.phase not in get_args(Phase):
            raise ValueError(f"`phase` must be one of {', '.join(get_args(Phase))}, but got {self.phase!r}.")

    @property
    def new_tokens(self) -> int:
        """Tokens per sequence that pass through the projections in one run."""
        return 1 if self.phase == "decode" else self.sequence_length

    @property
    def all_tokens(self) -> int:
        """Tokens per sequence that are attended to."""
        return self.sequence_length + (self.phase == "decode")

    def check_positions(self, most: int | None) -> None:
        """Refuse sequences that are longer than a model's position embeddings.

        Args:
            most: How many the model has; None where any length will do.

        Raises:
            ValueError: There are fewer.
        """
        cached = self.phase == "decode"  # The new token takes one, too.
        if most is not None and self.sequence_length + cached > most:
            raise ValueError(
                f"`workload.sequence_length` must be at most {most - cached}, because the model has {most} position "
                f"embeddings, but got {self.sequence_length}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``Workload(**data)`` reads it back."""
        return asdict(self)


@dataclass(frozen=True)
class Cost:
    """Analytic costs of one subnet (numbers) or of many (arrays of shape ``(subnets,)``).

    ``macs`` are multiply-accumulates of one run of the workload; ``block_parameters`` counts the blocks' parameters
    as stored, factors included. ``kv_cache_bytes`` is the cache after one run of a causal phase, in fp32, and 0 when
    all tokens are encoded at once. ``peak_activation_bytes`` is what is alive at once in the block that needs most, in
    fp32 and without fused attention: the stream with queries, keys, values and scores, or with the widened FFN.
    """

    parameters: NDArray[np.int64]
    block_parameters: NDArray[np.int64]
    macs: NDArray[np.int64]
    weight_bytes: NDArray[np.float64]
    kv_cache_bytes: NDArray[np.int64]
    peak_activation_bytes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Projection:
    """One group of projections with the same sizes, for all the subnets of a table: arrays ``(subnets, blocks)``."""

    name: str
    count: int
    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]
    rank: NDArray[np.int64]
    bias: bool

    @property
    def weights(self) -> NDArray[np.int64]:
        """Weights of one member, biases not counted."""
        dense = self.inputs * self.outputs
        return np.where(self.rank > 0, self.rank * (self.inputs + self.outputs), dense)


def effective_rank(rank: NDArray[np.int64], inputs: NDArray[np.int64], outputs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank where two factors are smaller than the matrix, else 0 (dense)."""
    return np.where(saves(rank, inputs, outputs), rank, 0)


def projections(shape: ModelShape, table: SubnetTable) -> tuple[Projection, ...]:
    """The projections of every block of every subnet, in the order in which they run."""
    hidden = np.broadcast_to(table.hidden_size[:, None], table.heads.shape)
    qkv = shape.qkv_rows(table.heads, table.kv_heads)
    of_qkv = [("qkv", 1)] if shape.fused_qkv else [("query", 1), ("key_value", 2)]
    widening, width = 2 if shape.gated and not shape.fused_ffn else 1, table.heads * shape.head_dim
    rows = (
        *((name, n, hidden, out, table.rank_qkv, shape.bias_qkv) for (name, n), out in zip(of_qkv, qkv, strict=True)),
        ("attention_out", 1, width, hidden, table.rank_attention_out, shape.bias_attention_out),
        ("ffn_in", widening, hidden, shape.ffn_in_rows(table.ffn), table.rank_ffn_in, shape.bias_ffn_in),
        ("ffn_out", 1, table.ffn, hidden, table.rank_ffn_out, shape.bias_ffn_out),
    )
    return tuple(
        Projection(name, count, inputs, outputs, effective_rank(rank, inputs, outputs), bias)
        for name, count, inputs, outputs, rank, bias in rows
    )


def costs(shape: ModelShape, subnets: Sequence[SubnetConfig] | SubnetTable, workload: Workload | None = None) -> Cost:
    """Costs of many subnets at once; every array of the result is ``(subnets,)``."""
    table = subnets if isinstance(subnets, SubnetTable) else SubnetTable.from_subnets(subnets)
    workload = workload or Workload()
    kept = ~table.skipped
    tokens = workload.batch_size * workload.new_tokens
    weights = np.zeros(table.heads.shape, dtype=np.int64)
    biases = np.zeros(table.heads.shape, dtype=np.int64)
    for projection in projections(shape, table):
        weights += projection.count * projection.weights
        if projection.bias:
            # Of a sublayer that is not there the last bias is left: its mean output.
            biases += projection.count * projection.outputs
    block_parameters = np.where(kept, weights + biases + _norms(shape, table), 0)
    # Scores and weighted values: two products of (new tokens x all tokens x head_dim) per head.
    scores = 2 * table.heads * shape.head_dim * tokens * workload.sequence_length
    macs = (tokens * weights + scores) * kept
    head = tokens * shape.head_macs_per_token + workload.batch_size * shape.head_macs_per_sequence
    lacking = shape.hidden_size - table.hidden_size
    outside = shape.other_parameters - shape.stream_parameters // shape.hidden_size * lacking
    stem = workload.batch_size * shape.stem_macs_per_sequence // shape.hidden_size * lacking
    output = output_projection(shape, table)
    output_parameters = output + shape.hidden_size * (output > 0)
    # It follows the last norm, which belongs to the last block where norms follow the sums.
    in_blocks = output_parameters * shape.post_norm
    quantized = np.where(kept, weights, 0)
    of_blocks = block_parameters.sum(axis=1) + in_blocks
    parameters = of_blocks + outside + output_parameters - in_blocks
    return Cost(
        parameters=parameters,
        block_parameters=of_blocks,
        macs=macs.sum(axis=1) + head - stem + tokens * output,
        weight_bytes=(quantized * _BYTES[table.precision]).sum(axis=1) + 4.0 * (parameters - quantized.sum(axis=1)),
        kv_cache_bytes=4 * _cached(shape, table, workload).sum(axis=1) * (workload.phase != "encode"),
        peak_activation_bytes=4 * _alive(shape, table, workload).max(axis=1),
    )


def _cached(shape: ModelShape, table: SubnetTable, workload: Workload) -> NDArray[np.int64]:
    """Keys and values of all tokens after a run, as numbers, ``(subnets, blocks)``."""
    numbers = 2 * workload.batch_size * workload.all_tokens * shape.head_dim
    return np.where(table.skipped, 0, numbers * table.kv_heads)


def _alive(shape: ModelShape, table: SubnetTable, workload: Workload) -> NDArray[np.int64]:
    """Activations alive at once in every block, as numbers, ``(subnets, blocks)``."""
    batch, new, everything = workload.batch_size, workload.new_tokens, workload.all_tokens
    stream = batch * new * table.hidden_size[:, None]
    scores = batch * table.heads * new * everything
    attention = batch * new * table.heads * shape.head_dim + _cached(shape, table, workload) + scores
    ffn = batch * new * table.ffn * (2 if shape.gated else 1)
    return stream + np.where(table.skipped, 0, np.maximum(attention, ffn))


def output_projection(shape: ModelShape, table: SubnetTable) -> NDArray[np.int64]:
    """Weights, ``(subnets,)``, of what brings a narrower stream's last norm back to full width; 0 where it is full."""
    narrow = table.hidden_size < shape.hidden_size
    return np.where(narrow, table.hidden_size * shape.hidden_size, 0)


def _norms(shape: ModelShape, table: SubnetTable) -> NDArray[np.int64]:
    """Parameters of every block outside its projections, ``(subnets, blocks)``: norms are as wide as the stream."""
    lacking, full = shape.hidden_size - table.hidden_size[:, None], shape.hidden_size

    def narrowed(parameters: int) -> NDArray[np.int64]:
        return parameters - parameters // full * lacking

    # An attention has norms of heads beside the one of the stream, which is like the FFN's.
    ffn = narrowed(shape.ffn_other_parameters)
    attention = np.broadcast_to(
        shape.attention_other_parameters - shape.ffn_other_parameters + ffn, table.heads.shape
    ).copy()
    attention[:, :1] -= narrowed(shape.first_block_lacks)
    return narrowed(shape.block_other_parameters) + attention * (table.heads > 0) + ffn * (table.ffn > 0)


def cost(shape: ModelShape, subnet: SubnetConfig, workload: Workload | None = None) -> Cost:
    """Costs of one subnet: the arrays of ``costs`` with one element, taken out."""
    many = costs(shape, [subnet], workload)
    return Cost(*(getattr(many, field.name)[0] for field in fields(many)))
