"""Subnets of a supernet run on every kind of device as the extracted model runs in torch."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from latency_models.backends import graph_template
from latency_models.backends.graph_students import student_graph
from latency_models.backends.graph_template import GraphTemplateError
from latency_models.backends.tensorrt_operators import unsupported
from latency_models.device import Device
from latency_models.features import from_table
from latency_models.subnet_compiler import SubnetCompiler
from search_spaces.calibrate import calibrate
from search_spaces.subnet import SKIPPED, SubnetConfig
from search_spaces.supernet import Supernet
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs, largest_difference
from tests.models import tiny_batches, tiny_bert, tiny_space


@pytest.fixture(scope="module")
def supernet():
    teacher = tiny_bert()
    space = tiny_space(teacher)
    return Supernet(teacher, calibrate(teacher, tiny_batches(), space), space)


def compiler(supernet, backend="onnxruntime", **changes):
    device = Device("device", backend, **changes)
    return SubnetCompiler(device, supernet, example_inputs(), POOLED_NAMES, deployable=Pooled)


def test_random_subnets_run_as_extracted(supernet):
    made = compiler(supernet)
    for subnet in [supernet.space.teacher, *supernet.space.sample(np.random.default_rng(0), 12)]:
        assert largest_difference(made.compile(subnet), made.module(subnet), example_inputs()) < 1e-4


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_other_backends_get_what_they_take(supernet, backend):
    pytest.importorskip(backend)
    made = compiler(supernet, backend)
    subnet = supernet.space.sample(np.random.default_rng(1), 1)[0]
    assert largest_difference(made.job(subnet)(), made.module(subnet), example_inputs()) < 1e-4


def test_a_narrower_stream_is_exported_with_one_warning_and_runs_as_extracted(caplog):
    teacher = tiny_bert()
    space = tiny_space(teacher, hidden_size=[16, 32])
    supernet = Supernet(teacher, calibrate(teacher, tiny_batches(), space), space)
    made = compiler(supernet)
    with caplog.at_level(logging.WARNING):
        for blocks in (space.teacher.blocks, space.smallest.blocks):
            subnet = space.canonical(SubnetConfig(blocks, 16))
            assert largest_difference(made.compile(subnet), made.module(subnet), example_inputs()) < 1e-4
    assert caplog.text.count("hidden sizes below the teacher's 32 are other graphs") == 1
    assert "template" not in vars(made)
    with pytest.raises(GraphTemplateError, match="hidden size is 16, not its teacher's 32"):
        student_graph(made.template, made.module(subnet), subnet.kept)


def test_features_tell_hidden_sizes_apart():
    space = tiny_space(tiny_bert(), hidden_size=[16, 24, 32])
    table = [SubnetConfig(space.teacher.blocks, size) for size in (16, 24, 32)]
    found = from_table(space.shape, table)
    products = dict(zip(found.names, found.products.T, strict=True))
    assert found.groups["hidden_size"].tolist() == [16, 24, 32]
    for name in ("qkv.fp32.flops", "ffn_in.fp32.flops", "norm.read", "embedding.read"):
        assert products[name] == pytest.approx(products[name][2] * np.array([0.5, 0.75, 1.0])), name
    assert products["output.flops"].tolist() == [128 * 16 * 32, 128 * 24 * 32, 0]
    assert len({*products["head.flops"]}) == 1


def test_a_family_that_cannot_be_edited_is_exported_with_a_warning(supernet, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise GraphTemplateError("graph template: not this family.")

    monkeypatch.setattr(graph_template.GraphTemplate, "from_model", refuse)
    made = compiler(supernet)
    subnet = supernet.space.sample(np.random.default_rng(2), 1)[0]
    with caplog.at_level(logging.WARNING):
        run = made.compile(subnet)
    assert "Every subnet is exported instead" in caplog.text
    assert largest_difference(run, made.module(subnet), example_inputs()) < 1e-4


def test_blocks_with_their_own_precision_are_quantised(supernet):
    teacher = supernet.space.teacher
    mixed = teacher.with_block(1, type(teacher.blocks[1])(4, 4, 64, precision="int8"))
    graph = compiler(supernet).graph(mixed)
    integer = [node.name for node in graph.graph.node if node.op_type == "MatMulInteger"]
    assert len(integer) == 6
    assert all(".layer.1." in name for name in integer)
    both = mixed.with_block(0, type(teacher.blocks[0])(4, 4, 64, precision="int4"))
    graph = compiler(supernet).graph(both)
    four = [node.name for node in graph.graph.node if node.op_type == "MatMulNBits"]
    assert len(four) == 6
    assert all(".layer.0." in name for name in four)
    assert sum(node.op_type == "MatMulInteger" for node in graph.graph.node) == 6


def test_precisions_follow_their_blocks_where_others_are_skipped(supernet, monkeypatch):
    teacher = supernet.space.teacher
    mixed = teacher.with_block(0, SKIPPED).with_block(2, type(teacher.blocks[1])(4, 4, 64, precision="int8"))
    edited = compiler(supernet)
    exported = compiler(supernet)
    exported.__dict__["template"] = None
    for made, place in ((edited, ".layer.2."), (exported, ".layer.1.")):
        names = [node.name for node in made.graph(mixed).graph.node if node.op_type == "MatMulInteger"]
        assert len(names) == 6
        assert all(place in name for name in names)
        assert largest_difference(made.compile(mixed), made.module(mixed), example_inputs()) < 0.2


def test_tensorrt_gets_pairs_instead_of_operators(supernet):
    teacher = supernet.space.teacher
    mixed = teacher.with_block(1, type(teacher.blocks[1])(4, 4, 64, precision="int8"))
    assert not unsupported(compiler(supernet, "tensorrt", provider="cuda").graph(mixed))


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_runtimes_without_precisions_of_blocks_refuse_them(supernet, backend):
    teacher = supernet.space.teacher
    mixed = teacher.with_block(1, type(teacher.blocks[1])(4, 4, 64, precision="int8"))
    with pytest.raises(ValueError, match=f"must be one of fp32 on {backend}, but got 'int8'"):
        compiler(supernet, backend).model(mixed)
    with pytest.raises(ValueError, match="must be one of fp32, int8, int4 on onnxruntime, but got 'fp16'"):
        compiler(supernet).graph(teacher.with_block(1, type(teacher.blocks[1])(4, 4, 64, precision="fp16")))
