"""Precisions of blocks against what a device has of them."""

from __future__ import annotations

import pytest

from latency_models.device import Device
from latency_models.precisions import for_device, judged_precision
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny_bert

CPU = Device("onnxruntime_cpu", "onnxruntime")
INT8 = Device("onnxruntime_cpu_int8", "onnxruntime", precision="int8")


def space(*precisions, per_block=("heads", "precision")):
    choices = {"heads": [2, 4], **({"precision": list(precisions)} if precisions else {})}
    return SearchSpace.from_choices(ModelShape.from_model(tiny_bert()), choices, per_block=per_block)


def choices(found):
    return {dimension.choices for dimension in found.dimensions if dimension.name == "precision"}


def test_precisions_that_a_device_has_stay_as_they_are():
    wanted = space("fp32", "int8", "int4")
    assert for_device(wanted, CPU) == wanted
    assert choices(wanted) == {("int4", "int8", "fp32")}
    for device in (CPU, INT8, Device("torch_cpu", "torch")):
        assert for_device(space(), device) == space()


def test_a_devices_own_precision_and_fp32_are_one_choice():
    assert for_device(space("fp32", "int8"), INT8) == space()
    assert for_device(space("int8"), INT8) == space()
    assert for_device(space("fp32", "fp16"), Device("t", "torch", precision="fp16")) == space()
    assert for_device(space("fp32"), CPU) == space()


@pytest.mark.parametrize(
    ("device", "precisions", "message"),
    [
        (
            Device("torch_cpu", "torch"),
            ("fp32", "int8"),
            r"must be one of fp32 on torch_cpu \(torch\), but got 'int8'; int8 blocks run on onnxruntime and tensorrt.",
        ),
        (
            CPU,
            ("fp32", "fp16"),
            r"must be one of fp32, int8, int4 on onnxruntime_cpu .* got 'fp16'; no backend has it.",
        ),
        (INT8, ("int4", "int8"), "must be fp32 or int8 on onnxruntime_cpu_int8, which runs whole models in int8"),
    ],
)
def test_others_are_refused_in_one_line(device, precisions, message):
    with pytest.raises(ValueError, match=message) as raised:
        for_device(space(*precisions), device)
    assert "\n" not in str(raised.value)


def test_quality_is_judged_in_whole_model_precisions_that_are_simulated():
    assert judged_precision(CPU) == "fp32"
    assert judged_precision(INT8) == "int8"
    assert judged_precision(Device("x", "onnxruntime", precision="int4")) == "int4"
    assert judged_precision(Device("x", "onnxruntime", precision="fp16")) == "fp32"
    assert judged_precision(Device("x", "onnxruntime", precision="int8", options={"quantization": "static"})) == "fp32"
    assert judged_precision(Device("x", "onnxruntime", precision="int8", provider="openvino")) == "fp32"
    assert judged_precision(Device("x", "openvino", precision="int8")) == "fp32"
