"""Integers of a block's exported graph that follow from its sizes: head counts in reshapes, widths in splits.

Some families' graphs have none (BERT reshapes to ``(batch, tokens, -1, head_dim)``), others bake them in (GPT-2, Llama,
ViT). Which integers follow from which size is not guessed from their values: a twin of the model with other sizes is
exported beside it, and where their integers differ, the sizes say why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_models.backends.graph_places import GraphTemplateError
from latency_models.backends.onnx_passes import scopes_of
from search_spaces.families import FAMILIES
from search_spaces.shapes import ModelShape

if TYPE_CHECKING:
    import onnx_ir as ir

    from search_spaces.elastic import LinearWeights

# Sizes of a block: key/value heads, query heads of each, FFN neurons.
Sizes = tuple[int, int, int]
_LARGE = 2**31


@dataclass(frozen=True, slots=True)
class SizePlace:
    """A constant of one block of which some integers follow from the block's sizes.

    Args:
        block: The block's number.
        name: The initializer's name; nothing outside the block reads it.
        values: Its integers in the teacher.
        powers: For each integer, the powers of the three sizes that it is proportional to.
    """

    block: int
    name: str
    values: tuple[int, ...]
    powers: tuple[Sizes, ...]

    def resized(self, full: Sizes, sizes: Sizes) -> list[int]:
        """The integers for other sizes than the teacher's."""
        resized = []
        for value, powers in zip(self.values, self.powers, strict=True):
            for old, new, power in zip(full, sizes, powers, strict=True):
                value = value * new**power // old**power  # noqa: PLW2901
            resized.append(value)
        return resized


@dataclass(frozen=True, slots=True)
class Repeat:
    """Where keys or values of one block are repeated for the query heads of their group, by the values' names."""

    block: int
    source: str
    result: str


def find_repeats(model: ir.Model, places: Sequence[SizePlace]) -> tuple[Repeat, ...]:
    """The chains of ``Unsqueeze, Expand, Reshape`` that repeat what a group shares."""
    grouped = {place.name: place.block for place in places if (0, 1, 0) in place.powers}
    found = []
    for node in model.graph:
        if node.op_type != "Expand" or node.inputs[0] is None or node.inputs[1] is None:
            continue
        shape = node.inputs[1].producer()
        names = [value.name for value in (shape.inputs if shape is not None else node.inputs[1:2]) if value is not None]
        block = next((grouped[name] for name in names if name in grouped), None)
        unsqueeze, uses = node.inputs[0].producer(), list(node.outputs[0].uses())
        if block is None or unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or len(uses) != 1:
            continue
        source, reshape = unsqueeze.inputs[0], uses[0].node
        if source is not None and reshape.op_type == "Reshape":
            found.append(Repeat(block, str(source.name), str(reshape.outputs[0].name)))
    return tuple(found)


def full_sizes(shape: ModelShape) -> Sizes:
    """The sizes of the teacher's blocks."""
    return shape.kv_heads, shape.heads // shape.kv_heads, shape.ffn


def sizes_of_weights(weights: Mapping[str, LinearWeights], shape: ModelShape, root: str) -> dict[int, Sizes]:
    """Block -> the sizes that its projections' tensors have; what is missing is as large as the teacher's.

    Args:
        weights: Tensors by the projections' paths in the teacher.
        shape: The teacher's sizes.
        root: Path of the list of blocks in the teacher.
    """
    family = next(row for row in FAMILIES if row.name == shape.family)
    found = {}
    for index in range(shape.num_blocks):
        paths = (f"{root}.{index}.{path}" for path in (family.attention_out, family.key, family.ffn_out))
        out, key, ffn = (weights.get(path) for path in paths)
        kv_heads, group, neurons = full_sizes(shape)
        if key is not None and out is not None:
            heads = out.in_features // shape.head_dim
            kv_heads = heads if shape.fused_qkv else key.out_features // shape.head_dim
            group = heads // max(kv_heads, 1)
        found[index] = (kv_heads, group, neurons if ffn is None else ffn.in_features)
    return found


def may_have_sizes(model: ir.Model, shape: ModelShape, root: str) -> bool:
    """Whether any integer in a block could follow from its sizes: only then is a twin worth its export.

    Args:
        model: The teacher's graph.
        shape: Its sizes.
        root: Path of the list of blocks in the exported module.
    """
    nodes = _nodes_of_blocks(model, root, shape.num_blocks)
    return any(_may_follow(node, full_sizes(shape)) for block in nodes for node in block)


def find_sizes(model: ir.Model, other: ir.Model, shape: ModelShape, root: str, sizes: Sizes) -> tuple[SizePlace, ...]:
    """Find the integers that follow from sizes, and give each of them an initializer of its own.

    Args:
        model: The teacher's graph; its constants are made apart, what it computes stays.
        other: The twin's graph.
        shape: The teacher's sizes.
        root: Path of the list of blocks in the exported module.
        sizes: The twin's sizes.

    Raises:
        GraphTemplateError: The graphs differ in another way than by integers that follow from sizes.
    """
    full, count = full_sizes(shape), shape.num_blocks
    twins = list(_nodes_of_blocks(other, root, min(2, count)))
    places: list[SizePlace] = []
    for index, nodes in enumerate(_nodes_of_blocks(model, root, count)):
        for node, reflected in _aligned(nodes, twins[min(index, len(twins) - 1)], index, full):
            found = list(_differences(node, reflected, index, full, sizes))
            places += [_own(model, node, *difference) for difference in found]
    return tuple(places)


