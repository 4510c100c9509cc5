"""Which choices of a space the stock configuration class can express: one size for all blocks, and not every size."""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.choices import SWITCHES, Choice, Dimension
from search_spaces.families import FAMILIES
from search_spaces.shapes import ModelShape
from search_spaces.subnet import RANKS


def restrict(shape: ModelShape, dimensions: Sequence[Dimension]) -> list[Dimension]:
    """The dimensions with the choices that subnets of the stock class have; blocks may still be skipped one by one.

    Args:
        shape: The teacher's sizes.
        dimensions: What a space varies.

    Raises:
        ValueError: A dimension has no such choice, or its blocks have different choices.
    """
    found: dict[tuple[str, int | None], Dimension] = {}
    for dimension in dimensions:
        choices = tuple(choice for choice in dimension.choices if _expressible(shape, dimension, choice))
        if not choices:
            offered = ", ".join(map(str, dimension.choices))
            raise ValueError(f"space: `homogeneous` leaves {dimension.parameter!r} no choice of {offered}.")
        block = dimension.block if dimension.name == "skip" else None
        first = found.setdefault((dimension.name, block), Dimension(dimension.name, choices, block))
        if first.choices != choices:
            raise ValueError(
                f"space: `homogeneous` needs one list of `{dimension.name}` for all blocks, without overrides."
            )
    return list(found.values())


def _expressible(shape: ModelShape, dimension: Dimension, choice: Choice) -> bool:
    family = next(row for row in FAMILIES if row.name == shape.family)
    name = dimension.name
    if name == "skip":
        # ModernBERT's first block has no norm of its own before attention, and the stock class makes it so.
        return not (choice and shape.first_block_lacks and dimension.block in (0, None))
    if name in SWITCHES or name in RANKS:
        return not choice
    if name == "heads" and family.config_heads_divide and shape.hidden_size % int(choice):
        return False
    full = {"hidden_size": shape.hidden_size}
    if not family.config_heads:
        full |= {"heads": shape.heads, "queries_per_group": shape.heads // shape.kv_heads}
    return name not in full or choice == full[name]
