"""The compensated variants of a teacher's blocks, as one file of tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

LIBRARY_VERSION = "2"


@dataclass(frozen=True)
class Library:
    """The compensated variants of a teacher's blocks.

    Args:
        tensors: Flat names -> tensors. ``{block}.{path}.permuted`` and ``.permuted_bias``: rows in order of
            importance; ``{block}.{path}.{level}.weight`` and ``.bias``: a compensated output projection;
            ``{block}.{path}.{level}.up``, ``.down``, ``.down_mean``, ``.mean_output``: sorted factors of a level, and
            what its bias is made of.
        metadata: Where it comes from: teacher, data, space, settings.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def megabytes(self) -> float:
        """Size of the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values()) / 2**20

    @property
    def size(self) -> str:
        """The same, for people: small ones with two digits."""
        return f"{self.megabytes:.0f} MB" if self.megabytes >= 10 else f"{self.megabytes:.2g} MB"

    def save(self, path: Path) -> None:
        """Write one safetensors file, aside first and then renamed, so that a half-written one never counts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, aside, metadata=dict(self.metadata))
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Library:
        """Memory-map a saved library.

        Raises:
            ValueError: The file is damaged or of another version.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"calibration library {path}: cannot be read ({error}); delete it to make it anew."
            ) from error
        if metadata.get("version") != LIBRARY_VERSION:
            version = metadata.get("version")
            raise ValueError(f"calibration library {path}: version must be {LIBRARY_VERSION}, but got {version}.")
        return cls(tensors, metadata)


def model_hash(model: nn.Module) -> str:
    """A short hash of a model's weights: what caches know a teacher by."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(str(tensor.dtype).encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def model_settings(model: Any) -> str:
    """A model's configuration as text, without what decides nothing: where it lay, and who wrote the file."""
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    for name in ("_name_or_path", "transformers_version"):
        settings.pop(name, None)
    return json.dumps(settings, sort_keys=True, default=str)


def model_fingerprint(model: Any) -> str:
    """A short hash of all that decides what a model computes: its weights, and its configuration's settings."""
    return hashlib.sha256(f"{model_hash(model)}\n{model_settings(model)}".encode()).hexdigest()[:32]
