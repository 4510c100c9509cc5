"""One candidate architecture, as frozen data: hashable, canonical, with a JSON round trip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
RANKS = ("rank_qkv", "rank_attention_out", "rank_ffn_in", "rank_ffn_out")


def saves(rank: Any, inputs: Any, outputs: Any) -> Any:
    """Whether two factors of a rank have fewer weights than the matrix: the break-even rule, for numbers and arrays."""
    return (rank > 0) & (rank * (inputs + outputs) < inputs * outputs)


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """The shape of one transformer block.

    Args:
        heads: Query heads kept; 0 means that the block has no attention.
        kv_heads: Key/value heads kept. Equals ``heads`` unless queries are grouped.
        ffn: FFN neurons kept; 0 means that the block has no FFN.
        rank_qkv: Rank of each of the query, key and value projections; 0 means dense.
        rank_attention_out: Rank of the attention's output projection; 0 means dense.
        rank_ffn_in: Rank of the FFN's input (and gate) projections; 0 means dense.
        rank_ffn_out: Rank of the FFN's output projection; 0 means dense.
        precision: Precision of the block's projection weights.

    A block with neither attention nor FFN is *skipped*: it is not in the extracted model at all.

    Raises:
        ValueError: A size is negative, or the heads are not a multiple of the key/value heads.
    """

    heads: int
    kv_heads: int
    ffn: int
    rank_qkv: int = 0
    rank_attention_out: int = 0
    rank_ffn_in: int = 0
    rank_ffn_out: int = 0
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "precision":
                if value not in PRECISIONS:
                    raise ValueError(f"`precision` must be one of {', '.join(PRECISIONS)}, but got {value!r}.")
            elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"`{field.name}` must be a whole number >= 0, but got {value!r}.")
        if (self.heads == 0) != (self.kv_heads == 0) or (self.kv_heads and self.heads % self.kv_heads):
            raise ValueError(f"`heads` must be a multiple of `kv_heads`, but got {self.heads} and {self.kv_heads}.")

    @property
    def skipped(self) -> bool:
        """Whether nothing of the block is left."""
        return self.heads == 0 and self.ffn == 0


SKIPPED = BlockConfig(heads=0, kv_heads=0, ffn=0)


@dataclass(frozen=True, slots=True)
class SubnetConfig:
    """One candidate architecture: every block of the teacher, in order, and the residual width.

    Two equal architectures may be written differently (a rank that saves nothing, choices of a skipped block);
    ``SearchSpace.canonical`` gives the one form under which they compare and hash equal.
    """

    blocks: tuple[BlockConfig, ...]
    hidden_size: int

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("`blocks` must not be empty.")
        if type(self.hidden_size) is not int or self.hidden_size <= 0:
            raise ValueError(f"`hidden_size` must be a whole number > 0, but got {self.hidden_size!r}.")

    @property
    def depth(self) -> int:
        """How many blocks are left."""
        return sum(not block.skipped for block in self.blocks)

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices, in the teacher, of the blocks that are left."""
        return tuple(index for index, block in enumerate(self.blocks) if not block.skipped)

    @property
    def plain(self) -> SubnetConfig:
        """The same sizes with every block in fp32."""
        return replace(self, blocks=tuple(replace(block, precision="fp32") for block in self.blocks))

    def on_device(self, precision: Precision) -> SubnetConfig:
        """What runs on a device that brings models to a precision: blocks of fp32, which is no own choice, have it."""
        own = tuple(
            replace(b, precision=precision) if b.precision == "fp32" and not b.skipped else b for b in self.blocks
        )
        return replace(self, blocks=own)

    def with_block(self, index: int, block: BlockConfig) -> SubnetConfig:
        """The same architecture with one block replaced."""
        return replace(self, blocks=(*self.blocks[:index], block, *self.blocks[index + 1 :]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads back."""
        return {"hidden_size": self.hidden_size, "blocks": [asdict(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SubnetConfig:
        """Rebuild from plain data.

        Raises:
            ValueError: A key is missing or unknown, or a value breaks a rule.
        """
        _check_keys(data, {"hidden_size", "blocks"}, set(), "subnet")
        if not isinstance(data["blocks"], Sequence) or isinstance(data["blocks"], str):
            raise ValueError(f"subnet: `blocks` must be a list, but got {type(data['blocks']).__name__}.")
        names = {field.name for field in fields(BlockConfig)}
        blocks = []
        for index, block in enumerate(data["blocks"]):
            if not isinstance(block, Mapping):
                raise ValueError(f"subnet: block {index} must be a mapping, but got {type(block).__name__}.")
            _check_keys(block, {"heads", "kv_heads", "ffn"}, names, f"subnet block {index}")
            blocks.append(BlockConfig(**block))
        return cls(blocks=tuple(blocks), hidden_size=data["hidden_size"])

    def to_json(self) -> str:
        """One line of JSON with sorted keys: the text under which caches and studies know the architecture."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> SubnetConfig:
        """Rebuild from ``to_json``'s text; the same errors as ``from_dict``."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"subnet: not valid JSON ({error}).") from error
        if not isinstance(data, Mapping):
            raise ValueError(f"subnet: must be a JSON object, but got {type(data).__name__}.")
        return cls.from_dict(data)


def _check_keys(data: Mapping[str, Any], required: set[str], optional: set[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what}: must be a mapping of {', '.join(sorted(required))}, but got {data!r:.80}.")
    if missing := sorted(required - set(data)):
        raise ValueError(f"{what}: key {missing[0]!r} is missing.")
    if extra := sorted(set(data) - required - optional):
        raise ValueError(f"{what}: unknown key {extra[0]!r}; known keys are {', '.join(sorted(required | optional))}.")


@dataclass(frozen=True)
class SubnetTable:
    """Many subnets as columns, so that costs and features of 100,000 of them are a few array operations.

    Every array is ``(subnets, blocks)`` of int64, but ``hidden_size``, which is ``(subnets,)``, and ``precision``,
    which holds indices into ``PRECISIONS``.
    """

    hidden_size: NDArray[np.int64]
    heads: NDArray[np.int64]
    kv_heads: NDArray[np.int64]
    ffn: NDArray[np.int64]
    rank_qkv: NDArray[np.int64]
    rank_attention_out: NDArray[np.int64]
    rank_ffn_in: NDArray[np.int64]
    rank_ffn_out: NDArray[np.int64]
    precision: NDArray[np.int64]

    @classmethod
    def from_subnets(cls, subnets: Sequence[SubnetConfig]) -> SubnetTable:
        """Columns of a list of subnets that all have the same number of blocks."""
        names = [field.name for field in fields(BlockConfig) if field.name != "precision"]
        columns = {
            name: np.array([[getattr(block, name) for block in subnet.blocks] for subnet in subnets], dtype=np.int64)
            for name in names
        }
        precision = [[PRECISIONS.index(block.precision) for block in subnet.blocks] for subnet in subnets]
        return cls(
            hidden_size=np.array([subnet.hidden_size for subnet in subnets], dtype=np.int64),
            precision=np.array(precision, dtype=np.int64),
            **columns,
        )

    def subnets(self) -> list[SubnetConfig]:
        """The rows as objects."""
        names = [field.name for field in fields(BlockConfig)]
        columns = np.stack([getattr(self, name) for name in names], axis=-1).tolist()
        made: dict[tuple[int, ...], BlockConfig] = {}
        subnets = []
        for row, hidden_size in zip(columns, self.hidden_size.tolist(), strict=True):
            for values in map(tuple, row):
                if values not in made:  # Many subnets are made of few distinct blocks.
                    named = dict(zip(names, values, strict=True))
                    made[values] = BlockConfig(**named | {"precision": PRECISIONS[named["precision"]]})
            subnets.append(SubnetConfig(tuple(made[tuple(values)] for values in row), hidden_size))
        return subnets

    def __len__(self) -> int:
        return len(self.hidden_size)

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """``(subnets, blocks)``: which blocks are not there."""
        gone: NDArray[np.bool_] = (self.heads == 0) & (self.ffn == 0)
        return gone
