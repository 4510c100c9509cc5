"""The weight-sharing model: any subnet of the teacher, activated in microseconds, extracted as a plain model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from search_spaces.canonical import canonical
from search_spaces.elastic import ElasticLinear, LinearWeights
from search_spaces.families import ModelFamily, ModelShape, base_model, blocks_of, blocks_path, family_of
from search_spaces.library import Library
from search_spaces.space import SearchSpace
from search_spaces.subnet import BlockConfig, SubnetConfig


class Supernet(nn.Module):
    """A teacher whose projections are elastic, and the library of their variants.

    The largest subnet runs the teacher's own tensors, so it *is* the teacher, bit for bit.

    Args:
        model: The teacher. It is taken over: its projections are replaced in place.
        library: What `calibrate` made of this teacher.
        space: The space that the library was made for.

    Raises:
        ValueError: The model's sizes are not those of the space.
    """

    def __init__(self, model: nn.Module, library: Library, space: SearchSpace) -> None:
        super().__init__()
        if (shape := ModelShape.from_model(model)) != space.shape:
            raise ValueError(f"supernet: the space was made for another model: {space.shape} is not {shape}.")
        self.model = model
        self.space = space
        self.family: ModelFamily = family_of(model)
        self._tensors: Mapping[str, Tensor] = library.tensors
        self._blocks: list[nn.Module] = list(blocks_of(model))
        self._path = blocks_path(model)
        self._teacher: list[dict[str, LinearWeights]] = []
        self._leaves: list[dict[str, ElasticLinear]] = []
        for block in self._blocks:
            self._teacher.append({path: _weights_of(block, path) for path in self.family.projections})
            self._leaves.append({path: ElasticLinear(weights) for path, weights in self._teacher[-1].items()})
            for path, leaf in self._leaves[-1].items():
                block.set_submodule(path, leaf)
        # The teacher's tensors are never trained through the supernet: the largest subnet stays the teacher.
        self.model.requires_grad_(requires_grad=False)
        self.active = space.teacher
        self.eval()

    @property
    def shape(self) -> ModelShape:
        """The teacher's sizes."""
        return self.space.shape

    def use(self, library: Library) -> None:
        """Take another library of the same space, such as a trained one; the active subnet is activated anew."""
        self._tensors = library.tensors
        self.activate(self.active)

    def forward(self, **inputs: Any) -> Any:
        """Run the active subnet as the teacher is run."""
        return self.model(**inputs)

    def activate(self, subnet: SubnetConfig) -> None:
        """Make a subnet the one that runs. Total: it sets every block, so nothing of an earlier subnet remains.

        Raises:
            ValueError: The library has no variant for one of the subnet's sizes.
        """
        subnet = self._checked(subnet)
        variants = [self.variant(index, subnet.blocks[index]) for index in subnet.kept]
        for index, weights in zip(subnet.kept, variants, strict=True):
            for path, leaf in self._leaves[index].items():
                leaf.activate(weights[path])
            set_head_counts(self._blocks[index], self.family, subnet.blocks[index], self.shape)
        place_blocks(self.model, [self._blocks[index] for index in subnet.kept])
        self.active = subnet

    def extract(self, subnet: SubnetConfig) -> nn.Module:
        """A subnet as an independent, plain `transformers` model that shares no tensor with the supernet.

        Its projections are ``nn.Linear`` (two in an ``nn.Sequential`` where factored). The active subnet stays active.
        """
        before = self.active
        self.activate(subnet)
        try:
            replaced: dict[int, Any] = {
                id(leaf): leaf.active.module() for index in self.active.kept for leaf in self._leaves[index].values()
            }
            model: nn.Module = copy.deepcopy(self.model, memo=replaced)
        finally:
            self.activate(before)
        return model.eval()

    def linear_weights(self, subnet: SubnetConfig) -> dict[str, LinearWeights]:
        """The active tensors of a subnet by full module path in the teacher; skipped blocks are absent."""
        subnet = self._checked(subnet)
        return {
            f"{self._path}.{index}.{path}": weights
            for index in subnet.kept
            for path, weights in self.variant(index, subnet.blocks[index]).items()
        }

    def variant(self, index: int, block: BlockConfig) -> dict[str, LinearWeights]:
        """The tensors of one block's variant, by path in the block: views of the library or the teacher."""
        family, shape = self.family, self.shape
        query, key = block.heads * shape.head_dim, block.kv_heads * shape.head_dim
        return {
            family.query: self._reader(index, family.query, query, block.heads, block.rank_qkv),
            family.key: self._reader(index, family.key, key, block.heads, block.rank_qkv),
            family.value: self._reader(index, family.value, key, block.heads, block.rank_qkv),
            family.attention_out: self._writer(
                index, family.attention_out, block.heads, block.heads == shape.heads, block.rank_attention_out
            ),
            **{path: self._reader(index, path, block.ffn, block.ffn, block.rank_ffn_in) for path in family.ffn_in},
            family.ffn_out: self._writer(index, family.ffn_out, block.ffn, block.ffn == shape.ffn, block.rank_ffn_out),
        }

    def _checked(self, subnet: SubnetConfig) -> SubnetConfig:
        subnet = canonical(self.shape, subnet)
        if len(subnet.blocks) != self.shape.num_blocks:
            raise ValueError(f"subnet: must have {self.shape.num_blocks} blocks, but got {len(subnet.blocks)}.")
        if subnet.depth == 0:
            raise ValueError("subnet: at least one block must be left, but all are skipped.")
        return subnet

    def _reader(self, index: int, path: str, rows: int, level: int, rank: int) -> LinearWeights:
        """A projection that reads the residual stream, ``rows`` outputs wide."""
        dense = self._teacher[index][path]
        # Grouped queries: a rank may save something in the query projection and nothing in the narrower key.
        if rank and rank * (rows + dense.in_features) < rows * dense.in_features:
            return self._factored(index, path, level, rank)
        if rows == dense.weight.shape[0]:
            return dense
        weight = self._tensor(f"{index}.{path}.permuted")[:rows]
        bias = None if dense.bias is None else self._tensor(f"{index}.{path}.permuted_bias")[:rows]
        return LinearWeights(weight, bias)

    def _writer(self, index: int, path: str, level: int, full: bool, rank: int) -> LinearWeights:  # noqa: FBT001
        """A projection that writes to the residual stream, ``level`` units wide."""
        if rank:
            return self._factored(index, path, level, rank)
        if full:
            return self._teacher[index][path]
        prefix = f"{index}.{path}.{level}"
        return LinearWeights(self._tensor(f"{prefix}.weight"), self._tensor(f"{prefix}.bias"))

    def _factored(self, index: int, path: str, level: int, rank: int) -> LinearWeights:
        prefix = f"{index}.{path}.{level}"
        up, down = self._tensor(f"{prefix}.up"), self._tensor(f"{prefix}.down")
        if rank > down.shape[0]:
            raise ValueError(f"`rank` must be at most the library's {down.shape[0]} for {prefix}, but got {rank}.")
        bias = self._tensor(f"{prefix}.mean_output") - up[:, :rank] @ self._tensor(f"{prefix}.down_mean")[:rank]
        return LinearWeights(up[:, :rank], bias, down[:rank])

    def _tensor(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise ValueError(
                f"supernet: the calibration library has no {name!r}; was it made for another space? Calibrate anew."
            ) from None


def _weights_of(block: nn.Module, path: str) -> LinearWeights:
    module = block.get_submodule(path)
    assert isinstance(module, nn.Linear)
    bias = None if module.bias is None else module.bias.detach()
    return LinearWeights(module.weight.detach(), bias)


def place_blocks(model: nn.Module, blocks: list[nn.Module]) -> None:
    """Make these the model's blocks, numbered from 0, or KV caches break where one is skipped."""
    family, base = family_of(model), base_model(model)
    base.set_submodule(family.blocks, nn.ModuleList(blocks))
    for position, block in enumerate(blocks):
        for path in family.layer_index:
            module: Any = block.get_submodule(path)
            module.layer_idx = position
    config: Any = model.config
    config.num_hidden_layers = len(blocks)


def set_head_counts(block: nn.Module, family: ModelFamily, config: BlockConfig, shape: ModelShape) -> None:
    """Keep the counts that an attention module remembers in step with its projections."""
    attention: Any = block.get_submodule(family.attention)
    counts = {
        "num_attention_heads": config.heads,
        "num_heads": config.heads,
        "all_head_size": config.heads * shape.head_dim,
        "num_key_value_heads": config.kv_heads,
        "num_key_value_groups": config.heads // max(config.kv_heads, 1),
    }
    for name, value in counts.items():
        if hasattr(attention, name):
            setattr(attention, name, value)
