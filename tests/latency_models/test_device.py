"""Devices, their fingerprints, and those found on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from latency_models import device as device_module
from latency_models import discovery
from latency_models.backends.base import BACKENDS, BackendError, make_backend
from latency_models.device import Device, fingerprint_difference, fingerprint_id
from latency_models.discovery import check_device, find_devices

ROOT = Path(__file__).parents[2]


def test_a_device_survives_json_and_hashes():
    device = Device("x", "torch", threads=2, options={"mode": "default", "compile": True})
    assert Device(**json.loads(json.dumps(device.to_dict()))) == device
    assert hash(device) == hash(Device(**device.to_dict()))
    assert device != Device("x", "torch", threads=2)


def test_a_devices_options_are_its_own():
    options = {"compile": True}
    device = Device("x", "torch", options=options)
    options["compile"] = False
    assert device.options == {"compile": True}


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"threads": 0}, "`threads` must be a whole number >= 1, but got 0"),
        ({"threads": True}, "`threads` must be a whole number >= 1, but got True"),
        ({"threads": "2"}, "`threads` must be a whole number >= 1, but got '2'"),
        ({"precision": "fp8"}, "`precision` must be one of fp32, bf16, fp16, int8, int4, but got 'fp8'"),
        ({"provider": ""}, "`provider` must be a non-empty text, but got ''"),
        ({"options": 3}, "`options` must be a mapping, but got 3"),
    ],
)
def test_fields_are_checked(fields, rule):
    with pytest.raises(ValueError, match=rule):
        Device(**({"name": "x", "backend": "torch"} | fields))


def test_the_fingerprint_is_stable_and_tells_what_moves_latencies():
    device = Device("x", "onnxruntime")
    found = device.fingerprint()
    assert device.fingerprint_id == Device("another name", "onnxruntime").fingerprint_id == fingerprint_id(found)
    assert len(device.fingerprint_id) == 12
    assert json.loads(json.dumps(found)) == found
    assert {"cpu", "cpu_flags", "threads", "os", "onnxruntime", "precision", "cores"} <= set(found)
    for change in ({"threads": 2}, {"precision": "int8"}, {"options": {"graph_optimization": "basic"}}):
        assert Device("x", "onnxruntime", **change).fingerprint_id != device.fingerprint_id
    assert fingerprint_difference(found, found | {"threads": "4"}) == "threads: '1' there, '4' here"


def test_the_fingerprint_works_without_proc(monkeypatch):
    monkeypatch.setattr(device_module, "_cpu_info", dict)
    device_module._cpu.cache_clear()
    try:
        assert Device("x", "torch").fingerprint()["cpu"]
    finally:
        device_module._cpu.cache_clear()


def test_devices_of_this_machine_are_found_and_checked():
    found = {entry.device.name: entry for entry in find_devices(check_seconds=0.01)}
    assert {"torch_cpu", "onnxruntime_cpu", "onnxruntime_cpu_int8"} <= set(found)
    assert {entry.device.backend for entry in found.values()} >= set(BACKENDS)
    for name in ("torch_cpu", "onnxruntime_cpu", "onnxruntime_cpu_int8"):
        assert found[name].problem is None
        assert found[name].check_ms > 0


def test_devices_are_found_under_the_names_of_their_files(monkeypatch):
    monkeypatch.setattr(discovery, "_cuda", lambda: True)
    monkeypatch.setattr(discovery, "_providers", lambda: ["cuda", "tensorrt", "openvino"])
    for device in discovery._candidates(1):
        file = Path("conf/device") / f"{device.name}.yaml"
        assert Device(**yaml.safe_load((ROOT / file).read_text())) == device


def test_a_missing_runtime_says_what_to_install(monkeypatch):
    real = discovery.library_version
    without = lambda name: None if name == "openvino" else real(name)  # noqa: E731
    monkeypatch.setattr("latency_models.backends.base.library_version", without)
    entry = next(entry for entry in find_devices(check_seconds=0) if entry.device.backend == "openvino")
    assert "run `pip install hwnas[openvino]`" in entry.problem
    assert "\n" not in entry.problem
    assert entry.check_ms is None


def test_a_device_that_computes_something_else_is_told(monkeypatch):
    class Wrong:
        def compile(self, model, inputs):
            run = make_backend(Device("x", "onnxruntime")).compile(model, inputs)

            class Doubled:
                def __call__(self):
                    run()

                def outputs(self):
                    return {name: 2 * value for name, value in run.outputs().items()}

            return Doubled()

    monkeypatch.setattr(discovery, "make_backend", lambda device: Wrong())
    assert "comes out wrong" in check_device(Device("x", "onnxruntime"), seconds=0).problem


def test_no_cuda_is_one_clear_line():
    import torch

    if torch.cuda.is_available():
        pytest.skip("This machine has CUDA.")
    with pytest.raises(BackendError, match="torch sees no CUDA device"):
        make_backend(Device("x", "torch", provider="cuda"))
    with pytest.raises(BackendError, match="this build of ONNX Runtime has no provider 'cuda'"):
        make_backend(Device("x", "onnxruntime", provider="cuda"))
