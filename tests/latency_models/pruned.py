"""Pruned models made by hand from a tiny teacher: what graphs of subnets are compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from search_spaces.elastic import LinearWeights


@dataclass(frozen=True)
class Pruned:
    """A plain pruned model beside the tensors that the graph's editor needs to make the same one."""

    model: Any
    linear_weights: dict[str, LinearWeights]
    skipped: tuple[int, ...]


def prune_bert(
    teacher: Any,
    heads: list[int],
    ffn: list[int],
    ranks: list[int] | None = None,
    skipped: tuple[int, ...] = (),
    prefix: str = "",
) -> Pruned:
    """Keep the first heads and FFN neurons of every block, factorise the query (rank > 0), leave blocks out."""
    model = copy.deepcopy(teacher)
    base = model.bert if prefix else model
    head_dim = base.config.hidden_size // base.config.num_attention_heads
    tensors: dict[str, LinearWeights] = {}
    for index, block in enumerate(base.encoder.layer):
        if index in skipped:
            continue
        width = heads[index] * head_dim
        cuts = {
            "attention.self.query": (slice(0, width), slice(None)),
            "attention.self.key": (slice(0, width), slice(None)),
            "attention.self.value": (slice(0, width), slice(None)),
            "attention.output.dense": (slice(None), slice(0, width)),
            "intermediate.dense": (slice(0, ffn[index]), slice(None)),
            "output.dense": (slice(None), slice(0, ffn[index])),
        }
        for path, (rows, columns) in cuts.items():
            linear = block.get_submodule(path)
            weights = LinearWeights(linear.weight[rows, columns].detach(), linear.bias[rows].detach())
            if ranks and ranks[index] and path.endswith(("query", "intermediate.dense")):
                weights = factorise(weights, ranks[index])
            tensors[f"{prefix}encoder.layer.{index}.{path}"] = weights
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent), name, weights.module())
    base.encoder.layer = nn.ModuleList(block for i, block in enumerate(base.encoder.layer) if i not in skipped)
    for index, block in enumerate(base.encoder.layer):
        block.attention.self.layer_idx = index
    base.config.num_hidden_layers = len(base.encoder.layer)
    return Pruned(model.eval(), tensors, skipped)


def factorise(weights: LinearWeights, rank: int) -> LinearWeights:
    """The projection's truncated singular value decomposition."""
    left, values, right = torch.linalg.svd(weights.weight, full_matrices=False)
    return LinearWeights(left[:, :rank] * values[:rank], weights.bias, right[:rank])


class Pooled(nn.Module):
    """A wrapper as tasks make them: hidden states and their normalised mean."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return hidden, nn.functional.normalize(pooled, dim=-1)


POOLED_NAMES = ("last_hidden_state", "sentence_embedding")


def example_inputs(batch: int = 2, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens; the last tokens of the first sequence are padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 97, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    if length > 3:
        mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def largest_difference(run: Any, model: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """Largest difference between a run's outputs and torch's, relative to the output's scale."""
    with torch.inference_mode():
        expected = model(**inputs)
    found = list(run.outputs().values())
    assert len(found) == len(expected)
    worst = 0.0
    for mine, theirs in zip(found, expected, strict=True):
        reference = theirs.numpy()
        assert mine.shape == reference.shape
        worst = max(worst, float(abs(mine - reference).max() / abs(reference).max()))
    return worst
