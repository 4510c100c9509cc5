"""The TensorRT backend against the real binding's names and signatures; on a GPU, against torch."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latency_models.backends import tensorrt as backend_module
from latency_models.backends.base import BackendError, make_backend
from latency_models.backends.onnx import export_onnx
from latency_models.backends.quantize import at_precision, quantize_int8
from latency_models.backends.tensorrt_operators import OPERATORS, unsupported
from latency_models.device import Device
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs, largest_difference
from tests.latency_models.tensorrt_double import ContractError, World, check_call, load_binding
from tests.models import tiny_bert

NAMES = ("input_ids", "attention_mask", *POOLED_NAMES)
SHAPES = {"last_hidden_state": (2, 7, 32), "sentence_embedding": (2, 32)}


@pytest.fixture(scope="module")
def graph():
    return export_onnx(Pooled(tiny_bert()), example_inputs(), POOLED_NAMES)


@pytest.fixture(scope="module")
def binding(tmp_path_factory):
    return load_binding(tmp_path_factory.mktemp("stubs"))


@pytest.fixture
def world(binding, monkeypatch):
    """A machine with a GPU, as far as the backend can tell."""
    trt = binding
    inputs = [SimpleNamespace(name=name, shape=(-1, -1)) for name in NAMES[:2]]
    mode = {name: trt.TensorIOMode.INPUT if name in NAMES[:2] else trt.TensorIOMode.OUTPUT for name in NAMES}
    types = {name: trt.DataType.INT64 if name in NAMES[:2] else trt.DataType.FLOAT for name in NAMES}
    made = World(
        binding,
        {
            "INetworkDefinition.num_inputs": 2,
            "INetworkDefinition.get_input": lambda index: inputs[index],
            "Builder.build_serialized_network": b"an engine",
            "ITimingCache.serialize": b"timings",
            "ICudaEngine.num_io_tensors": 4,
            "ICudaEngine.get_tensor_name": lambda index: NAMES[index],
            "ICudaEngine.get_tensor_mode": mode.__getitem__,
            "ICudaEngine.get_tensor_dtype": types.__getitem__,
            "ICudaEngine.get_tensor_profile_shape": lambda name, index: [(1, 1), (2, 7), (2, 7)],
            "IExecutionContext.get_tensor_shape": SHAPES.__getitem__,
            "EngineInspector.get_engine_information": json.dumps({"Layers": [{"Name": "product"}]}),
        },
    )
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(cuda_stream=7, synchronize=lambda: None))
    monkeypatch.setattr(backend_module, "_PLACE", "cpu")
    return made


def device(**changes):
    return Device("trt", "tensorrt", provider="cuda", **changes)


def test_a_graph_becomes_an_engine_that_runs(world, graph):
    run = make_backend(device()).compile(graph, example_inputs())
    run()
    assert len(world.named("IExecutionContext.execute_async_v3")) == 2
    assert world.named("IExecutionContext.execute_async_v3")[0] == (7,)
    assert {name: value.shape for name, value in run.outputs().items()} == SHAPES
    flags = world.named("Builder.create_network")[0][0]
    assert flags == 1 << int(world.binding.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert world.named("IBuilderConfig.clear_flag") == [(world.binding.BuilderFlag.TF32,)]
    assert run.layers() == [{"Name": "product"}]
    run.feed(example_inputs(seed=3))
    assert torch.equal(run._inputs["input_ids"], example_inputs(seed=3)["input_ids"])


def test_shapes_are_dynamic_up_to_the_options(world, graph):
    make_backend(device(options={"max_batch_size": 16, "max_sequence_length": 5})).compile(graph, example_inputs())
    for name in NAMES[:2]:
        assert (name, (1, 1), (2, 7), (16, 7)) in world.named("IOptimizationProfile.set_shape")
    assert ("input_ids", (2, 7)) in world.named("IExecutionContext.set_input_shape")


def test_the_timing_cache_is_kept_between_builds(world, graph, tmp_path):
    file = tmp_path / "cache" / "timings"
    backend = make_backend(device(options={"timing_cache": str(file)}))
    backend.build(graph, example_inputs())
    assert file.read_bytes() == b"timings"
    backend.build(graph, example_inputs())
    assert world.named("IBuilderConfig.create_timing_cache") == [(b"",), (b"timings",)]
    assert [path.name for path in file.parent.iterdir()] == ["timings"]


def test_options_reach_the_builder(world, graph):
    options = {"optimization_level": 5, "workspace_mb": 64, "tf32": True}
    make_backend(device(options=options)).build(graph, example_inputs())
    assert world.named("IBuilderConfig.builder_optimization_level =") == [(5,)]
    assert world.named("IBuilderConfig.set_memory_pool_limit")[0][1] == 64 * 2**20
    assert world.named("IBuilderConfig.set_flag") == [(world.binding.BuilderFlag.TF32,)]


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_precision_comes_from_the_graph(world, graph, precision):
    make_backend(device(precision=precision)).build(graph, example_inputs())
    content = world.named("OnnxParser.parse")[0][0]
    assert not unsupported(content)
    assert (b"DequantizeLinear" in content) == (precision != "fp16")


def test_an_engine_is_loaded_from_its_file(world, tmp_path):
    file = tmp_path / "model.engine"
    file.write_bytes(b"built before")
    make_backend(device()).compile(file, example_inputs())
    assert world.named("Runtime.deserialize_cuda_engine") == [(b"built before",)]
    assert not world.named("Builder.build_serialized_network")
    with pytest.raises(BackendError, match="No such file"):
        make_backend(device()).compile(tmp_path / "absent.engine", example_inputs())


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("OnnxParser.parse", False, "TensorRT refuses the graph"),
        ("Builder.build_serialized_network", None, "could not build an engine"),
        ("Runtime.deserialize_cuda_engine", None, "built for another GPU or another version"),
        ("IExecutionContext.set_input_shape", False, r"input_ids must be between \(1, 1\) and \(2, 7\)"),
        ("IExecutionContext.execute_async_v3", False, "the engine does not run"),
    ],
)
def test_failures_of_the_runtime_are_one_clear_line(world, graph, method, answer, message):
    world.answers[method] = answer
    with pytest.raises(BackendError, match=message):
        make_backend(device()).compile(graph, example_inputs())


def test_a_graph_with_operators_that_the_parser_lacks_is_refused_before_building(world, graph):
    with pytest.raises(BackendError, match="does not list DynamicQuantizeLinear"):
        make_backend(device()).compile(quantize_int8(graph), example_inputs())
    assert not world.named("OnnxParser.parse")


def test_every_name_of_the_binding_that_the_backend_mentions_exists(binding):
    """Also those on paths that no test takes."""
    mentioned = set()
    for node in ast.walk(ast.parse(inspect.getsource(backend_module))):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node).removeprefix("self._")
            if text.startswith("trt.") and text.replace(".", "").replace("_", "").isalnum():
                mentioned.add(tuple(text.split(".")[1:]))
    assert len(mentioned) >= 15
    for chain in mentioned:
        found = binding
        for name in chain:
            assert hasattr(found, name), ".".join(chain)
            found = getattr(found, name)


def test_the_double_refuses_what_the_binding_does_not_have(world):
    builder = world.Builder(world.Logger())
    with pytest.raises(ContractError, match="has no 'max_batch_size'"):
        _ = builder.max_batch_size
    with pytest.raises(ContractError, match="takes none of"):
        builder.create_network(flag=1)
    with pytest.raises(ContractError, match="takes none of"):
        builder.build_serialized_network()
    with pytest.raises(ContractError, match="cannot be set"):
        builder.create_builder_config().fp16 = True
    with pytest.raises(ContractError, match="tensorrt has no 'Bilder'"):
        _ = world.Bilder
    assert check_call("x", world.binding.Runtime.deserialize_cuda_engine, (b"",), {}) == "ICudaEngine"


def test_without_tensorrt_the_message_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(backend_module.importlib, "import_module", absent)
    with pytest.raises(BackendError, match=r"it is not installed; run `pip install hwnas\[tensorrt\]`"):
        backend_module.TensorRtBackend(device())

    def broken(name):
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(backend_module.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"its libraries cannot be loaded \(libnvinfer\.so\.11"):
        backend_module.TensorRtBackend(device())


def test_exported_graphs_are_made_of_operators_that_the_parser_lists(graph):
    assert unsupported(graph) == ()
    assert unsupported(at_precision(graph, "fp16")) == ()
    assert unsupported(quantize_int8(graph)) == ("DynamicQuantizeLinear", "MatMulInteger")
    assert unsupported(at_precision(graph, "int4")) == ("com.microsoft.MatMulNBits",)
    assert {"LayerNormalization", "Gelu", "DequantizeLinear"} <= OPERATORS


def test_an_opset_that_the_parser_lacks_is_told(graph):
    newer = type(graph)()
    newer.CopyFrom(graph)
    newer.opset_import[0].version = 99
    assert unsupported(newer) == ("opset 99",)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_engines_compute_what_torch_computes(graph, precision, cuda_graph):
    if not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None:
        pytest.skip("needs a CUDA device and TensorRT")
    inputs = example_inputs()
    run = make_backend(device(precision=precision, options={"cuda_graph": cuda_graph})).compile(graph, inputs)
    limit = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.2}[precision]
    assert largest_difference(run, Pooled(tiny_bert()), inputs) < limit
    first = {name: np.copy(value) for name, value in run.outputs().items()}
    assert all(np.array_equal(first[name], value) for name, value in run.outputs().items())
    assert run.layers()
