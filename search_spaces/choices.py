"""One dimension of a search space, and its choices as they stand in YAML resolved against a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.families import FAMILIES
from search_spaces.shapes import ModelShape
from search_spaces.subnet import PRECISIONS, RANKS

Choice = int | str | bool
# Yes or no, cheapest first.
SWITCHES = ("skip", "no_attention", "no_ffn")
BLOCK_DIMENSIONS = (*SWITCHES, "heads", "queries_per_group", "ffn", *RANKS, "precision")
# Chosen once for the whole model.
MODEL_DIMENSIONS = ("hidden_size",)


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that varies.

    Args:
        name: One of `BLOCK_DIMENSIONS` and `MODEL_DIMENSIONS`.
        choices: Values, from least to most expensive; a trial's parameter is an index into them.
        block: The block it varies, or None when one choice serves all blocks.
    """

    name: str
    choices: tuple[Choice, ...]
    block: int | None

    @property
    def parameter(self) -> str:
        """The parameter's name in an Optuna study."""
        return self.name if self.block is None else f"block{self.block}.{self.name}"

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The choices as integers: precisions by their index."""
        values = [PRECISIONS.index(c) if isinstance(c, str) else int(c) for c in self.choices]
        return np.array(values, dtype=np.int64)


def check(
    shape: ModelShape,
    named: Sequence[Mapping[str, Any]],
    own: Mapping[int, Mapping[str, Any]],
    per_block: Sequence[str],
    min_blocks: int,
) -> None:
    """What is wrong with a space whatever its choices are.

    Raises:
        ValueError: A dimension is unknown or misplaced, or a number is out of range.
    """
    known = (*BLOCK_DIMENSIONS, *MODEL_DIMENSIONS)
    if strange := [name for names in named for name in names if name not in known]:
        raise ValueError(f"space: unknown dimension {strange[0]!r}; known are {', '.join(known)}.")
    if misplaced := [n for n in MODEL_DIMENSIONS if n in per_block or any(n in values for values in own.values())]:
        raise ValueError(f"space: `{misplaced[0]}` is one for the whole model, but is given per block.")
    if not 1 <= min_blocks <= shape.num_blocks:
        raise ValueError(f"space: `min_blocks` must be between 1 and {shape.num_blocks}, but got {min_blocks}.")
    if unknown := sorted(set(own) - set(range(shape.num_blocks))):
        raise ValueError(
            f"space: `overrides.{unknown[0]}` must be of a block from 0 to {shape.num_blocks - 1}, as the model has "
            f"{shape.num_blocks}."
        )


def check_kinds(choices: Any, per_block: Any, overrides: Any, round_to: Any, min_blocks: Any) -> None:
    """What is wrong with a space as it stands in YAML, before anything is read of it.

    Raises:
        ValueError: Something is of another kind than it should be.
    """
    own = {f"overrides.{key}": value for key, value in overrides.items()} if isinstance(overrides, Mapping) else {}
    for name, value in {"choices": choices, "overrides": overrides, "round_to": round_to, **own}.items():
        if not isinstance(value, Mapping):
            raise ValueError(f"space: `{name}` must be a mapping such as {{ffn: ...}}, but got {value!r}.")
    if strange := [key for key in overrides if isinstance(key, bool) or not isinstance(key, int)]:
        raise ValueError(f"space: `overrides` must name blocks by their numbers, but got {strange[0]!r}.")
    if not isinstance(per_block, Sequence) or isinstance(per_block, str):
        raise ValueError(f"space: `per_block` must be a list such as [heads, ffn], but got {per_block!r}.")
    numbers = {f"round_to.{key}": value for key, value in round_to.items()} | {"min_blocks": min_blocks}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and name != "min_blocks"):
            raise ValueError(f"space: `{name}` must be a whole number >= 1, but got {value!r}.")


def resolve(shape: ModelShape, name: str, raw: Any, multiple: int, where: str = "choices") -> tuple[Choice, ...]:
    """Choices of one dimension, checked, without repeats, from least to most expensive.

    Args:
        shape: The teacher's sizes.
        name: The dimension's.
        raw: Its choices as they stand in YAML.
        multiple: What fractions are rounded to.
        where: Where they stand, for messages.

    Raises:
        ValueError: A choice does not fit the teacher.
    """
    values = list(raw) if isinstance(raw, Sequence) and not isinstance(raw, str) else [raw]
    if not values:
        raise ValueError(f"space: `{where}.{name}` must have at least one choice, but got none.")
    if name in SWITCHES:
        if any(not isinstance(value, bool) for value in values):
            raise ValueError(f"space: `{where}.{name}` takes true and false, but got {values}.")
        return tuple(sorted(set(values), reverse=True))
    if name == "precision":
        if bad := [value for value in values if value not in PRECISIONS]:
            raise ValueError(f"space: `{where}.precision` must be one of {', '.join(PRECISIONS)}, but got {bad[0]!r}.")
        return tuple(sorted(set(values), key=PRECISIONS.index, reverse=True))
    resolved = {_resolve_number(shape, name, value, multiple, where) for value in values}
    if name == "hidden_size" and min(resolved) < shape.hidden_size:
        family = next((row for row in FAMILIES if row.name == shape.family), None)
        if family is None or not family.stem:
            raise ValueError(
                f"space: `{where}.hidden_size` must be the model's {shape.hidden_size} in the family {shape.family}, "
                f"whose residual stream cannot be made narrower, but got {min(resolved)}."
            )
    if name in RANKS:  # 0 means dense, which is the most expensive.
        return tuple(sorted(resolved - {0})) + ((0,) if 0 in resolved else ())
    return tuple(sorted(resolved))


def _resolve_number(shape: ModelShape, name: str, value: Any, multiple: int, where: str) -> int:
    group = shape.heads // shape.kv_heads
    full = {"heads": shape.heads, "ffn": shape.ffn, "queries_per_group": group}.get(name, shape.hidden_size)
    # Heads come in whole key/value groups, and the residual stream in whole heads.
    unit = {"heads": group, "hidden_size": shape.head_dim}.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"space: `{where}.{name}` takes numbers, but got {value!r}.")
    if (isinstance(value, float) and not value.is_integer()) or (value == 1.0 and isinstance(value, float)):
        if not 0 < value <= 1:
            raise ValueError(f"space: a fraction for `{where}.{name}` must be in (0, 1], but got {value}.")
        if multiple > full or (multiple % unit and unit % multiple):
            rule = f"at most the model's {full}" if multiple > full else f"a multiple or a divisor of {unit}"
            raise ValueError(f"space: `round_to.{name}` must be {rule}, but got {multiple}.")
        number = min(full, max(multiple, round(value * full / multiple) * multiple))
        return max(unit, number // unit * unit)
    number, low = int(value), 0 if name in RANKS else 1
    if not low <= number <= full:
        what = "hidden size" if name in (*RANKS, "hidden_size") else name
        raise ValueError(
            f"space: `{where}.{name}` must be between {low} and the model's {what} {full}, but got {value}."
        )
    if number % unit:
        why = "whole key/value groups" if name == "heads" else "whole heads"
        raise ValueError(f"space: `{where}.{name}` must be a multiple of {unit} ({why}), but got {value}.")
    return number
