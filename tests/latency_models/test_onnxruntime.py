"""What ONNX Runtime's other execution providers are given; and running with bound memory, here on the CPU."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from latency_models.backends.base import BackendError, make_backend
from latency_models.backends.onnx import export_onnx
from latency_models.backends.onnxruntime import _BoundRun, provider_options
from latency_models.device import Device
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs, largest_difference
from tests.models import tiny_bert


@pytest.fixture(scope="module")
def graph():
    return export_onnx(Pooled(tiny_bert()), example_inputs(), POOLED_NAMES)


def test_bound_memory_gives_the_models_outputs(graph):
    inputs = example_inputs(3, 5)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    run = _BoundRun(session, {name: value.numpy() for name, value in inputs.items()})
    assert largest_difference(run, Pooled(tiny_bert()), inputs) < 1e-4
    first = run.outputs()
    run()
    assert all(np.array_equal(first[name], value) for name, value in run.outputs().items())


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (Device("x", "onnxruntime", provider="cuda"), {"enable_cuda_graph": "0", "use_tf32": "0"}),
        (
            Device("x", "onnxruntime", provider="CUDAExecutionProvider", options={"cuda_graph": True, "tf32": True}),
            {"enable_cuda_graph": "1", "use_tf32": "1"},
        ),
        (
            Device("x", "onnxruntime", provider="tensorrt", precision="fp16", options={"engine_cache": "kept"}),
            {
                "trt_fp16_enable": "1",
                "trt_int8_enable": "0",
                "trt_cuda_graph_enable": "0",
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": "kept",
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": "kept",
            },
        ),
        (
            Device("x", "onnxruntime", threads=3, provider="openvino"),
            {"device_type": "CPU", "num_of_threads": "3", "num_streams": "1", "precision": "FP32"},
        ),
        (Device("x", "onnxruntime", provider="coreml"), {}),
    ],
    ids=["cuda", "cuda with options", "tensorrt", "openvino", "coreml"],
)
def test_providers_get_their_settings(device, expected):
    assert provider_options(device) == expected


def test_options_with_few_values_name_them():
    with pytest.raises(BackendError, match="`quantization` must be one of dynamic, static, but got 'magic'"):
        make_backend(Device("x", "onnxruntime", options={"quantization": "magic"}))
    with pytest.raises(BackendError, match="`graph_optimization` must be one of disabled, basic, extended, all"):
        make_backend(Device("x", "onnxruntime", options={"graph_optimization": "most"}))


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("options", [{}, {"cuda_graph": True}], ids=["plain", "cuda graph"])
def test_nvidia_providers_compute_what_torch_computes(graph, provider, options):
    device = Device("x", "onnxruntime", provider=provider, options=options)
    name = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[provider]
    if not torch.cuda.is_available() or name not in onnxruntime.get_available_providers():
        pytest.skip(f"needs a CUDA device and ONNX Runtime with {name}")
    inputs = example_inputs()
    run = make_backend(device).compile(graph, inputs)
    assert largest_difference(run, Pooled(tiny_bert()), inputs) < 1e-3
