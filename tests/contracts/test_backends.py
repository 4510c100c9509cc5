"""Every backend keeps the same contract."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from latency_models.backends.base import BACKENDS, BackendError, Run, make_backend
from latency_models.backends.onnx import export_onnx
from latency_models.device import Device
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs, largest_difference
from tests.models import tiny_bert

DEVICES = {
    "torch": Device("torch", "torch"),
    "torch_compile": Device("torch_compile", "torch", options={"compile": True}),
    "torch_bf16": Device("torch_bf16", "torch", precision="bf16"),
    "onnxruntime": Device("onnxruntime", "onnxruntime"),
    "onnxruntime_2_threads": Device("onnxruntime_2_threads", "onnxruntime", threads=2),
    "onnxruntime_basic": Device("onnxruntime_basic", "onnxruntime", options={"graph_optimization": "basic"}),
    "onnxruntime_int8": Device("onnxruntime_int8", "onnxruntime", precision="int8"),
    "onnxruntime_int8_static": Device("a", "onnxruntime", precision="int8", options={"quantization": "static"}),
    "onnxruntime_int4": Device("onnxruntime_int4", "onnxruntime", precision="int4"),
    "openvino": Device("openvino", "openvino"),
    "openvino_bf16": Device("openvino_bf16", "openvino", precision="bf16"),
    "openvino_int8": Device("openvino_int8", "openvino", precision="int8"),
    "openvino_int8_static": Device("b", "openvino", precision="int8", options={"quantization": "static"}),
    "openvino_int4": Device("openvino_int4", "openvino", precision="int4"),
}
ON_GPU = {
    "torch_cuda": Device("torch_cuda", "torch", provider="cuda"),
    "torch_cuda_fp16": Device("torch_cuda_fp16", "torch", precision="fp16", provider="cuda"),
    "torch_cuda_bf16": Device("torch_cuda_bf16", "torch", precision="bf16", provider="cuda"),
    "torch_cuda_compile": Device("torch_cuda_compile", "torch", provider="cuda", options={"compile": True}),
    "torch_cuda_compile_graphs": Device(
        "torch_cuda_compile_graphs", "torch", provider="cuda", options={"compile": True, "mode": "reduce-overhead"}
    ),
    "torch_cuda_graph": Device("torch_cuda_graph", "torch", provider="cuda", options={"cuda_graph": True}),
    "torch_cuda_graph_fp16": Device(
        "torch_cuda_graph_fp16", "torch", precision="fp16", provider="cuda", options={"cuda_graph": True}
    ),
}
# Relative to the outputs' scale, against torch in fp32.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02, "int8": 0.2, "int4": 0.6}


@pytest.fixture(scope="module")
def module():
    return Pooled(tiny_bert())


@pytest.fixture(scope="module")
def graph(module):
    return export_onnx(module, example_inputs(), POOLED_NAMES)


@pytest.fixture(params=[*DEVICES, *(pytest.param(name, marks=pytest.mark.gpu) for name in ON_GPU)])
def device(request):
    found = {**DEVICES, **ON_GPU}[request.param]
    if request.param in ON_GPU and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip(found.backend)
    return found


class TestBackend:
    """One class for the protocol, one parameter per implementation."""

    def model_for(self, device, module, graph):
        return module if BACKENDS[device.backend].takes == "module" else graph

    def test_it_runs_and_gives_the_models_outputs(self, device, module, graph):
        inputs = example_inputs(2, 9)
        run = make_backend(device).compile(self.model_for(device, module, graph), inputs)
        assert isinstance(run, Run)
        assert run() is None
        assert largest_difference(run, module, inputs) < TOLERANCES[device.precision]

    def test_outputs_do_not_change_with_the_next_run(self, device, module, graph):
        run = make_backend(device).compile(self.model_for(device, module, graph), example_inputs())
        first = run.outputs()
        kept = {name: value.copy() for name, value in first.items()}
        run()
        second = run.outputs()
        assert all(np.array_equal(first[name], kept[name]) for name in kept)
        assert all(np.allclose(first[name], second[name], rtol=1e-3, atol=1e-5) for name in kept)

    def test_other_inputs_can_be_fed(self, device, module, graph):
        first, second = example_inputs(2, 9), example_inputs(2, 9, seed=5)
        kept = {name: value.clone() for name, value in first.items()}
        run = make_backend(device).compile(self.model_for(device, module, graph), first)
        run.feed(second)
        assert largest_difference(run, module, second) < TOLERANCES[device.precision]
        assert all(torch.equal(first[name], kept[name]) for name in kept)
        assert not np.allclose(first["input_ids"], second["input_ids"])

    def test_it_takes_arrays_as_well_as_tensors(self, device, module, graph):
        inputs = {name: value.numpy() for name, value in example_inputs().items()}
        run = make_backend(device).compile(self.model_for(device, module, graph), inputs)
        assert len(run.outputs()) == len(POOLED_NAMES)

    def test_two_models_live_side_by_side(self, device, module, graph):
        model, backend = self.model_for(device, module, graph), make_backend(device)
        short, long = backend.compile(model, example_inputs(1, 4)), backend.compile(model, example_inputs(3, 8))
        for _ in range(2):
            assert next(iter(short.outputs().values())).shape[:2] == (1, 4)
            assert next(iter(long.outputs().values())).shape[:2] == (3, 8)

    def test_the_model_is_not_changed(self, device, module, graph):
        model = self.model_for(device, module, graph)
        if isinstance(model, onnx.ModelProto):
            before = model.SerializeToString(deterministic=True)
            make_backend(device).compile(model, example_inputs())
            assert model.SerializeToString(deterministic=True) == before
        else:
            before = {name: value.clone() for name, value in model.state_dict().items()}
            model.train()
            try:
                make_backend(device).compile(model, example_inputs())
                assert all(part.training for part in model.modules())
            finally:
                model.eval()
            after = model.state_dict()
            assert all(torch.equal(value, after[name]) for name, value in before.items())

    def test_threads_of_the_process_stay_as_they_were(self, device, module, graph):
        before = torch.get_num_threads()
        make_backend(device).compile(self.model_for(device, module, graph), example_inputs())()
        assert torch.get_num_threads() == before

    def test_a_missing_or_unknown_input_is_named(self, device, module, graph):
        model, backend = self.model_for(device, module, graph), make_backend(device)
        inputs = example_inputs()
        with pytest.raises(BackendError, match="attention_mask"):
            backend.compile(model, {"input_ids": inputs["input_ids"]})
        with pytest.raises(BackendError, match="pixel_values"):
            backend.compile(model, inputs | {"pixel_values": torch.zeros(1)})

    def test_a_wrong_model_is_refused(self, device):
        with pytest.raises(BackendError):
            make_backend(device).compile(42, example_inputs())

    def test_an_opset_that_the_runtime_lacks_is_named(self, device, graph):
        if BACKENDS[device.backend].takes == "module":
            pytest.skip("takes no graphs")
        newer = onnx.ModelProto.FromString(graph.SerializeToString())
        newer.opset_import[0].version = 99
        with pytest.raises(BackendError, match=r"opset.* 99\b.* (up to|at most) \d+|at most \d+.* 99\b") as failure:
            make_backend(device).compile(newer, example_inputs())
        assert "\n" not in str(failure.value)
        assert "older" in str(failure.value)

    def test_unknown_options_and_providers_are_refused(self, device):
        with pytest.raises(BackendError, match="unknown option 'speed'"):
            make_backend(Device("x", device.backend, options={"speed": 3}))
        with pytest.raises(BackendError, match="abacus"):
            make_backend(Device("x", device.backend, provider="abacus"))


@pytest.mark.parametrize(
    ("provider", "options", "rule"),
    [
        ("cpu", {}, "`options.cuda_graph` needs provider cuda, but got 'cpu'"),
        ("cuda", {"compile": True}, "either `options.cuda_graph` or `options.compile`"),
    ],
)
def test_a_cuda_graph_is_refused_where_there_is_none_to_record(provider, options, rule):
    with pytest.raises(BackendError, match=rule):
        make_backend(Device("x", "torch", provider=provider, options={"cuda_graph": True, **options}))


def test_an_unknown_backend_is_refused():
    with pytest.raises(
        ValueError, match=r"`device.backend` must be one of onnxruntime, openvino, tensorrt, torch, but got 'mxnet'"
    ):
        make_backend(Device("x", "mxnet"))


def test_a_backend_that_is_not_installed_says_what_installs_it(monkeypatch):
    monkeypatch.setattr("latency_models.backends.base.library_version", lambda name: None)
    with pytest.raises(BackendError, match=r"openvino is not installed; run `pip install hwnas\[openvino\]`"):
        make_backend(Device("x", "openvino"))
