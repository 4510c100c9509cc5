"""Quantised blocks compute what ONNX Runtime's quantised graphs compute, whatever shares their batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from latency_models.backends.base import make_backend
from latency_models.backends.quantize import quantize_int8
from latency_models.backends.quantize_weights import quantize_int4
from latency_models.device import Device
from latency_models.subnet_compiler import SubnetCompiler
from search_spaces.calibrate import calibrate
from search_spaces.fake_quantize import fake_quantized, quantization_aware
from search_spaces.library import Library
from search_spaces.quantized import QuantizedMatrix, quantize_activations
from search_spaces.subnet import SKIPPED, SubnetConfig
from search_spaces.supernet import Supernet
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs
from tests.models import tiny_batches, tiny_bert, tiny_space

FAST = settings(max_examples=25, deadline=None)
INPUTS = example_inputs(batch=1, length=3)
BATCH = tiny_batches(count=1, seed=9)[0]


@pytest.fixture(scope="module")
def teacher():
    return tiny_bert()


@pytest.fixture(scope="module")
def library(teacher):
    return calibrate(teacher, tiny_batches(), tiny_space(teacher))


@pytest.fixture(scope="module")
def supernet(teacher, library):
    space = tiny_space(teacher, precision=["int4", "int8", "fp32"])
    return Supernet(copy.deepcopy(teacher), library, space)


@pytest.fixture(scope="module")
def compiler(supernet):
    return SubnetCompiler(Device("cpu", "onnxruntime"), supernet, INPUTS, POOLED_NAMES, deployable=Pooled)


@torch.inference_mode()
def run(model, batch=BATCH):
    return model(**batch).last_hidden_state


def product_graph(weight: torch.Tensor) -> onnx.ModelProto:
    """One projection as a graph."""
    outputs, inputs = weight.shape
    node = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, None, inputs])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, None, outputs])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.numpy().T), "weight")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("inputs", [32, 40, 96])
def test_weights_are_those_of_onnx_runtimes_tools(inputs):
    weight = random(24, inputs) * torch.linspace(0.1, 3, 24)[:, None]
    weight[3] = 0.0
    int8 = {t.name: numpy_helper.to_array(t) for t in quantize_int8(product_graph(weight)).graph.initializer}
    mine = QuantizedMatrix.of(weight, "int8")
    integers = int8["weight_quantized"].astype(np.int16) - int8["weight_zero_point"]
    assert np.array_equal(integers.T, mine.integers.numpy())
    assert np.allclose(int8["weight_scale"], mine.scale[:, 0].numpy(), rtol=1e-6)
    # What int4 weights stand for is what the runtime gives for unit vectors, but for its int8 activations.
    found = make_backend(Device("x", "onnxruntime")).compile(
        quantize_int4(product_graph(weight)), {"x": torch.eye(inputs)[None]}
    )
    expected = found.outputs()["y"][0].T
    assert np.abs(expected - QuantizedMatrix.of(weight, "int4").dequantized().numpy()).max() < 1e-5


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_products_are_those_of_onnx_runtime(precision):
    weight, values = random(24, 64), random(1, 9, 64, seed=1).abs_() - 0.3
    quantize = quantize_int8 if precision == "int8" else quantize_int4
    run = make_backend(Device("x", "onnxruntime")).compile(quantize(product_graph(weight)), {"x": values})
    expected = run.outputs()["y"]
    found = QuantizedMatrix.of(weight, precision).product(values, None).numpy()
    exact = (values @ weight.T).numpy()
    tolerance = 1e-5 if precision == "int8" else 0.2 * np.abs(exact - expected).max()
    assert np.abs(found - expected).max() < tolerance
    assert np.abs(exact - expected).max() > 10 * tolerance or precision == "int4"


def test_constant_inputs_keep_their_value():
    zeros, _ = quantize_activations(torch.zeros(2, 3, 4), None)
    assert not zeros.any()
    integers, scale = quantize_activations(torch.full((1, 3, 4), 2.5), None)
    assert torch.allclose(integers * scale, torch.full((1, 3, 4), 2.5))


def test_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match="`precision` must be one of int8, int4, but got 'fp16'"):
        QuantizedMatrix.of(random(2, 2), "fp16")


@FAST
@given(seed=st.integers(0, 2**31), length=st.integers(1, 7), padding=st.integers(0, 5))
def test_a_sequence_computes_alone_as_in_any_batch(seed, length, padding):
    weight = QuantizedMatrix.of(random(6, 8, seed=seed), "int8")
    alone = random(1, length, 8, seed=seed)
    # What stands at padding and in other sequences is far larger.
    batch = 100 * random(3, length + padding, 8, seed=seed + 1)
    batch[1, :length] = alone[0]
    real = torch.ones(3, length + padding, dtype=torch.bool)
    real[1, length:] = False
    assert torch.equal(weight.product(batch, real)[1, :length], weight.product(alone, None)[0])


@FAST
@given(seed=st.integers(0, 2**31))
def test_activated_subnets_compute_as_their_quantised_graphs(supernet, compiler, seed):
    subnet = supernet.space.sample(np.random.default_rng(seed), 1)[0]
    expected = compiler.compile(subnet).outputs()["last_hidden_state"]
    supernet.activate(subnet)
    found = run(supernet.model, INPUTS).numpy()
    supernet.activate(subnet.plain)
    exact = run(supernet.model, INPUTS).numpy()
    # A value between two integers may be rounded to the other one: most are not.
    difference, lost = np.abs(found - expected).mean(), np.abs(exact - expected).mean()
    assert difference <= 0.35 * lost + 1e-5
    assert np.abs(found - expected).max() < 0.1 * np.abs(exact).max()


def test_quantising_changes_the_output_block_by_block(supernet):
    outputs = []
    whole = supernet.space.teacher
    for precision in ("fp32", "int8", "int4"):
        supernet.activate(whole.with_block(1, replace(whole.blocks[1], precision=precision)))
        outputs.append(run(supernet.model))
    exact, int8, int4 = outputs
    assert 0 < (int8 - exact).norm() < 0.5 * (int4 - exact).norm()


def test_the_largest_subnet_stays_the_teacher_and_extracted_models_are_plain(supernet, teacher):
    small = SubnetConfig((supernet.space.smallest.blocks[0], SKIPPED, supernet.space.teacher.blocks[0]), 32)
    quantised = small.on_device("int8")
    assert [block.precision for block in quantised.blocks] == ["int4", "fp32", "int8"]
    supernet.activate(quantised)
    extracted = supernet.extract(quantised)
    assert not any(module._forward_pre_hooks for module in extracted.modules())
    assert {type(module) for module in extracted.encoder.layer[0].attention.self.modules()} <= {
        type(teacher.encoder.layer[0].attention.self), nn.Linear, nn.Sequential, nn.Dropout,
    }  # fmt: skip
    assert torch.equal(run(extracted), run(supernet.extract(quantised.plain)))
    assert supernet.active == quantised
    supernet.activate(supernet.space.teacher)
    assert torch.equal(run(supernet.model), run(teacher))
    assert not supernet.model._forward_pre_hooks


def test_plain_models_are_judged_as_if_quantised_and_left_as_they_were(supernet):
    subnet = supernet.space.sample(np.random.default_rng(5), 1)[0].plain.on_device("int8")
    model = supernet.extract(subnet)
    before, names = run(model), [name for name, _ in model.named_modules()]
    supernet.activate(subnet)
    with fake_quantized(model, [subnet.blocks[index].precision for index in subnet.kept]) as judged:
        assert torch.equal(run(judged), run(supernet.model))
    assert torch.equal(run(model), before)
    assert [name for name, _ in model.named_modules()] == names
    with fake_quantized(model, ["fp32"] * subnet.depth):
        assert torch.equal(run(model), before)
    with pytest.raises(ValueError, match="one a block, but got 9"), fake_quantized(model, ["int8"] * 9):
        pass


def test_a_model_is_trained_as_it_will_compute_and_stays_plain(supernet):
    subnet = supernet.space.sample(np.random.default_rng(5), 1)[0].plain.on_device("int8")
    model = supernet.extract(subnet)
    names = [name for name, _ in model.named_modules()]
    parameters = {id(parameter) for parameter in model.parameters()}
    target = run(supernet.extract(supernet.space.teacher))

    def loss():
        return (model(**BATCH).last_hidden_state - target).square().mean()

    precisions = ["int8"] * subnet.depth
    with fake_quantized(model, precisions), torch.inference_mode():
        before = float(loss())
    with quantization_aware(model, precisions):
        assert float(loss().detach()) == pytest.approx(before, rel=1e-4)
        assert {id(parameter) for parameter in model.parameters()} == parameters
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(10):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    projections = [m for m in model.encoder.modules() if isinstance(m, nn.Linear)]
    assert all(m.weight.grad is not None and m.weight.grad.abs().sum() > 0 for m in projections)
    assert [name for name, _ in model.named_modules()] == names
    assert not model._forward_pre_hooks
    with fake_quantized(model, precisions), torch.inference_mode():
        assert float(loss()) < before


def test_gradients_pass_rounding_as_if_it_were_not_there(teacher):
    model = copy.deepcopy(teacher)
    linear = model.encoder.layer[0].output.dense
    inputs = torch.randn(2, 5, linear.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with quantization_aware(model, ["int4", "fp32", "fp32"]):
        model.encoder.layer[0].output.dense(inputs).sum().backward()
    # Int4 rounds weights alone: their gradient is that of the exact product, the inputs' that of rounded weights.
    assert torch.allclose(linear.weight.grad, inputs.detach().sum(dim=(0, 1)).expand_as(linear.weight), atol=1e-5)
    rounded = QuantizedMatrix.of(linear.weight, "int4").dequantized()
    assert torch.allclose(inputs.grad, rounded.sum(dim=0).expand_as(inputs), atol=1e-5)
    with pytest.raises(ValueError, match="one a block, but got 9"), quantization_aware(model, ["int8"] * 9):
        pass


def test_masks_are_found_wherever_they_stand_among_the_arguments(supernet):
    supernet.activate(supernet.space.teacher.on_device("int8"))
    with torch.inference_mode():
        by_place = supernet.model(BATCH["input_ids"], BATCH["attention_mask"]).last_hidden_state
    assert torch.equal(by_place, run(supernet.model))


def test_another_library_is_quantised_anew(supernet, library):
    subnet = supernet.space.smallest.plain.on_device("int8")
    supernet.activate(subnet)
    before = run(supernet.model)
    supernet.use(Library({name: 2 * tensor for name, tensor in library.tensors.items()}, library.metadata))
    other = run(supernet.model)
    supernet.use(library)
    assert not torch.allclose(other, before)
    assert torch.equal(run(supernet.model), before)
