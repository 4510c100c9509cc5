"""Devices: a runtime with its threads, provider and precision, and what identifies the machine below it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

DevicePrecision = Literal["fp32", "bf16", "fp16", "int8", "int4"]
Transport = Literal["local", "ssh", "bundle"]
Option = str | int | float | bool

# Instruction sets that decide which kernels a runtime picks; everything else a CPU can do is noise in a fingerprint.
_RELEVANT_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_LIBRARIES = {
    "torch": ("torch", "transformers"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "openvino": ("openvino", "nncf"),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A named backend with everything that a latency measured on it depends on.

    Args:
        name: What users call it: ``onnxruntime_cpu``.
        backend: A key of `latency_models.backends.base.BACKENDS`.
        threads: Threads of one run; honoured by every backend.
        precision: What the backend runs a model in; it converts the fp32 model that it is given. A block's own weight
            precision is part of the subnet, not of the device.
        provider: Where the backend runs: ``cpu``, ``cuda``, or an execution provider's name.
        options: Settings of that backend alone, e.g. ``{"compile": True}``; unknown ones are refused by the backend.
        transport: How it is reached: ``local`` (this machine), ``ssh``, or ``bundle`` (a folder that is carried there).
            Neither this nor what follows says what the device is: two that differ in it alone are equal.
        host: For ``ssh``: what ``ssh`` takes: a name of its configuration, or ``user@address``.
        python: For ``ssh``: the Python that measures there; it needs numpy and onnxruntime.

    Raises:
        ValueError: A field breaks its rule.
    """

    name: str
    backend: str
    threads: int = 1
    precision: DevicePrecision = "fp32"
    provider: str = "cpu"
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)
    transport: Transport = field(default="local", compare=False)
    host: str = field(default="", compare=False)
    python: str = field(default="python3", compare=False)

    def __post_init__(self) -> None:
        for name in ("name", "backend", "provider", "python"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"device: `{name}` must be a non-empty text, but got {value!r}.")
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 1:
            raise ValueError(f"device: `threads` must be a whole number >= 1, but got {self.threads!r}.")
        if self.precision not in get_args(DevicePrecision):
            known = ", ".join(get_args(DevicePrecision))
            raise ValueError(f"device: `precision` must be one of {known}, but got {self.precision!r}.")
        if self.transport not in get_args(Transport):
            known = ", ".join(get_args(Transport))
            raise ValueError(f"device: `transport` must be one of {known}, but got {self.transport!r}.")
        # What begins with a dash would be an option of ssh, and could run a command here.
        if not isinstance(self.host, str) or self.host.startswith("-") or (self.transport == "ssh") > bool(self.host):
            raise ValueError(f"device: `host` must name the host where `transport` is ssh, but got {self.host!r}.")
        if not isinstance(self.options, Mapping):
            raise ValueError(f"device: `options` must be a mapping, but got {self.options!r}.")
        # A private copy: the mapping that YAML gave may change, a frozen device may not.
        object.__setattr__(self, "options", {key: self.options[key] for key in sorted(self.options)})

    def fingerprint(self) -> dict[str, str]:
        """What must be equal for two latencies to be comparable; texts only, so that it survives JSON unchanged."""
        found = {
            "backend": self.backend,
            "provider": self.provider,
            "precision": self.precision,
            "threads": str(self.threads),
            "options": json.dumps(dict(self.options), sort_keys=True),
            "os": f"{platform.system()} {_release()} {platform.machine()}",
            **_cpu(),
        }
        for library in _LIBRARIES.get(self.backend, (self.backend,)):
            if (version := library_version(library)) is not None:
                found[library] = version
        if self.provider not in ("cpu", "CPUExecutionProvider"):
            found.update(_gpu())
        return found

    @property
    def fingerprint_id(self) -> str:
        """A short hash of the fingerprint: the same on the same machine with the same libraries, today and tomorrow."""
        return fingerprint_id(self.fingerprint())

    def to_dict(self) -> dict[str, Any]:
        """Plain data of what the device is; ``Device(**data)`` reads it back, wherever it is read, as a local one."""
        return {
            "name": self.name,
            "backend": self.backend,
            "threads": self.threads,
            "precision": self.precision,
            "provider": self.provider,
            "options": dict(self.options),
        }


def fingerprint_id(fingerprint: Mapping[str, str]) -> str:
    """A short hash of a fingerprint: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:12]


def fingerprint_difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The first few entries in which two fingerprints differ, as a text for an error message."""
    keys = [key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)]
    texts = [f"{key}: {expected.get(key, 'nothing')!r} there, {found.get(key, 'nothing')!r} here" for key in keys]
    return "; ".join(texts[:3]) + ("; ..." if len(texts) > 3 else "")


@cache
def library_version(distribution: str) -> str | None:
    """The version of an installed distribution, without importing it; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _release() -> str:
    """Major and minor version of the operating system's kernel: patches don't move latencies, and come weekly."""
    return ".".join(re.findall(r"\d+", platform.release())[:2])


@cache
def _cpu() -> dict[str, str]:
    """Model, relevant flags and cores of the CPU."""
    info = _cpu_info()
    model = info.get("model name") or info.get("Model") or platform.processor() or platform.machine()
    flags = cpu_flags()
    return {
        "cpu": " ".join(model.split()),
        "cpu_family": "/".join(info.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "cpu_flags": " ".join(flag for flag in _RELEVANT_FLAGS if flag in flags),
        "cores": str(os.cpu_count() or 1),
    }


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this machine's CPU, by Linux's names; empty where it does not tell."""
    info = _cpu_info()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def _cpu_info() -> dict[str, str]:
    """The first processor's entries of ``/proc/cpuinfo``; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    entries: dict[str, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    return entries


@cache
def _gpu() -> dict[str, str]:
    """Name, capability and CUDA version of the GPU that torch sees first; empty where it sees none."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability(0)
    found = {"gpu": torch.cuda.get_device_name(0), "gpu_capability": f"{major}.{minor}"}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    driver = Path("/proc/driver/nvidia/version")
    if driver.is_file() and (match := re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", driver.read_text(errors="replace"))):
        found["gpu_driver"] = match[1]
    return found


def check_cores(device: Device) -> Device:
    """The same device, once this machine is known to have a core for each of its threads; others' are not known.

    Raises:
        ValueError: It is a device of this machine and has more threads than there are cores.
    """
    cores = os.cpu_count() or 1
    if device.transport == "local" and device.threads > cores:
        raise ValueError(f"`device.threads` must be at most this machine's {cores} cores, but got {device.threads}.")
    return device
