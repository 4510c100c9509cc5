"""Memory, throughput and energy."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from latency_models import meters
from latency_models.backends.base import BackendError
from latency_models.device import Device
from latency_models.meters import NvmlMeter, RaplMeter, find_energy_meter, measure_energy, peak_memory_mb, throughput
from search_spaces.cost import Workload


def test_throughput_counts_sequences():
    assert throughput(Workload(batch_size=8), 20.0) == 400.0
    with pytest.raises(ValueError, match="`latency_ms` must be positive, but got 0"):
        throughput(Workload(), 0)


def allocating_run(megabytes):
    return partial(np.ones, megabytes * 125_000)


def failing_run():
    raise BackendError("device 'x': gone.")


def test_peak_memory_is_that_of_the_run_and_not_of_this_process():
    ballast = np.ones(40_000_000)  # 320 MB that the measured process must not be charged for.
    small, large = peak_memory_mb(partial(allocating_run, 1)), peak_memory_mb(partial(allocating_run, 200))
    assert large - small == pytest.approx(199, abs=10)
    assert small < ballast.nbytes / 1e6
    with pytest.raises(BackendError, match="gone"):
        peak_memory_mb(failing_run)


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
