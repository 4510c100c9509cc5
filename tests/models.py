"""Small random models, with norms and biases randomised, because their defaults hide slicing bugs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace


def randomise(model: Any, seed: int = 0) -> Any:
    """Random values for every parameter, at a scale at which activations neither vanish nor saturate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(0.3 * noise + (parameter.mean() > 0.5))
    return model.eval()


def tiny_bert(seed: int = 0, labels: int = 0, **changes: Any) -> Any:
    """Three blocks, hidden size 32, four heads, FFN 64; with a classification head where `labels` is given."""
    config = BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        **({"num_labels": labels} if labels else {}),
        **changes,
    )
    return randomise(BertForSequenceClassification(config) if labels else BertModel(config), seed)


_TOKENS = {"vocab_size": 97, "max_position_embeddings": 32, "num_hidden_layers": 3, "pad_token_id": 0}
_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
_GROUPED = _TOKENS | _SIZES | {"num_key_value_heads": 2, "head_dim": 8}
# Sizes by model type, under the names of each configuration class: three blocks, hidden size 32, four heads, FFN 64.
TINY: dict[str, dict[str, Any]] = {
    "bert": _TOKENS | _SIZES,
    "roberta": _TOKENS | _SIZES,
    "xlm-roberta": _TOKENS | _SIZES,
    "camembert": _TOKENS | _SIZES,
    "distilbert": {"vocab_size": 97, "max_position_embeddings": 32, "n_layers": 3}
    | {"dim": 32, "n_heads": 4, "hidden_dim": 64},
    # Every other block attends to a window.
    "modernbert": _TOKENS | _SIZES | {"global_attn_every_n_layers": 2, "local_attention": 6, "norm_bias": True},
    "gpt2": {"vocab_size": 97, "n_positions": 32, "n_layer": 3, "n_embd": 32, "n_head": 4, "n_inner": 64},
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": 6},
    "qwen2": _GROUPED | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    # Heads wider than hidden size / heads, and biases.
    "qwen3": _GROUPED | {"head_dim": 16, "attention_bias": True},
    "vit": _SIZES | {"num_hidden_layers": 3, "image_size": 12, "patch_size": 4, "num_channels": 3},
}


def tiny(model_type: str, seed: int = 0, *, language_model: bool = False, **changes: Any) -> Any:
    """A small random model of a type, with a language model's head or bare."""
    config = AutoConfig.for_model(model_type, **(TINY[model_type] | changes))
    return randomise((AutoModelForCausalLM if language_model else AutoModel).from_config(config), seed)


def tiny_images(count: int = 4, size: int = 8, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Batches of random images of the tiny ViT's size."""
    generator = torch.Generator().manual_seed(seed)
    return [{"pixel_values": torch.randn(size, 3, 12, 12, generator=generator)} for _ in range(count)]


def tiny_batches(
    count: int = 4, size: int = 8, length: int = 12, vocab: int = 97, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """Random token batches with padding."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        ids = torch.randint(1, vocab, (size, length), generator=generator)
        lengths = torch.randint(3, length + 1, (size,), generator=generator)
        mask = (torch.arange(length) < lengths[:, None]).long()
        batches.append({"input_ids": ids * mask, "attention_mask": mask})
    return batches


def tiny_space(model: Any, **changes: Any) -> SearchSpace:
    """Every dimension of the tiny model, with ranks below and above break-even."""
    choices = {
        "skip": [False, True],
        "heads": [1, 2, 3, 4],
        "ffn": [0.25, 0.5, 1.0],
        "rank_qkv": [0, 4, 12],
        "rank_attention_out": [0, 8],
        "rank_ffn_in": [0, 12],
        "rank_ffn_out": [0, 12, 30],
    } | changes
    return SearchSpace.from_choices(ModelShape.from_model(model), choices, round_to={"ffn": 16})
