"""Precisions of single blocks on a device: which of them a search may choose, and what quality is judged in."""

from __future__ import annotations

from dataclasses import replace

from latency_models.backends.base import BACKENDS, backend_entry
from latency_models.device import Device
from search_spaces.choices import Dimension
from search_spaces.quantized import SIMULATED
from search_spaces.space import SearchSpace
from search_spaces.subnet import Precision


def for_device(space: SearchSpace, device: Device) -> SearchSpace:
    """The space with those precisions of blocks that are different ones on a device.

    A device that brings whole models to a precision runs blocks of fp32, which is no choice of their own, in it: the
    two are folded into one.

    Raises:
        ValueError: The device has no such precision for a block.
    """
    dimensions: list[Dimension] = []
    for dimension in space.dimensions:
        if dimension.name != "precision":
            dimensions.append(dimension)
            continue
        kept = tuple(dict.fromkeys(_on(device, str(choice)) for choice in dimension.choices))
        if kept != ("fp32",):
            dimensions.append(replace(dimension, choices=kept))
    return replace(space, dimensions=tuple(dimensions))


def _on(device: Device, choice: str) -> str:
    """A block's precision, fp32 where it is the device's own."""
    if choice in ("fp32", device.precision):
        return "fp32"
    if device.precision != "fp32":
        raise ValueError(
            f"space: `precision` of a block must be fp32 or {device.precision} on {device.name}, which runs whole "
            f"models in {device.precision}, but got {choice!r}; choose among more with a device of fp32."
        )
    known = backend_entry(device.backend).block_precisions
    if choice not in known:
        able = [name for name, entry in BACKENDS.items() if choice in entry.block_precisions]
        mend = f"{choice} blocks run on {' and '.join(able)}" if able else "no backend has it"
        raise ValueError(
            f"space: `precision` of a block must be one of {', '.join(known)} on {device.name} ({device.backend}), "
            f"but got {choice!r}; {mend}."
        )
    return choice


def judged_precision(device: Device) -> Precision:
    """The precision in which the device runs whole models, where its loss of quality can be simulated; else fp32.

    That is dynamic int8 and int4 weights of ONNX Runtime's CPU, against which the simulation is tested. Static scales,
    and other runtimes' own kinds of int8, lose something else.
    """
    dynamic = device.options.get("quantization", "dynamic") == "dynamic"
    simulated = device.backend == "onnxruntime" and device.provider in ("cpu", "CPUExecutionProvider") and dynamic
    return next((known for known in SIMULATED if simulated and known == device.precision), "fp32")
