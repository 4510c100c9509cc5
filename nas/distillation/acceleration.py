"""Several processes and mixed precision for the supernet's training, by `accelerate`.

What is trained is a dictionary of tensors and no module, so nothing is wrapped: every process computes the gradients of
its share of a batch, and `average` makes them the whole batch's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

MixedPrecision = Literal["auto", "fp32", "bf16", "fp16"]
# Others wait while the first process calibrates or evaluates.
_PATIENCE = timedelta(hours=12)


def make_accelerator(precision: MixedPrecision = "auto") -> Accelerator:
    """The processes of this training, as ``accelerate launch`` or ``torchrun`` started them, or this one alone.

    Args:
        precision: Of forward passes: ``fp32``, ``bf16``, ``fp16`` (with a scaled loss, on GPUs alone), or ``auto``:
            bf16 where the GPU or the processor is fast at it, else fp32.

    Raises:
        ValueError: The precision is unknown, or fp16 without a GPU.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import parse_flag_from_env

    check_precision(precision)
    limit = InitProcessGroupKwargs(timeout=_PATIENCE)
    # Without being told so, it starts no group of processes on a machine that has processors alone.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    device = PartialState(cpu=cpu, timeout=_PATIENCE).device
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("`train.precision` must be auto, fp32 or bf16 without a GPU, but got 'fp16'.")
    wanted = _fastest(device) if precision == "auto" else precision
    # One process may train twice, in another precision: only the group of processes stays as it is.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision="no" if wanted == "fp32" else wanted, cpu=cpu, kwargs_handlers=[limit])


def check_precision(precision: object) -> None:
    """Check what a precision is called.

    Raises:
        ValueError: It is unknown.
    """
    if precision not in get_args(MixedPrecision):
        raise ValueError(
            f"`train.precision` must be one of {', '.join(get_args(MixedPrecision))}, but got {precision!r}."
        )


def _fastest(device: torch.device) -> str:
    from nas.distillation.precision import fast_at_bf16

    if device.type == "cuda":
        # Simulated on cards older than Ampere, which bf16 makes slower.
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    return "bf16" if device.type == "cpu" and fast_at_bf16() else "fp32"


def average(accelerator: Accelerator, tensors: Iterable[Tensor]) -> None:
    """Make gradients the mean over all processes, which must have the same ones."""
    if accelerator.num_processes == 1:
        return
    for tensor in tensors:
        if tensor.grad is not None:
            tensor.grad = accelerator.reduce(tensor.grad, reduction="mean")


def agreed(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """What the first process says, in all of them; exact for numbers that fp32 holds."""
    if accelerator.num_processes == 1:
        return list(values)
    from accelerate.utils import broadcast

    told = torch.tensor(list(values), dtype=torch.float32, device=accelerator.device)
    found: list[float] = broadcast(told, from_process=0).tolist()
    return found
