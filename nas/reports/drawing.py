"""Drawings of architectures: one SVG per subnet, block by block, inside the teacher's outline.

Each block is a column: attention grows upwards from the middle line, the FFN downwards, both as shares of the
teacher's. The outline is the teacher; hatched parts are low rank; a dashed column is a block that is not there.
"""

from __future__ import annotations

import html

from search_spaces.subnet import BlockConfig, SubnetConfig

_HALF = 54  # Height of a full attention or FFN bar, in SVG units.
_MIDDLE = 74
_HEIGHT = 158

# Referred to by every drawing of a page: put it into the page once.
HATCH = (
    '<svg class="hidden" width="0" height="0" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="3" height="6" class="hatch"/></pattern></defs></svg>'
)


def draw_subnet(subnet: SubnetConfig, teacher: SubnetConfig, label: str) -> str:
    """An SVG of one architecture.

    Args:
        subnet: What to draw.
        teacher: The largest subnet, whose sizes are the outline.
        label: What screen readers call the drawing.

    Raises:
        ValueError: The two have different numbers of blocks.
    """
    if len(subnet.blocks) != len(teacher.blocks):
        raise ValueError(
            f"A subnet is drawn beside a teacher with as many blocks, but got {len(subnet.blocks)} "
            f"and {len(teacher.blocks)}."
        )
    column = 52 if len(subnet.blocks) <= 14 else 38
    width = column * len(subnet.blocks) + 8
    columns = "".join(
        _draw_block(index, block, full, 4 + index * column, column - 6)
        for index, (block, full) in enumerate(zip(subnet.blocks, teacher.blocks, strict=True))
    )
    middle = f'<line class="middle" x1="0" x2="{width}" y1="{_MIDDLE}" y2="{_MIDDLE}"/>'
    return (
        f'<svg class="subnet" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" role="img" '
        f'aria-label="{html.escape(label)}">{columns}{middle}</svg>'
    )


def describe_block(index: int, block: BlockConfig) -> str:
    """One block in words: ``block 3: 9 heads, FFN 768, rank 96 on query, key, value``."""
    if block.skipped:
        return f"block {index}: skipped"
    heads = f"{block.heads} heads" if block.heads == block.kv_heads else f"{block.heads}/{block.kv_heads} heads"
    parts = [heads if block.heads else "no attention", f"FFN {block.ffn}" if block.ffn else "no FFN"]
    for rank, where in (
        (block.rank_qkv, "query, key, value"),
        (block.rank_attention_out, "attention output"),
        (block.rank_ffn_in, "FFN input"),
        (block.rank_ffn_out, "FFN output"),
    ):
        if rank:
            parts.append(f"rank {rank} on {where}")
    if block.precision != "fp32":
        parts.append(block.precision)
    return f"block {index}: {', '.join(parts)}"


def _draw_block(index: int, block: BlockConfig, full: BlockConfig, x: int, width: int) -> str:
    title = f"<title>{html.escape(describe_block(index, block))}</title>"
    outline_class = "ghost skipped" if block.skipped else "ghost"
    top, height = _MIDDLE - _HALF, 2 * _HALF
    parts = [title, f'<rect class="{outline_class}" x="{x}" y="{top}" width="{width}" height="{height}" rx="3"/>']
    centre = x + width / 2
    if block.skipped:
        parts.append(_text(centre, _MIDDLE - 6, "skip", "small"))
    else:
        ranks_above = _ranks((block.rank_qkv, "r"), (block.rank_attention_out, "o"))
        ranks_below = _ranks((block.rank_ffn_in, "r"), (block.rank_ffn_out, "o"))
        attention = _HALF * block.heads / max(full.heads, 1)
        ffn = _HALF * block.ffn / max(full.ffn, 1)
        parts.append(_bar(x, _MIDDLE - attention, width, attention, "attention", hatched=bool(ranks_above)))
        parts.append(_bar(x, _MIDDLE, width, ffn, "ffn", hatched=bool(ranks_below)))
        parts.append(_text(centre, top - 5, str(block.heads), "size"))
        parts.append(_text(centre, top + height + 12, str(block.ffn), "size"))
        parts.extend(_text(centre, _MIDDLE - 5 - 11 * line, text, "rank") for line, text in enumerate(ranks_above))
        parts.extend(_text(centre, _MIDDLE + 12 + 11 * line, text, "rank") for line, text in enumerate(ranks_below))
    note = str(index) if block.precision == "fp32" or block.skipped else f"{index} {block.precision}"
    parts.append(_text(centre, _HEIGHT - 4, note, "index"))
    return f"<g>{''.join(parts)}</g>"


def _ranks(*ranks: tuple[int, str]) -> list[str]:
    return [f"{letter}{rank}" for rank, letter in ranks if rank]


def _bar(x: float, y: float, width: float, height: float, kind: str, *, hatched: bool) -> str:
    shape = f'x="{x}" y="{y:.1f}" width="{width}" height="{height:.1f}" rx="3"'
    return f'<rect class="{kind}" {shape}/>' + (f'<rect class="hatched" {shape}/>' if hatched else "")


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'
