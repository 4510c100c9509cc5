"""Where one `transformers` family keeps its projections, norms and embeddings: the only file with attribute names.

To add a family, add a row to `FAMILIES`; the contract tests in `tests/contracts/` pick it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Attribute paths of one family, relative to the base model (``blocks``) or to one block (the rest).

    Args:
        name: The family's name, and the ``config.model_type`` of its first member.
        model_types: Values of ``config.model_type`` that this row serves.
        blocks: Path of the ``nn.ModuleList`` of blocks in the base model.
        query, key, value, attention_out: Paths of the attention's projections in a block.
        ffn_in: Paths of the projections that widen: one, or gate and up.
        ffn_out: Path of the projection that narrows.
        attention: Path of the module that holds the attention's head counts.
        post_norm: Whether norms follow the residual sums (BERT) or precede the sublayers (GPT, Llama, ViT).
        causal: Whether tokens see only the tokens before them.
        layer_index: Paths, in a block, of modules whose ``layer_idx`` names the block's place in the KV cache.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    query: str
    key: str
    value: str
    attention_out: str
    ffn_in: tuple[str, ...]
    ffn_out: str
    attention: str
    post_norm: bool
    causal: bool
    layer_index: tuple[str, ...] = ()

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of all the projections of a block."""
        return (self.query, self.key, self.value, self.attention_out, *self.ffn_in, self.ffn_out)


FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        name="bert",
        model_types=("bert",),
        blocks="encoder.layer",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        attention_out="attention.output.dense",
        ffn_in=("intermediate.dense",),
        ffn_out="output.dense",
        attention="attention.self",
        post_norm=True,
        causal=False,
        layer_index=("attention.self",),
    ),
)


def family_of(model: nn.Module) -> ModelFamily:
    """The row that serves a `transformers` model.

    Raises:
        ValueError: No row serves the model's ``config.model_type``.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise ValueError(
        f"`model_type` must be one of {known}, but got {model_type!r}. "
        "To add a family, see docs/how-to/add-a-family.md."
    )


def base_model(model: nn.Module) -> nn.Module:
    """The model without its task head: what `transformers` calls the base model."""
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, model) if prefix else model
    assert isinstance(base, nn.Module)
    return base


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The model's blocks, in order."""
    blocks = base_model(model).get_submodule(family_of(model).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def blocks_path(model: nn.Module) -> str:
    """Path of the list of blocks from the model itself, head included: ``bert.encoder.layer``."""
    prefix = getattr(model, "base_model_prefix", "")
    path = family_of(model).blocks
    return f"{prefix}.{path}" if prefix and hasattr(model, prefix) else path


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a teacher, read off the model itself, so that analytic costs are exact for every head and bias.

    Args:
        family: Name of the family's row.
        hidden_size: Width of the residual stream.
        num_blocks, heads, kv_heads, head_dim, ffn: Sizes of the full model.
        gated: Whether the FFN has a gate projection beside the one that widens.
        bias_qkv, bias_attention_out, bias_ffn_in, bias_ffn_out: Whether the projections have biases.
        block_other_parameters: Parameters of one block outside its projections (norms).
        other_parameters: Parameters outside the blocks (embeddings, pooler, task head).
        head_macs_per_token: MACs per token outside the blocks (a language model's head).
        head_macs_per_sequence: MACs per sequence outside the blocks (pooler, classifier).
        vocab_size: Rows of the token embedding (0 for images).
        causal: Whether the model is a causal decoder.
    """

    family: str
    hidden_size: int
    num_blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    gated: bool
    bias_qkv: bool
    bias_attention_out: bool
    bias_ffn_in: bool
    bias_ffn_out: bool
    block_other_parameters: int
    other_parameters: int
    head_macs_per_token: int
    head_macs_per_sequence: int
    vocab_size: int
    causal: bool

    @classmethod
    def from_model(cls, model: nn.Module) -> ModelShape:
        """Read the sizes off a full (not yet pruned) `transformers` model.

        Raises:
            ValueError: The family is unknown or the model's blocks differ from one another.
        """
        family = family_of(model)
        blocks = blocks_of(model)
        sizes = {tuple(block.get_submodule(path).weight.shape for path in family.projections) for block in blocks}
        if len(sizes) != 1:
            raise ValueError(
                "The teacher's blocks must all have the same sizes, but they differ; is it already pruned?"
            )
        block = blocks[0]
        config: Any = model.config

        def linear(path: str) -> nn.Linear:
            module = block.get_submodule(path)
            assert isinstance(module, nn.Linear)
            return module

        query, key, out = linear(family.query), linear(family.key), linear(family.attention_out)
        ffn_in, ffn_out = linear(family.ffn_in[0]), linear(family.ffn_out)
        hidden_size = query.in_features
        heads = int(config.num_attention_heads)
        head_dim = query.out_features // heads
        projection_ids = {id(p) for path in family.projections for p in linear(path).parameters()}
        block_other = sum(p.numel() for p in block.parameters() if id(p) not in projection_ids)
        in_blocks = sum(p.numel() for p in blocks.parameters())
        per_token, per_sequence = _head_macs(model)
        return cls(
            family=family.name,
            hidden_size=hidden_size,
            num_blocks=len(blocks),
            heads=heads,
            kv_heads=key.out_features // head_dim,
            head_dim=head_dim,
            ffn=ffn_in.out_features,
            gated=len(family.ffn_in) > 1,
            bias_qkv=query.bias is not None,
            bias_attention_out=out.bias is not None,
            bias_ffn_in=ffn_in.bias is not None,
            bias_ffn_out=ffn_out.bias is not None,
            block_other_parameters=block_other,
            other_parameters=sum(p.numel() for p in model.parameters()) - in_blocks,
            head_macs_per_token=per_token,
            head_macs_per_sequence=per_sequence,
            vocab_size=int(getattr(config, "vocab_size", 0) or 0),
            causal=family.causal,
        )


def _head_macs(model: nn.Module) -> tuple[int, int]:
    """MACs outside the blocks: (per token, per sequence). A pooler and a classifier see one token, an LM head all."""
    inside = {id(module) for module in blocks_of(model).modules()}
    per_token = per_sequence = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module) not in inside:
            if "pooler" in name or name.startswith(("classifier", "score")):
                per_sequence += module.weight.numel()
            else:
                per_token += module.weight.numel()
    return per_token, per_sequence
