"""Causal language models with their KV cache in ONNX: token by token as `transformers` generates."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from latency_models.backends.onnx_cache import empty_cache, export_causal_onnx, generate, has_cache
from search_spaces.calibrate import calibrate
from search_spaces.supernet import Supernet
from tests.models import tiny, tiny_batches, tiny_bert, tiny_space


def session_of(graph):
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def generated(model, prompt, count):
    """What `generate` of transformers says."""
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(torch.from_numpy(prompt), attention_mask=torch.ones(prompt.shape), **options).numpy()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3"])
def test_it_generates_what_transformers_generates(model_type):
    model = tiny(model_type, language_model=True)
    graph = export_causal_onnx(model, metadata={"study": "first"})
    assert has_cache(graph)
    prompt = np.random.default_rng(0).integers(1, 90, (2, 6))
    found = generate(session_of(graph), empty_cache(graph, 2), prompt, 12)
    assert np.array_equal(found, generated(model, prompt, 12))
    one = generate(session_of(graph), empty_cache(graph), prompt[:1, :1], 5)
    assert np.array_equal(one, generated(model, prompt[:1, :1], 5))
    assert {entry.key: entry.value for entry in graph.metadata_props}["study"] == "first"


def test_names_are_those_that_other_tools_expect():
    graph = export_causal_onnx(tiny("llama", language_model=True)).graph
    blocks = 3
    past = [f"past_key_values.{index}.{part}" for index in range(blocks) for part in ("key", "value")]
    assert [entry.name for entry in graph.input] == ["input_ids", "attention_mask", *past]
    present = [f"present.{index}.{part}" for index in range(blocks) for part in ("key", "value")]
    assert [entry.name for entry in graph.output] == ["logits", *present]
    sizes = {
        entry.name: [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        for entry in graph.input
    }
    assert sizes["input_ids"] == ["batch_size", "sequence_length"]
    assert sizes["past_key_values.0.key"][0::2] == ["batch_size", "past_sequence_length"]


def test_subnets_whose_blocks_differ_in_heads():
    teacher = tiny("llama", language_model=True)
    space = tiny_space(teacher, heads=[0.5, 1.0])
    supernet = Supernet(teacher, calibrate(teacher, tiny_batches(), space), space)
    prompt = np.random.default_rng(1).integers(1, 90, (1, 4))
    for subnet in space.sample(np.random.default_rng(3), 2):
        model = supernet.extract(subnet)
        graph = export_causal_onnx(model)
        heads = {value.shape[1] for value in empty_cache(graph).values()}
        assert heads == {subnet.blocks[index].kv_heads for index in subnet.kept}
        assert np.array_equal(generate(session_of(graph), empty_cache(graph), prompt, 6), generated(model, prompt, 6))


def test_encoders_have_no_cache():
    from latency_models.backends.onnx import export_onnx
    from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs

    assert not has_cache(export_onnx(Pooled(tiny_bert()), example_inputs(), POOLED_NAMES))
