"""Small random models, with norms and biases randomised, because their defaults hide slicing bugs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from search_spaces.families import ModelShape
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
