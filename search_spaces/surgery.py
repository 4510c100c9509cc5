"""What a subnet changes in a plain model of its teacher's class: blocks left out, projections of other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from search_spaces import modeling_subnet
from search_spaces.families import ModelFamily, family_of
from search_spaces.layout import layouts
from search_spaces.shapes import ModelShape
from search_spaces.subnet import BlockConfig, SubnetConfig


def subnet_changes(
    family: ModelFamily,
    shape: ModelShape,
    subnet: SubnetConfig,
    layer_types: Sequence[str] | None,
    tied: Sequence[str] = (),
) -> dict[str, Any]:
    """What `modeling_subnet.shrink` is to do to a whole model, as plain data.

    Args:
        family: The teacher's row.
        shape: The teacher's sizes.
        subnet: A canonical subnet.
        layer_types: Types of the blocks that are left, where the family has them.
        tied: Paths, in the base model, of embeddings that a head is tied to: see `families.tied_stem`.
    """
    if layer_types is not None:
        # What the types of left-out blocks were makes no difference.
        types = dict(zip(subnet.kept, layer_types, strict=True))
        layer_types = [types.get(index, layer_types[0]) for index in range(shape.num_blocks)]
    narrow = subnet.hidden_size != shape.hidden_size
    stream = {"stream": stream_changes(family, shape, subnet.hidden_size, tied)} if narrow else {}
    return stream | {
        "blocks": family.blocks,
        "num_blocks": shape.num_blocks,
        "layer_types": layer_types,
        "kept": list(subnet.kept),
        "cached": list(family.layer_index),
        "changes": [block_changes(family, shape, subnet.blocks[index], subnet.hidden_size) for index in subnet.kept],
    }


def stream_changes(family: ModelFamily, shape: ModelShape, hidden_size: int, tied: Sequence[str]) -> dict[str, Any]:
    """What a narrower residual stream changes outside the projections: arguments of `modeling_subnet.narrow_stream`."""
    return {
        "size": hidden_size,
        "full": shape.hidden_size,
        "stem": list(family.stem),
        "tied": list(tied),
        "norms": [path for path in (family.stem_norm, family.final_norm) if path],
        "block_norms": [family.attention_norm, family.ffn_norm],
        "last": "" if family.expands_output else family.final_norm or family.ffn_norm,
    }


def block_changes(
    family: ModelFamily, shape: ModelShape, block: BlockConfig, hidden_size: int | None = None
) -> dict[str, Any]:
    """What one block's sizes change in a whole block, as plain data."""
    full = BlockConfig(heads=shape.heads, kv_heads=shape.kv_heads, ffn=shape.ffn)
    before, after = layouts(family, shape, full), layouts(family, shape, block, hidden_size)
    linears = {
        path: {"inputs": new.inputs, "outputs": new.outputs, "rank": new.rank}
        for path, new in after.items()
        if new.inputs and new.outputs and (new.inputs, new.outputs, new.rank) != (*before[path].sides, 0)
    }
    return {"absent": absent(family, block), "linears": linears, "attributes": remembered(family, shape, block)}


def absent(family: ModelFamily, block: BlockConfig) -> list[dict[str, Any]]:
    """Which sublayers a block lacks, as arguments of `modeling_subnet.leave_out`."""
    attention = {"module": family.attention, "out": family.attention_out, "norm": family.attention_norm, "pair": True}
    ffn = {"module": family.ffn, "out": family.ffn_out, "norm": family.ffn_norm, "pair": False}
    gone = [attention] * (block.heads == 0) + [ffn] * (block.ffn == 0)
    return [sublayer | ({"norm": None} if family.post_norm else {}) for sublayer in gone]


def remembered(family: ModelFamily, shape: ModelShape, block: BlockConfig) -> dict[str, dict[str, int]]:
    """The sizes that modules of one class or another remember: path in the block -> attribute -> value."""
    counts = {
        "num_attention_heads": block.heads,
        "num_heads": block.heads,
        "n_heads": block.heads,
        "all_head_size": block.heads * shape.head_dim,
        "split_size": block.heads * shape.head_dim,
        "num_key_value_heads": block.kv_heads,
        "num_key_value_groups": block.heads // max(block.kv_heads, 1),
    }
    return {family.attention: counts, family.ffn: {"intermediate_size": block.ffn}}


def set_remembered(block: nn.Module, family: ModelFamily, shape: ModelShape, config: BlockConfig) -> None:
    """Keep the sizes that a block's modules remember in step with its projections."""
    for path, values in remembered(family, shape, config).items():
        modeling_subnet.set_existing(block.get_submodule(path), values)


class Sublayers:
    """Takes the attention or the FFN out of one elastic block, and puts it back.

    Args:
        block: A block of a supernet, with both.
        family: Its family.
    """

    def __init__(self, block: nn.Module, family: ModelFamily) -> None:
        self._block = block
        self._family = family
        paths = [family.attention, family.ffn, family.attention_out, family.ffn_out]
        paths += [] if family.post_norm else [family.attention_norm, family.ffn_norm]
        self._whole = {path: block.get_submodule(path) for path in paths}
        self._gone: list[dict[str, Any]] = []

    def arrange(self, config: BlockConfig) -> None:
        """Leave the block what a configuration has; its leaves stay the same modules throughout."""
        gone = absent(self._family, config)
        if gone == self._gone:
            return
        for path, module in self._whole.items():
            self._block.set_submodule(path, module)
        for sublayer in gone:
            modeling_subnet.leave_out(self._block, **sublayer, constant=self._whole[sublayer["out"]])
        self._gone = gone


def keep_blocks(
    model: nn.Module, blocks: Sequence[nn.Module], kept: Sequence[int], layer_types: Sequence[str] | None
) -> None:
    """Leave a model some of its blocks.

    Args:
        model: A `transformers` model.
        blocks: All the blocks of the full model.
        kept: Which of them are left.
        layer_types: The full model's ``config.layer_types``, where it has them.
    """
    family = family_of(model)
    types = None if layer_types is None else [layer_types[index] for index in kept]
    _check_cache(family, [blocks[index] for index in kept], types)
    modeling_subnet.keep_blocks(model, family.blocks, [blocks[index] for index in kept], family.layer_index, types)


def reshape_block(block: nn.Module, family: ModelFamily, shape: ModelShape, config: BlockConfig) -> None:
    """Give every projection of a full block the sizes of a variant; what its new weights hold is undefined."""
    for path, sizes in block_changes(family, shape, config)["linears"].items():
        block.set_submodule(path, modeling_subnet.resized(block.get_submodule(path), **sizes))
    set_remembered(block, family, shape, config)


def _check_cache(family: ModelFamily, blocks: Sequence[nn.Module], layer_types: Sequence[str] | None) -> None:
    """A KV cache numbers the blocks with attention, but `transformers` finds a place's window by the block's number."""
    attends = [not isinstance(block.get_submodule(family.attention), modeling_subnet.Absent) for block in blocks]
    if family.causal and layer_types is not None and len(set(layer_types)) > 1 and not all(attends):
        raise ValueError(
            "subnet: all blocks must have attention where they attend to different windows "
            f"({', '.join(layer_types)}), but one has none."
        )
