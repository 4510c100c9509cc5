"""The sizes of one model: what a search space is resolved against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from search_spaces.counting import linear_macs
from search_spaces.families import (
    FAMILIES,
    ModelFamily,
    base_model,
    blocks_of,
    family_of,
    projection_weights,
    tied_stem,
)

Size = TypeVar("Size", int, NDArray[np.int64])


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a teacher, read off the model itself, so that analytic costs are exact for every head and bias.

    Args:
        family: Name of the family's row.
        hidden_size: Width of the residual stream.
        num_blocks, heads, kv_heads, head_dim, ffn: Sizes of the full model.
        gated: Whether the FFN has a gate projection beside the one that widens.
        fused_qkv, fused_ffn: Whether one matrix holds query, key and value; gate and up.
        bias_qkv, bias_attention_out, bias_ffn_in, bias_ffn_out: Whether the projections have biases.
        attention_other_parameters, ffn_other_parameters: Parameters of one block outside its projections that are of
            no use where it has no attention, or no FFN (the norm before it, norms of queries and keys).
        block_other_parameters: The block's other parameters outside its projections (norms that follow a sum).
        first_block_lacks: Parameters of its attention that the first block has less (ModernBERT: its first norm).
        other_parameters: Parameters outside the blocks (embeddings, pooler, task head).
        head_macs_per_token: MACs per token outside the blocks (a language model's head).
        head_macs_per_sequence: MACs per sequence outside the blocks (pooler, classifier, an image's patches).
        vocab_size: Rows of the token embedding (0 for images).
        causal: Whether the model is a causal decoder.
        stream_parameters: Those of ``other_parameters`` that grow with the residual width: embeddings that no head is
            tied to, norms outside the blocks. Older files do not have it, and 0 stands for "not known": it is read
            for narrower streams alone, and no part of what tells models apart.
        stem_macs_per_sequence: Those of ``head_macs_per_sequence`` that grow with it (an image's patches).
    """

    family: str
    hidden_size: int
    num_blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    gated: bool
    fused_qkv: bool
    fused_ffn: bool
    bias_qkv: bool
    bias_attention_out: bool
    bias_ffn_in: bool
    bias_ffn_out: bool
    attention_other_parameters: int
    ffn_other_parameters: int
    block_other_parameters: int
    first_block_lacks: int
    other_parameters: int
    head_macs_per_token: int
    head_macs_per_sequence: int
    vocab_size: int
    causal: bool
    stream_parameters: int = field(default=0, compare=False)
    stem_macs_per_sequence: int = field(default=0, compare=False)

    @property
    def post_norm(self) -> bool:
        """Whether norms follow the residual sums."""
        return any(row.post_norm for row in FAMILIES if row.name == self.family)

    def qkv_rows(self, heads: Size, kv_heads: Size) -> tuple[Size, ...]:
        """Rows of the matrices that make queries, keys and values: of the fused one, or of the query's and a key's."""
        query, key = heads * self.head_dim, kv_heads * self.head_dim
        return (query + 2 * key,) if self.fused_qkv else (query, key)

    def ffn_in_rows(self, ffn: Size) -> Size:
        """Rows of a matrix that widens."""
        return 2 * ffn if self.fused_ffn else ffn

    @classmethod
    def from_model(cls, model: nn.Module) -> ModelShape:
        """Read the sizes off a full (not yet pruned) `transformers` model.

        Raises:
            ValueError: The family is unknown or the model's blocks differ from one another.
        """
        family = family_of(model)
        blocks = blocks_of(model)
        sizes = {tuple(projection_weights(block, path)[0].shape for path in family.projections) for block in blocks}
        if len(sizes) != 1:
            raise ValueError(
                "The teacher's blocks must all have the same sizes, but they differ; is it already pruned?"
            )
        config: Any = model.config
        (query, _), (out, out_bias) = (projection_weights(blocks[0], p) for p in (family.query, family.attention_out))
        key, qkv_bias = projection_weights(blocks[0], family.key)
        _, ffn_in_bias = projection_weights(blocks[0], family.ffn_in[0])
        ffn_out, ffn_out_bias = projection_weights(blocks[0], family.ffn_out)
        heads = int(config.num_attention_heads)
        head_dim = out.shape[1] // heads
        others = [_other_parameters(block, family) for block in blocks]
        per_token, per_sequence = linear_macs(model, outside=[blocks])
        stem = _convolutions(model, family)
        return cls(
            family=family.name,
            hidden_size=query.shape[1],
            num_blocks=len(blocks),
            heads=heads,
            kv_heads=heads if family.fused_qkv else key.shape[0] // head_dim,
            head_dim=head_dim,
            ffn=ffn_out.shape[1],
            gated=family.gated,
            fused_qkv=family.fused_qkv,
            fused_ffn=family.fused_ffn,
            bias_qkv=qkv_bias is not None,
            bias_attention_out=out_bias is not None,
            bias_ffn_in=ffn_in_bias is not None,
            bias_ffn_out=ffn_out_bias is not None,
            attention_other_parameters=others[-1][0],
            ffn_other_parameters=others[-1][1],
            block_other_parameters=others[-1][2],
            first_block_lacks=sum(others[-1]) - sum(others[0]),
            other_parameters=sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in blocks.parameters()),
            head_macs_per_token=per_token,
            head_macs_per_sequence=per_sequence,
            vocab_size=int(getattr(config, "vocab_size", 0) or 0),
            causal=family.causal,
            stream_parameters=_stream_parameters(model, family),
            stem_macs_per_sequence=per_sequence - linear_macs(model, outside=[blocks, *stem])[1] if stem else 0,
        )


def _other_parameters(block: nn.Module, family: ModelFamily) -> tuple[int, int, int]:
    """Parameters outside the projections: of the attention, of the FFN, and the rest."""
    counted = {id(p) for path in family.projections for p in block.get_submodule(path).parameters()}
    counts = []
    for module, norm in ((family.attention, family.attention_norm), (family.ffn, family.ffn_norm), ("", "")):
        paths = [module, *([] if family.post_norm or not norm else [norm])]
        own = {id(p): p.numel() for path in paths for p in block.get_submodule(path).parameters()}
        counts.append(sum(size for key, size in own.items() if key not in counted))
        counted |= own.keys()
    return counts[0], counts[1], counts[2]


def _convolutions(model: nn.Module, family: ModelFamily) -> list[nn.Module]:
    """The convolutions that the residual stream begins with."""
    named = dict(base_model(model).named_modules())
    return [named[path] for path in family.stem if isinstance(named.get(path), nn.Conv2d)]


def _stream_parameters(model: nn.Module, family: ModelFamily) -> int:
    """Parameters outside the blocks that grow with the residual width."""
    base, tied = base_model(model), tied_stem(model)
    paths = [path for path in (*family.stem, family.stem_norm, family.final_norm) if path and path not in tied]
    names = [name for name, _ in base.named_parameters() if any(f"{name}.".startswith(f"{path}.") for path in paths)]
    return sum(base.get_parameter(name).numel() for name in names)


def most_positions(model: nn.Module) -> int | None:
    """How many tokens a model has learned position embeddings for; None where positions are computed."""
    for name, module in base_model(model).named_modules():
        if name.rpartition(".")[2] in ("position_embeddings", "wpe") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from behind the padding's own.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None
