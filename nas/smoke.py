"""A tiny random encoder and generated texts, made locally: what `experiment=smoke` checks an installation with."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

_TEXT = (
    "the a one this that good bad long short quiet loud film play scene actor story music ending plot line was is "
    "seems feels never always often rarely very quite not moving dull clever slow bright dark old new"
)
_WORDS = tuple(_TEXT.split())
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_smoke_assets(directory: Path) -> None:
    """Write ``model/`` and ``texts.csv`` where they are missing."""
    model, texts = directory / "model", directory / "texts.csv"
    directory.mkdir(parents=True, exist_ok=True)
    if not texts.is_file():
        generator = np.random.default_rng(0)
        with texts.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text"])
            for _ in range(400):
                writer.writerow([" ".join(generator.choice(_WORDS, size=int(generator.integers(4, 14))))])
    if not (model / "model.safetensors").is_file():
        _make_model(model)


def _make_model(directory: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *sorted(set(_WORDS))))}
    tokenizer = BertTokenizer(vocab=vocabulary)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    model = BertModel(config)
    with torch.no_grad():
        # As in trained models, no two norms and biases are equal: an exported graph would hold such tensors once, and
        # the finalists' could not be cut out of it.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(directory)
