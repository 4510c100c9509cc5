"""What analytic costs are, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from search_spaces.cost import Workload, cost, costs
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig
from tests.models import tiny


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3"])
def test_bytes_of_the_cache_are_those_of_the_models_own(model_type):
    model = tiny(model_type, language_model=True)
    shape = ModelShape.from_model(model)
    full = BlockConfig(shape.heads, shape.kv_heads, shape.ffn)
    teacher = SubnetConfig((full,) * shape.num_blocks, shape.hidden_size)
    with torch.inference_mode():
        cache = model(torch.ones(2, 7, dtype=torch.int64), use_cache=True).past_key_values
    counted = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    prefill, decode = Workload(2, 7, "prefill"), Workload(2, 6, "decode")
    assert cost(shape, teacher, prefill).kv_cache_bytes == counted
    # After the next token the cache is one longer than what was in it.
    assert cost(shape, teacher, decode).kv_cache_bytes == counted
    assert cost(shape, teacher, Workload(2, 7)).kv_cache_bytes == 0
    one = SubnetConfig((full, *[SKIPPED] * (shape.num_blocks - 1)), shape.hidden_size)
    assert cost(shape, one, prefill).kv_cache_bytes == counted // shape.num_blocks


def test_activations_alive_at_once_are_those_of_the_block_that_needs_most():
    shape = ModelShape.from_model(tiny("bert"))  # 4 heads of 8, a stream of 32
    wide, long = BlockConfig(1, 1, 64), BlockConfig(4, 4, 16)
    subnets = [SubnetConfig((block,) * shape.num_blocks, 32) for block in (wide, long)]
    found = costs(shape, subnets, Workload(2, 10)).peak_activation_bytes
    # The stream and the FFN's neurons; the stream, queries, keys and values, and four tables of scores.
    assert found.tolist() == [4 * 20 * (32 + 64), 4 * (20 * (32 + 3 * 32) + 2 * 4 * 100)]
    skipped = SubnetConfig((SKIPPED,) * (shape.num_blocks - 1) + (wide,), 32)
    assert cost(shape, skipped, Workload(2, 10)).peak_activation_bytes == found[0]
    gated = ModelShape.from_model(tiny("llama"))
    full = BlockConfig(gated.heads, gated.kv_heads, gated.ffn)
    decode = cost(gated, SubnetConfig((full,) * gated.num_blocks, gated.hidden_size), Workload(1, 5, "decode"))
    group = gated.heads * gated.head_dim + 2 * 6 * gated.kv_heads * gated.head_dim + gated.heads * 6
    assert decode.peak_activation_bytes == 4 * (gated.hidden_size + max(group, 2 * gated.ffn))


def test_a_workload_longer_than_the_position_embeddings_is_refused():
    Workload(sequence_length=512).check_positions(512)
    Workload(sequence_length=511, phase="decode").check_positions(512)
    Workload(sequence_length=100_000).check_positions(None)
    for workload, most in ((Workload(sequence_length=513), 512), (Workload(sequence_length=512, phase="decode"), 511)):
        with pytest.raises(ValueError, match=f"`workload.sequence_length` must be at most {most}, because .* has 512"):
            workload.check_positions(512)
