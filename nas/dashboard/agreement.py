"""Which choices the members of a front agree on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nas.reports.figure_parts import Figure, heat_figure
from search_spaces.subnet import RANKS, BlockConfig, SubnetConfig


def agreement_figure(subnets: Sequence[SubnetConfig]) -> Figure | None:
    """Heat map: which share of the subnets makes which choice in which block; None without subnets."""
    if not subnets:
        return None
    depth = max(len(subnet.blocks) for subnet in subnets)
    counts: dict[str, Counter[int]] = {}
    for subnet in subnets:
        for index, block in enumerate(subnet.blocks):
            for name in _choices(block):
                counts.setdefault(name, Counter())[index] += 1
    names = sorted(counts, key=_order)
    shares = [[counts[name][index] / len(subnets) for index in range(depth)] for name in names]
    return heat_figure(
        shares, [str(i) for i in range(depth)], names, ("block", "share of the front"), ".0%", zeros=False
    )


def _choices(block: BlockConfig) -> list[str]:
    if block.skipped:
        return ["skipped"]
    ranks = [f"{name.replace('_', ' ')} {getattr(block, name)}" for name in RANKS if getattr(block, name)]
    precision = [] if block.precision == "fp32" else [block.precision]
    return [f"heads {block.heads}", f"FFN {block.ffn}", *ranks, *precision]


def _order(name: str) -> tuple[int, str, int]:
    stem, _, size = name.rpartition(" ")
    kinds = ("", "heads", "FFN", *(rank.replace("_", " ") for rank in RANKS))
    kind = kinds.index(stem) if stem in kinds else len(kinds)
    return kind, stem, int(size) if size.isdigit() else 0
