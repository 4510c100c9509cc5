"""Memory, throughput and energy."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latency_models import meters
from latency_models.backends.base import BackendError, make_backend
from latency_models.backends.quantize import is_quantized
from latency_models.deployed import Deployed
from latency_models.device import Device
from latency_models.meters import (
    NvmlMeter,
    PeakMemory,
    RaplMeter,
    find_energy_meter,
    gpu_memory_mb,
    measure_energy,
    peak_memory,
    peak_memory_mb,
    throughput,
)
from latency_models.subnet_compiler import SubnetCompiler
from search_spaces.calibrate import calibrate
from search_spaces.cost import Workload
from search_spaces.supernet import Supernet
from tests.latency_models.lean import allocating_run, failing_run, without
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs
from tests.models import tiny_batches, tiny_bert, tiny_space


def test_throughput_counts_sequences():
    assert throughput(Workload(batch_size=8), 20.0) == 400.0
    with pytest.raises(ValueError, match="`latency_ms` must be positive, but got 0"):
        throughput(Workload(), 0)


def test_peak_memory_is_that_of_the_run_and_not_of_this_process():
    ballast = np.ones(20_000_000)  # 160 MB that the measured process must not be charged for.
    small, large = peak_memory_mb(partial(allocating_run, 1)), peak_memory_mb(partial(allocating_run, 200))
    assert large - small == pytest.approx(199, abs=10)
    assert small < ballast.nbytes / 1e6
    with pytest.raises(BackendError, match="gone"):
        peak_memory_mb(failing_run)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_graph_s_memory_is_that_of_its_runtime_alone(tmp_path, precision):
    teacher = tiny_bert()
    space = tiny_space(teacher)
    supernet = Supernet(teacher, calibrate(teacher, tiny_batches(), space), space)
    device = Device("x", "onnxruntime", precision=precision)
    made = SubnetCompiler(device, supernet, example_inputs(), POOLED_NAMES, deployable=Pooled)
    job = made.file_job(space.smallest, tmp_path / "subnet.onnx")
    peak_memory(partial(without, job, ["torch", "transformers", "onnx", "sklearn"]), device)
    peak_memory(partial(without, made.isolated_job(space.smallest), ["torch", "transformers"]), device)
    kept = Deployed("subnet", device, str(tmp_path / "subnet.onnx"))
    torch_inputs = example_inputs()
    peak_memory(partial(without, kept.job(torch_inputs), ["torch", "transformers"]), device)
    assert is_quantized(str(tmp_path / "subnet.onnx")) == (precision == "int8")
    exact = make_backend(device).compile(made.graph(space.smallest), made.inputs).outputs()
    for name, values in job().outputs().items():
        np.testing.assert_array_equal(values, exact[name])
    other = SubnetCompiler(Device("t", "torch"), supernet, example_inputs(), POOLED_NAMES, deployable=Pooled)
    assert other.file_job(space.smallest, tmp_path / "none.onnx")().outputs()
    assert not (tmp_path / "none.onnx").exists()


def test_a_cpu_has_no_gpu_memory():
    found = peak_memory(partial(allocating_run, 1), Device("x", "onnxruntime"))
    assert found == PeakMemory(found.host_mb)
    assert found.host_mb > 0


def with_processes(*processes, fails=False):
    nvml = fake_nvml(iter([]))

    def running(handle):
        if fails:
            raise nvml.NVMLError("Not Supported")
        return [SimpleNamespace(pid=pid, usedGpuMemory=taken) for pid, taken in processes]

    nvml.nvmlDeviceGetComputeRunningProcesses = running
    return nvml


def test_gpu_memory_is_what_the_driver_counts_of_this_process_alone():
    device = Device("x", "onnxruntime", provider="cuda")
    own = (os.getpid(), 300_000_000)
    assert gpu_memory_mb(device, with_processes((1, 5_000_000), own)) == (300.0, "nvml")
    # A container may hide whose memory it is, a driver how much: then there is no figure.
    for nvml in (with_processes((1, 5_000_000)), with_processes((os.getpid(), None)), with_processes(fails=True)):
        assert gpu_memory_mb(device, nvml) == (None, "")


def test_torch_counts_its_own_tensors(monkeypatch):
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 7_000_000)
    assert gpu_memory_mb(Device("x", "torch", provider="cuda")) == (7.0, "torch")


def rapl(root, *values, span=1_000_000):
    for index, value in enumerate(values):
        counter = root / f"intel-rapl:{index}"
        counter.mkdir(exist_ok=True)
        (counter / "energy_uj").write_text(f"{value}\n")
        (counter / "max_energy_range_uj").write_text(f"{span}\n")
        part = root / f"intel-rapl:{index}:0"
        part.mkdir(exist_ok=True)
        (part / "energy_uj").write_text("7\n")


def test_rapl_adds_packages_and_continues_wrapped_counters(tmp_path):
    rapl(tmp_path, 100_000, 900_000)
    meter = RaplMeter(tmp_path)
    assert meter.joules() == 0
    rapl(tmp_path, 300_000, 100_000)
    assert meter.joules() == pytest.approx(0.2 + 0.2)
    rapl(tmp_path, 300_000, 200_000)
    assert meter.joules() == pytest.approx(0.5)
    assert meter.source == "rapl"


def test_without_a_counter_there_is_no_meter(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="no RAPL counter"):
        RaplMeter(tmp_path)
    monkeypatch.setattr(meters, "RaplMeter", lambda: RaplMeter(tmp_path))
    assert find_energy_meter(Device("x", "torch")) is None


def fake_nvml(readings, fails=False):
    class Failure(Exception):
        pass

    def consumption(handle):
        if fails:
            raise Failure("Not Supported")
        return next(readings)

    return SimpleNamespace(
        NVMLError=Failure,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=consumption,
    )


def test_nvml_counts_millijoules():
    meter = NvmlMeter(nvml=fake_nvml(iter([0, 5_000])))
    assert meter.joules() == 5.0
    with pytest.raises(OSError, match="Not Supported"):
        NvmlMeter(nvml=fake_nvml(iter([]), fails=True))


def test_energy_is_per_run_with_its_source():
    state = SimpleNamespace(joules=10.0, now=0.0)

    def run():
        state.joules += 0.5
        state.now += 0.25

    meter = SimpleNamespace(source="bench", joules=lambda: state.joules)
    energy = measure_energy(run, meter, seconds=1.0, clock=lambda: state.now)
    assert energy.millijoules == pytest.approx(500)
    assert energy.runs == 4
    assert energy.source == "bench"
    with pytest.raises(ValueError, match="`seconds` must be positive"):
        measure_energy(run, meter, seconds=0)


@pytest.mark.gpu
def test_a_gpu_counts_its_energy_and_its_memory():
    if not torch.cuda.is_available() or importlib.util.find_spec("pynvml") is None:
        pytest.skip("needs a CUDA device and nvidia-ml-py")
    device = Device("x", "torch", provider="cuda")
    meter = find_energy_meter(device)
    assert meter is not None
    assert meter.source == "nvml"
    values = torch.ones(4096, 4096, device="cuda")

    def run():
        torch.mm(values, values)
        torch.cuda.synchronize()

    assert measure_energy(run, meter, seconds=1.0).millijoules > 0
    megabytes, source = gpu_memory_mb(device)
    assert source == "torch"
    assert megabytes >= values.nbytes / 1e6
