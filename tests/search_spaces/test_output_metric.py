"""What an error of a projection's outputs costs is what the block itself makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.calibrate import calibrate
from search_spaces.compensate import damped
from search_spaces.factorize import whitened_svd
from search_spaces.families import FAMILIES, blocks_of, family_of, projection_weights
from search_spaces.observe import Observed, observe
from search_spaces.output_metric import output_metric, output_scale
from search_spaces.shapes import ModelShape
from tests.models import tiny, tiny_batches, tiny_bert, tiny_space

TYPES = ("bert", "distilbert", "gpt2", "llama", "modernbert")


def spread(generator: np.random.Generator, size: int) -> Tensor:
    root = torch.from_numpy(generator.normal(size=(size, size)) * np.geomspace(0.1, 2, size))
    return root @ root.T


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 9), st.integers(3, 9), st.data())
def test_factors_are_the_best_of_their_rank_in_the_metric(seed, outputs, inputs, data):
    """No worse than those found without it, and sorted; whole at full rank."""
    generator = np.random.default_rng(seed)
    weight, full = torch.from_numpy(generator.normal(size=(outputs, inputs))), min(outputs, inputs)
    covariance, metric = spread(generator, inputs), spread(generator, outputs)
    seen, read = damped(metric, 1e-2), damped(covariance, 1e-4)

    def cost(up: Tensor, down: Tensor) -> float:
        error = weight - up @ down
        return float(torch.einsum("oi,ij,pj,op->", error, read, error, seen))

    up, down = whitened_svd(weight, covariance, full, metric)
    plain_up, plain_down = whitened_svd(weight, covariance, full)
    torch.testing.assert_close(up @ down, weight)
    rank = data.draw(st.integers(1, full))
    best = cost(up[:, :rank], down[:rank])
    assert best <= cost(plain_up[:, :rank], plain_down[:rank]) + 1e-9 * cost(0 * up, down)


class Block:
    """The first block of a small model, and what its attention's projections read."""

    def __init__(self, model_type: str) -> None:
        self.model: Any = tiny(model_type)
        self.family, self.shape = family_of(self.model), ModelShape.from_model(self.model)
        self.block: nn.Module = blocks_of(self.model)[0]
        batches = tiny_batches()
        self.observed: Observed = observe(self.model, batches, [0])[0]

    def metric(self, path: str) -> Tensor | None:
        return output_metric(self.block, self.family, self.shape, self.observed, path)

    def part(self, name: str) -> Tensor:
        """The metric's part for queries, keys or values."""
        family, size = self.family, self.shape.head_dim
        whole = self.metric(getattr(family, name))
        assert whole is not None
        if not family.fused_qkv:
            return whole
        queries, keys = self.shape.heads * size, self.shape.kv_heads * size
        start = {"query": 0, "key": queries, "value": queries + keys}[name]
        return whole[start : start + (queries if name == "query" else keys)][:, start:][
            :, : queries if name == "query" else keys
        ]

    def outputs(self, name: str, rows: Tensor) -> Tensor:
        """Queries, keys or values of what the attention reads."""
        weight, bias = projection_weights(self.block, getattr(self.family, name))
        whole = rows.double() @ weight.double().T + (0 if bias is None else bias.double())
        if not self.family.fused_qkv:
            return whole
        size = self.shape.heads * self.shape.head_dim
        return whole[:, {"query": slice(0, size), "key": slice(size, 2 * size)}[name]]


def read_rows(model_type: str) -> tuple[Block, Tensor]:
    """What the attention's projections of the first block read, token by token."""
    it, rows = Block(model_type), []
    module = it.block.get_submodule(it.family.query)
    batches = tiny_batches()
    handle = module.register_forward_pre_hook(lambda _, args: rows.append(args[0][kept]))
    for batch in batches:
        kept = batch["attention_mask"].bool()
        with torch.inference_mode():
            it.model(**{k: v for k, v in batch.items() if k != "labels"})
    handle.remove()
    return it, torch.cat(rows)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2"])
def test_an_error_of_queries_and_keys_costs_what_it_changes_in_the_logits(model_type):
    it, rows = read_rows(model_type)
    generator = torch.Generator().manual_seed(0)
    keys, queries = it.outputs("key", rows), it.outputs("query", rows)
    for name, others in (("query", keys - keys.mean(dim=0)), ("key", queries)):
        error = torch.randn(keys.shape[1], generator=generator, dtype=torch.float64)
        each = (others * error).reshape(len(rows), it.shape.heads, it.shape.head_dim).sum(dim=-1)
        torch.testing.assert_close(error @ it.part(name) @ error, each.square().mean(dim=0).sum(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("model_type", TYPES)
def test_an_error_of_values_costs_what_the_attention_writes_of_it(model_type):
    """Every head alone, in the scale that the norm behind it gives the stream."""
    it = Block(model_type)
    size, group = it.shape.head_dim, it.shape.heads // it.shape.kv_heads
    weight, _ = projection_weights(it.block, it.family.attention_out)
    scale = output_scale(it.block, it.family, it.family.attention_out)
    assert (scale is not None) == it.family.post_norm
    written = weight.double() * (1 if scale is None else scale[:, None])
    error = torch.randn(it.shape.kv_heads, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    each = written.reshape(len(weight), it.shape.kv_heads, group, size) @ error[:, :, None]
    torch.testing.assert_close(error.reshape(-1) @ it.part("value") @ error.reshape(-1), each.square().sum())


@pytest.mark.parametrize("model_type", TYPES)
def test_metrics_have_the_outputs_of_their_projection_and_never_reward_an_error(model_type):
    it = Block(model_type)
    for path in it.family.projections:
        metric = it.metric(path)
        if metric is None:
            assert path in it.family.ffn_in or not it.family.post_norm
            continue
        assert metric.shape == (len(projection_weights(it.block, path)[0]),) * 2
        assert float(torch.linalg.eigvalsh(metric).min()) >= -1e-9 * float(metric.abs().max())
    for name in ("query", "key"):
        alike = torch.equal(it.part(name), torch.eye(len(it.part(name)), dtype=torch.float64))
        assert alike == it.family.rotary


def test_rotary_families_are_those_without_learned_positions():
    """A new row that forgets the flag would weight queries by keys that they never meet in that direction."""
    for family in FAMILIES:
        model = tiny(family.model_types[0])
        rotary = any("rotary" in type(module).__name__.lower() for module in model.modules())
        assert family.rotary == rotary, family.name


def test_units_and_ranks_serve_what_the_next_norm_lets_through():
    """A coordinate that the norm mutes decides nothing, however much is written there."""
    teacher = tiny_bert()
    block, space = teacher.encoder.layer[0], tiny_space(teacher)
    muted = 3
    with torch.no_grad():
        block.output.LayerNorm.weight[muted] = 0.0
        block.output.dense.weight[muted] = 0.0
    quiet = calibrate(teacher, tiny_batches(), space)
    with torch.no_grad():
        block.output.dense.weight[muted] = 100.0 * torch.randn(
            block.output.dense.weight.shape[1], generator=torch.Generator().manual_seed(2)
        )
    loud = calibrate(teacher, tiny_batches(), space)
    name = "0.intermediate.dense.permuted"
    assert torch.equal(quiet.tensors[name], loud.tensors[name])