def resize(values: Mapping[str, ir.Value], places: Sequence[SizePlace], full: Sizes, new: Mapping[int, Sizes]) -> None:
    """Write the integers of other sizes into a clone of the teacher's graph.

    Args:
        values: The clone's values by name.
        places: What `find_sizes` gave.
        full: The teacher's sizes.
        new: Block -> its sizes; blocks that are missing keep the teacher's.
    """
    import onnx_ir as ir

    for place in places:
        if place.block in new:
            value = values[place.name]
            assert value.const_value is not None
            array = np.array(place.resized(full, new[place.block]), dtype=np.int64).reshape(
                value.const_value.numpy().shape
            )
            value.const_value = ir.tensor(array, name=place.name)


def _nodes_of_blocks(model: ir.Model, path: str, count: int) -> Iterator[list[ir.Node]]:
    """The nodes that were traced in each block, in the graph's order."""
    owners = {f"{path}.{index}": index for index in range(count)}
    nodes: list[list[ir.Node]] = [[] for _ in range(count)]
    for node in model.graph:
        owner = next((owners[scope] for scope in scopes_of(node) if scope in owners), None)
        if owner is not None and node.op_type != "Concat":  # Shapes are concatenated once and shared between blocks.
            nodes[owner].append(node)
    yield from nodes


def _may_follow(node: ir.Node, full: Sizes) -> bool:
    """Whether an integer that the node reads is a multiple of one of the sizes."""
    integers = {number for _, numbers in _constants(node) for number in numbers}
    return any(1 < n < _LARGE and n % unit == 0 for n in integers for unit in full if unit > 1)


def _aligned(nodes: list[ir.Node], mirror: list[ir.Node], block: int, full: Sizes) -> Iterator[tuple[ir.Node, ir.Node]]:
    """The nodes of a block beside those of the twin's; what blocks compute once and share is in one of them only."""

    def key(node: ir.Node) -> tuple[Any, ...]:
        constants = [(place, len(numbers)) for place, numbers in _constants(node)]
        return node.op_type, scopes_of(node)[-1].rpartition(".")[-1], tuple(constants)

    matcher = SequenceMatcher(a=[key(node) for node in nodes], b=[key(node) for node in mirror], autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        if kind == "equal":
            yield from zip(nodes[start:end], mirror[other_start:other_end], strict=True)
        elif any(_may_follow(node, full) for node in nodes[start:end]):
            raise GraphTemplateError(f"graph template: block {block} has other operators when it has other sizes.")


def _constants(node: ir.Node) -> Iterator[tuple[tuple[int, int | None], list[int]]]:
    """The integers that a node reads, directly or as parts of a concatenated shape: (input, part or None), integers."""
    for position, value in enumerate(node.inputs):
        if value is None:
            continue
        if (ints := _integers(value)) is not None:
            yield (position, None), ints
        elif (producer := value.producer()) is not None and producer.op_type == "Concat":
            for part, piece in enumerate(producer.inputs):
                if piece is not None and (ints := _integers(piece)) is not None:
                    yield (position, part), ints


def _integers(value: ir.Value) -> list[int] | None:
    import onnx_ir as ir

    constant = value.const_value
    if constant is None or constant.dtype != ir.DataType.INT64 or constant.size > 16:
        return None
    return [int(number) for number in np.atleast_1d(constant.numpy())]


Difference = tuple[int, tuple[int, int | None], list[int], list[Sizes]]


def _differences(node: ir.Node, mirror: ir.Node, block: int, full: Sizes, sizes: Sizes) -> Iterator[Difference]:
    theirs = dict(_constants(mirror))
    for key, integers in _constants(node):
        if integers != theirs[key]:
            pairs = zip(integers, theirs[key], strict=True)
            yield block, key, integers, [_powers(a, b, full, sizes, node) for a, b in pairs]


def _powers(value: int, other: int, full: Sizes, sizes: Sizes, node: ir.Node) -> Sizes:
    """Which sizes an integer is proportional to."""
    for powers in product((0, 1), repeat=3):
        scaled = value
        for old, new, power in zip(full, sizes, powers, strict=True):
            scaled = scaled * new if power else scaled * old
        if scaled == other * full[0] * full[1] * full[2]:
            return powers[0], powers[1], powers[2]
    raise GraphTemplateError(
        f"graph template: in `{node.op_type}` {value} becomes {other} at other sizes, which is no multiple of them."
    )


def _own(
    model: ir.Model, node: ir.Node, block: int, key: tuple[int, int | None], integers: list[int], powers: list[Sizes]
) -> SizePlace:
    """Let a node read these integers from an initializer that nothing else reads."""
    import onnx_ir as ir

    position, part = key
    name = f"{node.outputs[0].name}/sizes_{position}" + ("" if part is None else f"_{part}")
    shape = node.inputs[position]
    assert shape is not None
    concat = None if part is None else shape.producer()
    old = shape if concat is None else concat.inputs[part or 0]
    assert old is not None
    assert old.const_value is not None
    own = ir.val(name, const_value=ir.tensor(old.const_value.numpy().copy(), name=name))
    model.graph.register_initializer(own)
    if concat is None:
        node.replace_input_with(position, own)
    else:
        if not str(shape.name).endswith("/sizes"):
            copied = ir.node("Concat", list(concat.inputs), attributes={"axis": 0}, name=f"{name}/Concat")
            copied.outputs[0].name = f"{node.outputs[0].name}/input_{position}/sizes"
            copied.outputs[0].type = shape.type
            model.graph.insert_before(node, copied)
            node.replace_input_with(position, copied.outputs[0])
            concat = copied
        concat.replace_input_with(part or 0, own)
    return SizePlace(block, name, tuple(integers), tuple(powers))
