"""Where models compute while they are distilled and judged: on the processor or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
# Kinds of GPU that ``auto`` takes: those that have all types and operations that the project uses.
_WHOLE = ("cuda", "xpu")


def find_device(name: str) -> torch.device:
    """A processor by what torch calls it.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` and so on, or ``auto``: a GPU where torch has one, else the CPU.

    Raises:
        ValueError: There is none of this name.
    """
    own = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = 0 if own is None else torch.accelerator.device_count()
    if name == "auto":
        name = own.type if own is not None and own.type in _WHOLE else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        return CPU
    if own is None or device.type != own.type or (device.index or 0) >= count:
        seen = ["auto", "cpu", *(f"{own.type}:{index}" for index in range(count) if own is not None)]
        raise ValueError(f"`torch_device` must be one that torch sees here ({', '.join(seen)}), but got {name!r}.")
    index = torch.accelerator.current_device_index() if device.index is None else device.index
    return torch.device(device.type, index)


def device_of(model: object) -> torch.device:
    """Where a model's parameters are; what is no module, such as a deployed graph, takes its inputs from the CPU."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return CPU if parameter is None else parameter.device


def moved(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Within this context a model is on a device; then it returns to where it was."""
    home = device_of(model)
    if home != device:
        model.to(device)
    try:
        yield model
    finally:
        if home != device:
            model.to(home)
