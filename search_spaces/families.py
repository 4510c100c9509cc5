"""Where one `transformers` family keeps its projections, norms and embeddings: the only file with attribute names.

To add a family, add a row to `FAMILIES`; the contract tests in `tests/contracts/` pick it up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Attribute paths of one family, relative to the base model (``blocks``) or to one block (the rest).

    Args:
        name: The family's name, and the ``config.model_type`` of its first member.
        model_types: Values of ``config.model_type`` that this row serves.
        blocks: Path of the ``nn.ModuleList`` of blocks in the base model.
        query, key, value: Paths of the attention's projections in a block; the same path three times where one
            matrix holds their rows one after the other.
        attention_out: Path of the projection that follows the attention.
        ffn_in: Paths of the projections that widen: one, or gate and up; the same path twice where one matrix holds
            the rows of both.
        ffn_out: Path of the projection that narrows.
        attention: Path of the module that is the attention, and holds its head counts.
        ffn: Path of the module that is the FFN, or what of it comes before the projection that narrows.
        attention_norm, ffn_norm: Paths of the two norms.
        post_norm: Whether norms follow the residual sums (BERT) or precede the sublayers (GPT, Llama, ViT).
        causal: Whether tokens see only the tokens before them.
        rotary: Whether positions turn queries and keys (RoPE), rather than being part of the residual stream.
        layer_index: Paths, in a block, of modules whose ``layer_idx`` names the block's place in the KV cache.
        config_ffn: The configuration's name for the FFN's width.
        config_heads: Whether the configuration can say that there are fewer heads of the same width.
        config_heads_divide: Whether it wants them to divide the hidden size, in any of the model types.
        stem: Paths, in the base model, of what the residual stream is made of before the first block: embeddings, an
            image's convolution, parameters; what a model lacks is passed over. Empty where the family's stream cannot
            be made narrower.
        stem_norm: Path of the norm that follows their sum; empty where there is none.
        final_norm: Path of the norm that follows the last block; empty where norms follow the sums.
        expands_output: Whether a narrower stream is brought back to full width behind the whole base model, because
            that gives the last norm's output the stream's shape again.
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
    ffn: str
    attention_norm: str
    ffn_norm: str
    post_norm: bool
    causal: bool
    rotary: bool = False
    layer_index: tuple[str, ...] = ()
    config_ffn: str = "intermediate_size"
    config_heads: bool = False
    config_heads_divide: bool = False
    stem: tuple[str, ...] = ()
    stem_norm: str = ""
    final_norm: str = ""
    expands_output: bool = False

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of all the projections of a block, each once."""
        paths = (self.query, self.key, self.value, self.attention_out, *self.ffn_in, self.ffn_out)
        return tuple(dict.fromkeys(paths))

    @property
    def fused_qkv(self) -> bool:
        """Whether one matrix holds query, key and value."""
        return self.query == self.key == self.value

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate beside the projection that widens."""
        return len(self.ffn_in) > 1

    @property
    def fused_ffn(self) -> bool:
        """Whether one matrix holds gate and up."""
        return self.gated and len(set(self.ffn_in)) == 1


_BERT = ModelFamily(
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
    ffn="intermediate",
    attention_norm="attention.output.LayerNorm",
    ffn_norm="output.LayerNorm",
    post_norm=True,
    causal=False,
    layer_index=("attention.self",),
    stem=tuple(f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")),
    stem_norm="embeddings.LayerNorm",
)
_LLAMA = ModelFamily(
    name="llama",
    model_types=("llama", "mistral", "qwen2"),
    blocks="layers",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_out="self_attn.o_proj",
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_out="mlp.down_proj",
    attention="self_attn",
    ffn="mlp",
    attention_norm="input_layernorm",
    ffn_norm="post_attention_layernorm",
    post_norm=False,
    causal=True,
    rotary=True,
    layer_index=("self_attn",),
    config_heads=True,
    config_heads_divide=True,
    stem=("embed_tokens",),
    final_norm="norm",
)
FAMILIES: tuple[ModelFamily, ...] = (
    _BERT,
    replace(_BERT, name="roberta", model_types=("roberta", "xlm-roberta", "camembert")),
    ModelFamily(
        name="distilbert",
        model_types=("distilbert",),
        blocks="transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_out="attention.out_lin",
        ffn_in=("ffn.lin1",),
        ffn_out="ffn.lin2",
        attention="attention",
        ffn="ffn",
        attention_norm="sa_layer_norm",
        ffn_norm="output_layer_norm",
        post_norm=True,
        causal=False,
        config_ffn="hidden_dim",
        stem=("embeddings.word_embeddings", "embeddings.position_embeddings"),
        stem_norm="embeddings.LayerNorm",
    ),
    ModelFamily(
        name="modernbert",
        model_types=("modernbert",),
        blocks="layers",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        attention_out="attn.Wo",
        ffn_in=("mlp.Wi", "mlp.Wi"),
        ffn_out="mlp.Wo",
        attention="attn",
        ffn="mlp",
        attention_norm="attn_norm",
        ffn_norm="mlp_norm",
        post_norm=False,
        causal=False,
        rotary=True,
        layer_index=("", "attn"),
        stem=("embeddings.tok_embeddings",),
        stem_norm="embeddings.norm",
        final_norm="final_norm",
    ),
    ModelFamily(
        name="gpt2",
        model_types=("gpt2",),
        blocks="h",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        attention_out="attn.c_proj",
        ffn_in=("mlp.c_fc",),
        ffn_out="mlp.c_proj",
        attention="attn",
        ffn="mlp",
        attention_norm="ln_1",
        ffn_norm="ln_2",
        post_norm=False,
        causal=True,
        layer_index=("attn",),
        config_ffn="n_inner",
        stem=("wte", "wpe"),
        final_norm="ln_f",
        expands_output=True,
    ),
    _LLAMA,
    # Its norms of queries and keys are as wide as one head, so they serve any number of heads.
    replace(_LLAMA, name="qwen3", model_types=("qwen3",), config_heads_divide=False),
    ModelFamily(
        name="vit",
        model_types=("vit",),
        blocks="layers",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        attention_out="attention.o_proj",
        ffn_in=("mlp.fc1",),
        ffn_out="mlp.fc2",
        attention="attention",
        ffn="mlp",
        attention_norm="layernorm_before",
        ffn_norm="layernorm_after",
        post_norm=False,
        causal=False,
        config_heads=True,
        stem=(
            "embeddings.patch_embeddings.projection",
            *(f"embeddings.{name}" for name in ("cls_token", "mask_token", "position_embeddings")),
        ),
        final_norm="layernorm",
    ),
)


def family_of(model: nn.Module) -> ModelFamily:
    """The row that serves a `transformers` model.

    Raises:
        ValueError: No row serves the model's ``config.model_type``.
    """
    return family_of_type(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def family_of_type(model_type: str) -> ModelFamily:
    """The row that serves a ``config.model_type``.

    Raises:
        ValueError: None does.
    """
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


def tied_stem(model: nn.Module) -> tuple[str, ...]:
    """Paths of the row's ``stem`` whose weights a head shares: they keep all their columns."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    prefix = getattr(model, "base_model_prefix", "")
    names = {name.removeprefix(f"{prefix}.") for name in (*tied, *tied.values())}
    return tuple(path for path in family_of(model).stem if f"{path}.weight" in names)


def projection_weights(block: nn.Module, path: str) -> tuple[Tensor, Tensor | None]:
    """Weight ``(out, in)`` and bias of a projection: a view of the module's own tensors.

    Raises:
        ValueError: The module at the path is no projection.
    """
    module = block.get_submodule(path)
    if isinstance(module, Conv1D):  # GPT-2 stores its projections transposed.
        return module.weight.detach().T, module.bias.detach()
    if not isinstance(module, nn.Linear):
        raise ValueError(f"`{path}` must be an nn.Linear, but is {type(module).__name__}; is the model quantised?")
    return module.weight.detach(), None if module.bias is None else module.bias.detach()
