"""Queries, keys and values are found in every family, whatever was cut out of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from torch import nn
from transformers import AutoModel

from nas.distillation.relations import relation_difference
from nas.tasks.attention import ATTENTION, CAUSAL, attention_outputs, last_with_attention
from search_spaces.families import FAMILIES, blocks_of, family_of
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig
from tests.contracts.test_families import FAST, MODEL_TYPES, SEEDS, Made, different_windows, drawn, made
from tests.models import tiny, tiny_batches, tiny_images

# Positions do not turn their queries and keys.
ABSOLUTE = [model_type for family in FAMILIES if not family.rotary for model_type in family.model_types]


def attended(it: Made, model: nn.Module) -> dict[str, torch.Tensor]:
    with attention_outputs(model, ATTENTION) as seen:
        model(**it.inputs)
    return seen


def loss(it: Made, model: nn.Module, heads: int = 4) -> torch.Tensor:
    teacher = {name: values.detach() for name, values in attended(it, it.teacher).items()}
    return relation_difference(attended(it, model), teacher, it.inputs.get("attention_mask"), heads)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
class TestRelations:
    """One class for the table, one parameter for each model type that a row serves."""

    def test_all_heads_stand_side_by_side(self, model_type):
        it = made(model_type)
        found, shape = attended(it, it.teacher), it.space.shape
        samples, tokens = (8, 10) if model_type == "vit" else it.inputs["input_ids"].shape
        widths = (shape.heads, shape.kv_heads, shape.kv_heads)
        for name, heads in zip(ATTENTION, widths, strict=True):
            assert found[name].shape == (samples, tokens, heads * shape.head_dim)
        assert bool(found[CAUSAL]) == family_of(it.teacher).causal

    def test_the_teacher_has_no_loss_and_nothing_stays_hooked(self, model_type):
        it = made(model_type)
        it.supernet.activate(it.space.teacher)
        for model in (copy.deepcopy(it.teacher), it.supernet.model, it.supernet.extract(it.space.teacher)):
            assert loss(it, model).item() == pytest.approx(0.0, abs=1e-6)
            assert not any(module._forward_hooks for module in blocks_of(model).modules())
        assert loss(it, tiny(model_type, seed=1)).item() > 1e-3

    @FAST
    @given(seed=SEEDS)
    def test_any_subnet_with_attention_learns_and_active_ones_compute_as_extracted_ones(self, model_type, seed):
        it = made(model_type)
        subnet = drawn(it.space, seed)
        if not any(block.heads for block in subnet.blocks):
            return
        it.supernet.activate(subnet)
        model = it.supernet.extract(subnet)
        found = loss(it, model)
        assert found.item() == pytest.approx(loss(it, it.supernet.model).item(), rel=1e-3, abs=1e-6)
        found.backward()
        projections = last_with_attention(model).get_submodule(family_of(model).query)
        gradients = [parameter.grad for parameter in projections.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert found.item() < 1e-6 or any(gradient.any() for gradient in gradients)

    def test_factored_projections_and_last_blocks_that_are_gone(self, model_type):
        it = made(model_type)
        factored = it.space.teacher.with_block(2, replace(it.space.teacher.blocks[2], rank_qkv=4))
        model = it.supernet.extract(factored)
        assert isinstance(blocks_of(model)[2].get_submodule(family_of(model).query), nn.Sequential)
        assert loss(it, model).item() > 1e-4
        shorter = it.supernet.extract(it.space.teacher.with_block(2, SKIPPED))
        assert last_with_attention(shorter) is blocks_of(shorter)[1]
        assert loss(it, shorter).item() > 1e-4
        if not different_windows(it.teacher):
            without = BlockConfig(0, 0, it.space.shape.ffn)
            model = it.supernet.extract(it.space.teacher.with_block(2, without))
            assert last_with_attention(model) is blocks_of(model)[1]
            assert loss(it, model).item() == pytest.approx(loss(it, shorter).item(), rel=1e-4)
            nothing = SubnetConfig((without,) * 3, it.space.shape.hidden_size)
            with pytest.raises(ValueError, match="`relations` must be 0 for a subnet without attention"):
                loss(it, it.supernet.extract(nothing))


@pytest.mark.parametrize("model_type", [t for t in MODEL_TYPES if t != "vit"])
def test_values_are_what_the_attention_of_a_single_token_passes_on(model_type):
    model, seen = made(model_type).teacher, []
    family = family_of(model)
    handle = (
        blocks_of(model)[2]
        .get_submodule(family.attention_out)
        .register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    )
    with torch.inference_mode(), attention_outputs(model, ["values"]) as found:
        model(**{name: values[:, :1] for name, values in tiny_batches(1)[0].items()})
    handle.remove()
    shape = made(model_type).space.shape
    values = found["values"].view(8, shape.kv_heads, shape.head_dim)
    repeated = values.repeat_interleave(shape.heads // shape.kv_heads, dim=1)
    assert torch.allclose(seen[0].view(8, -1), repeated.flatten(1), atol=1e-6)


@pytest.mark.parametrize("model_type", ABSOLUTE)
def test_queries_and_keys_are_what_attention_is_made_of(model_type):
    model = AutoModel.from_config(made(model_type).teacher.config, attn_implementation="eager")
    batch = tiny_images(1)[0] if model_type == "vit" else tiny_batches(1)[0]
    with torch.inference_mode(), attention_outputs(model.eval(), ["queries", "keys"]) as found:
        expected = model(**batch, output_attentions=True).attentions[-1]
    queries, keys = (found[name].unflatten(-1, (4, 8)).transpose(1, 2) for name in ("queries", "keys"))
    scores = queries @ keys.transpose(-1, -2) / 8**0.5
    if found[CAUSAL]:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
    if "attention_mask" in batch:
        scores = scores.masked_fill(batch["attention_mask"][:, None, None, :] == 0, float("-inf"))
    assert torch.allclose(scores.softmax(dim=-1), expected, atol=1e-5)


def test_without_a_name_the_model_is_not_looked_at():
    with attention_outputs(nn.Linear(2, 2), ["hidden"]) as seen:
        assert seen == {}
    with pytest.raises(ValueError, match="`model_type` must be one of"), attention_outputs(nn.Linear(2, 2), ["keys"]):
        pass
