"""Causal models as they are deployed: one graph for prompts and for token after token, cut out of the teacher's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from latency_models.backends.base import make_backend, with_cache
from latency_models.backends.causal import CausalModel
from latency_models.backends.graph_students import student_graph
from latency_models.backends.graph_template import GraphTemplate
from latency_models.backends.onnx_cache import empty_cache, generate
from latency_models.backends.quantize_static import quantize_static
from latency_models.backends.template_store import read, write
from latency_models.device import Device
from search_spaces.calibrate import calibrate
from search_spaces.supernet import Supernet
from tests.models import randomise, tiny, tiny_batches, tiny_space

DEVICE = Device("cpu", "onnxruntime")


def inputs_of(new: int, cached: int = 0, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 90, (batch, new), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones(batch, cached + new, dtype=torch.int64)}


def session_of(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


class World:
    """A teacher with its template, and subnets of every kind: other widths, a skipped block, no attention."""

    def __init__(self, model_type: str) -> None:
        self.teacher = tiny(model_type, language_model=True)
        levels = {"heads": [0.5, 1.0], "ffn": [0.5, 1.0], "no_attention": [False, True]}
        space = tiny_space(self.teacher, **levels, rank_attention_out=[0], rank_ffn_out=[0])
        self.supernet = Supernet(copy.deepcopy(self.teacher), calibrate(self.teacher, tiny_batches(), space), space)
        self.template = GraphTemplate.from_model(CausalModel(self.teacher), inputs_of(8), ["logits"])
        generator = np.random.default_rng(0)
        self.subnets = [space.teacher, *space.sample(generator, 8)]

    def graph(self, subnet: Any) -> onnx.ModelProto:
        skipped = [index for index, block in enumerate(subnet.blocks) if block.skipped]
        return self.template.edit(self.supernet.linear_weights(subnet), skipped)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def generated(model: Any, prompt: np.ndarray, count: int) -> np.ndarray:
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(torch.from_numpy(prompt), attention_mask=torch.ones(prompt.shape), **options).numpy()


def test_every_subnet_s_graph_generates_what_its_model_generates(world: World) -> None:
    prompt = np.random.default_rng(1).integers(1, 90, (2, 5))
    kinds = set()
    for subnet in world.subnets:
        model, graph = world.supernet.extract(subnet), world.graph(subnet)
        onnx.checker.check_model(graph, full_check=True)
        kept = [subnet.blocks[index] for index in subnet.kept]
        attending = [block.kv_heads for block in kept if block.heads]
        cache = empty_cache(graph, 2)
        assert [value.shape[1] for value in cache.values()] == [heads for heads in attending for _ in range(2)]
        assert [entry.name for entry in graph.graph.output[1:]] == [
            name.replace("past_key_values", "present") for name in cache
        ]
        found = generate(session_of(graph), cache, prompt, 6)
        assert np.array_equal(found, generated(model, prompt, 6))
        kinds |= {len(kept) < 3, any(not block.heads for block in kept)}
    assert kinds == {True, False}


@pytest.mark.parametrize("stored", [False, True])
def test_the_graph_of_a_trained_subnet(world: World, *, stored: bool) -> None:
    subnet, teacher = world.subnets[1], CausalModel(world.teacher)
    trained = randomise(world.supernet.extract(subnet), seed=7)
    template = read(write(world.template, teacher) or b"", teacher) if stored else world.template
    graph = student_graph(template, CausalModel(trained), subnet.kept)
    prompt = np.random.default_rng(1).integers(1, 90, (1, 4))
    assert np.array_equal(generate(session_of(graph), empty_cache(graph), prompt, 6), generated(trained, prompt, 6))


@pytest.mark.parametrize("cached", [0, 7])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_fill_the_cache_that_is_not_given(world: World, runtime: str, cached: int) -> None:
    pytest.importorskip(runtime)
    inputs, module = inputs_of(3, cached), CausalModel(world.teacher)
    run = make_backend(Device("cpu", runtime)).compile(world.graph(world.subnets[0]), inputs)
    eager = make_backend(Device("torch", "torch")).compile(module, inputs)
    with torch.inference_mode():
        expected = module(**inputs)[0].numpy()
    assert run.outputs()["logits"] == pytest.approx(expected, abs=1e-3)
    assert eager.outputs()["output_0"] == pytest.approx(expected, abs=1e-5)
    other = {**inputs, "input_ids": inputs["input_ids"] + 1}
    run.feed(other)
    with torch.inference_mode():
        assert run.outputs()["logits"] == pytest.approx(module(**other)[0].numpy(), abs=1e-3)


def test_a_standing_cache_of_zeros_is_what_the_graph_s_is(world: World) -> None:
    module, inputs = CausalModel(world.teacher), inputs_of(1, 5)
    graph = world.graph(world.subnets[0])
    given = with_cache({name: value.shape for name, value in empty_cache(graph, 2).items()}, as_numpy(inputs))
    logits = session_of(graph).run(["logits"], given)[0]
    with torch.inference_mode():
        first, again = module(**inputs)[0], module(**inputs)[0]
    assert logits == pytest.approx(first.numpy(), abs=1e-3)
    assert torch.equal(first, again)  # A run leaves the cache as it was.


def as_numpy(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in inputs.items()}


def test_prompts_that_are_padded_on_the_left(world: World) -> None:
    graph = world.graph(world.subnets[0])
    prompt = np.random.default_rng(2).integers(1, 90, (1, 5))
    padded = np.concatenate([np.zeros((1, 3), dtype=np.int64), prompt], axis=1)
    mask = np.concatenate([np.zeros((1, 3)), np.ones((1, 5))], axis=1).astype(np.int64)
    session, cache = session_of(graph), empty_cache(graph)
    alone = session.run(["logits"], {"input_ids": prompt, "attention_mask": np.ones_like(prompt), **cache})[0]
    beside = session.run(["logits"], {"input_ids": padded, "attention_mask": mask, **cache})[0]
    assert beside[:, 3:] == pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_with_scales_found_in_advance(world: World, runtime: str) -> None:
    graph = world.graph(world.subnets[0])
    if runtime == "onnxruntime":
        run = make_backend(DEVICE).compile(quantize_static(graph, [as_numpy(inputs_of(9))]), inputs_of(9))
    else:
        pytest.importorskip("nncf")
        static = Device("cpu", "openvino", precision="int8", options={"quantization": "static"})
        run = make_backend(static).compile(graph, inputs_of(9))
    found = run.outputs()["logits"]
    with torch.inference_mode():
        expected = CausalModel(world.teacher)(**inputs_of(9))[0].numpy()
    cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.9
