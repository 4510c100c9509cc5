"""Int8 weights as integers that a CPU multiplies without overflow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from latency_models.backends import byte_products
from latency_models.backends.base import make_backend
from latency_models.backends.byte_products import saturates, suited
from latency_models.backends.onnx import export_onnx
from latency_models.backends.quantize import quantize_int8
from latency_models.backends.quantize_static import quantize_static
from latency_models.device import Device
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs
from tests.models import tiny_bert


@pytest.fixture(scope="module")
def graph():
    return export_onnx(Pooled(tiny_bert()), example_inputs(), POOLED_NAMES)


@pytest.fixture(scope="module", params=["operators", "pairs"])
def quantized(request, graph):
    if request.param == "operators":
        return quantize_int8(graph)
    return quantize_static(graph, [{name: value.numpy() for name, value in example_inputs().items()}])


def stored(graph):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def numbers(graph):
    """What the integers of weights stand for, before their scales."""
    found = stored(graph)
    return {
        name: value.astype(int) - found[name.replace("_quantized", "_zero_point")]
        for name, value in found.items()
        if name.endswith("_quantized") and value.ndim == 2
    }


@pytest.mark.parametrize("unsigned", [True, False])
def test_the_numbers_are_the_same_however_they_are_stored(quantized, unsigned):
    found = suited(quantized, unsigned=unsigned)
    before, after = numbers(quantized), numbers(found)
    assert len(after) >= 18
    assert all(np.array_equal(before[name], after[name]) for name in before)
    kinds = {value.dtype for name, value in stored(found).items() if name in after}
    assert kinds == {np.dtype(np.uint8 if unsigned else np.int8)}
    assert suited(found, unsigned=unsigned) is found
    assert numbers(suited(found, unsigned=not unsigned)).keys() == before.keys()


def test_both_are_stored_as_this_machine_multiplies_them(quantized):
    assert suited(quantized) is quantized


def test_outputs_are_those_of_32_bits(graph):
    """The largest weights and activations there are: pairs of products pass 16 bits."""
    found = make_backend(Device("x", "onnxruntime")).compile(quantize_int8(graph), example_inputs()).outputs()
    exact = suited(quantize_int8(graph), unsigned=True)
    expected = make_backend(Device("x", "onnxruntime")).compile(exact, example_inputs()).outputs()
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() < 1e-5 * np.abs(values).max()


@given(flags=st.frozensets(st.sampled_from(["avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd"])))
def test_processors_that_overflow_are_those_of_x86_without_vnni(flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_products, "cpu_flags", lambda: flags)
        for machine, x86 in (("x86_64", True), ("AMD64", True), ("aarch64", False), ("arm64", False)):
            patch.setattr(byte_products.platform, "machine", lambda machine=machine: machine)
            assert saturates() == (x86 and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


def test_what_other_nodes_read_too_stays_as_it_is(graph):
    whole = quantize_int8(graph, embeddings=True)
    before = stored(whole)
    after = stored(suited(whole, unsigned=not saturates()))
    embeddings = [name for name in before if "embeddings" in name]
    assert embeddings
    assert all(np.array_equal(before[name], after[name]) for name in embeddings)
