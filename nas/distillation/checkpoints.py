"""Where a supernet's training stands, as one safetensors file with JSON in its header: no pickle, no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_FORMAT = "1"
# Of AdamW, by tensor.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """Everything but tensors that a training must know to go on as if it had never stopped.

    Args:
        step: Steps done.
        seconds: Spent on them, with evaluations.
        history: Metrics of the guards at the steps where they were judged: ``{"step": ..., "smallest": ..., ...}``.
        best_step: The step with the best of them; 0 is the untrained library.
        waited: Evaluations since then that count for the early stop.
        scaler: Of fp16: the loss's scale and for how many steps it has held.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    waited: int = 0
    scaler: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    key: str,
    state: TrainingState,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint aside, then rename it: a run that is killed meanwhile leaves the one before.

    Args:
        path: The file.
        key: Content key of the training; see `load_checkpoint`.
        state: Where it stands.
        tensors: Trained tensors by name.
        optimizer: Its moments are kept by the tensors' names.
        best: The best tensors so far, where they are neither the last ones nor the untrained.
    """
    content = {f"weights.{name}": tensor.detach() for name, tensor in tensors.items()}
    content |= {f"best.{name}": tensor for name, tensor in best.items()}
    for name, tensor in tensors.items():
        for moment in _MOMENTS:
            if moment in (kept := optimizer.state.get(tensor, {})):
                content[f"{moment}.{name}"] = kept[moment]
    header = {"format": _FORMAT, "key": key, "state": json.dumps(asdict(state))}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    save_file({name: tensor.cpu().contiguous() for name, tensor in content.items()}, aside, metadata=header)
    aside.replace(path)


def load_checkpoint(
    path: Path, key: str, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[TrainingState, dict[str, Tensor]]:
    """Put a checkpoint's tensors and moments in the place of these.

    Args:
        path: The file.
        key: What the training's content is known by.
        tensors: Trained tensors by name; overwritten.
        optimizer: Gets the moments.

    Returns:
        Where the training stood, and the best tensors that the file has beside the last ones.

    Raises:
        ValueError: The file is damaged, or of another training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path}: cannot be read ({error}); delete it to train anew.") from error
    if (header.get("format"), header.get("key")) != (_FORMAT, key):
        raise ValueError(
            f"checkpoint {path}: must be of this training ({key}), but is of {header.get('key') or 'something else'}: "
            "other settings, texts, teacher or space. Delete it to train anew, or give the options it was begun with."
        )
    wanted = {f"weights.{name}": tensor.shape for name, tensor in tensors.items()}
    if {name: t.shape for name, t in content.items() if name.startswith("weights.")} != wanted:
        raise ValueError(f"checkpoint {path}: must hold the tensors of this library, but does not; delete it.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(content[f"weights.{name}"])
            moments = {m: content[f"{m}.{name}"].to(tensor.device) for m in _MOMENTS if f"{m}.{name}" in content}
            if moments:
                optimizer.state[tensor] = moments
    best = {name.removeprefix("best."): t for name, t in content.items() if name.startswith("best.")}
    return _state(header.get("state", ""), path), best


def _state(text: str, path: Path) -> TrainingState:
    try:
        data: dict[str, Any] = json.loads(text)
        return TrainingState(**{f.name: data[f.name] for f in fields(TrainingState)})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {path}: its header is damaged ({error!r}); delete it to train anew.") from error
