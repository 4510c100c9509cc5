"""One pass over unlabelled data, and out of it everything that pruning without training needs.

The result is a `Library`: for every width level of every block the compensated projections, and for every level that
the space factorises the whitened factors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.compensate import Moments, compensate
from search_spaces.factorize import whitened_svd
from search_spaces.families import ModelFamily, base_model, blocks_of, family_of
from search_spaces.importance import Importance, features, unit_order
from search_spaces.library import LIBRARY_VERSION, Library
from search_spaces.space import SearchSpace

# Every eighth sequence chooses the damping and does not fit.
HELD_OUT_EVERY = 8


@torch.inference_mode()
def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    space: SearchSpace,
    *,
    importance: Importance = "obs",
    max_gb: float = 4.0,
    on_batch: Callable[[int], None] | None = None,
    on_block: Callable[[int], None] | None = None,
) -> Library:
    """Build the library of a teacher for a space.

    Args:
        model: The teacher, a `transformers` model of a known family.
        batches: Inputs of the model; ``attention_mask`` tells which tokens count, other keys go to the model.
        space: Which levels and ranks to prepare.
        importance: In which order units are kept; see `unit_order`.
        max_gb: Refuse to build a larger library.
        on_batch: Called with the number of batches seen.
        on_block: Called with the number of blocks prepared.

    Raises:
        ValueError: No token was seen, a weight or activation is not finite, or the library would be too large.
    """
    _check_size(space, max_gb)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"teacher: weights must be finite, but {name!r} holds NaN or infinity.")
    fit, held_out = _moments(model, batches, on_batch)
    family, tensors = family_of(model), {}
    for index, block in enumerate(blocks_of(model)):
        layer = _BlockCalibration(index, block, family, space, fit[index], held_out[index])
        tensors.update(layer.attention(importance))
        tensors.update(layer.ffn(importance))
        if on_block:
            on_block(index + 1)
    metadata = {
        "version": LIBRARY_VERSION,
        "importance": importance,
        "space": json.dumps(space.to_dict(), sort_keys=True),
        "rows": str((fit[0]["query"] + held_out[0]["query"]).count),
    }
    return Library(tensors, metadata)


# -- moments ---------------------------------------------------------------------------------------------------------


def _read_paths(family: ModelFamily) -> dict[str, str]:
    """Name of a read tensor -> path of the projection that reads it."""
    return {
        "query": family.query,
        "attention_out": family.attention_out,
        "ffn_in": family.ffn_in[0],
        "ffn_out": family.ffn_out,
    }


def _moments(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], on_batch: Callable[[int], None] | None
) -> tuple[list[dict[str, Moments]], list[dict[str, Moments]]]:
    """Moments of what every projection reads: per block, by name; sequences to fit on and held-out ones."""
    family, blocks = family_of(model), blocks_of(model)
    paths = _read_paths(family)
    fit: list[dict[str, Moments]] = []
    held_out: list[dict[str, Moments]] = []
    state: dict[str, Any] = {"mask": None, "chosen": None}
    handles = []

    def watch(index: int, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            rows: Tensor = args[0]
            mask, chosen = state["mask"], state["chosen"]
            fit[index][name].update(rows[mask & ~chosen[:, None]])
            held_out[index][name].update(rows[mask & chosen[:, None]])

        return hook

    for index, block in enumerate(blocks):
        widths = {name: _linear(block, path).in_features for name, path in paths.items()}
        fit.append({name: Moments.zeros(width) for name, width in widths.items()})
        held_out.append({name: Moments.zeros(width) for name, width in widths.items()})
        for name, path in paths.items():
            handles.append(block.get_submodule(path).register_forward_pre_hook(watch(index, name)))
    was_training = model.training
    model.eval()
    try:
        seen = 0
        for number, batch in enumerate(batches, start=1):
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            state["mask"], size = _token_mask(base_model(model), inputs)
            state["chosen"] = (torch.arange(seen, seen + size) % HELD_OUT_EVERY) == HELD_OUT_EVERY - 1
            seen += size
            base_model(model)(**inputs)
            if on_batch:
                on_batch(number)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    _check_moments(fit)
    return fit, held_out


def _linear(block: nn.Module, path: str) -> nn.Linear:
    module = block.get_submodule(path)
    assert isinstance(module, nn.Linear)
    return module


def _token_mask(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """``(batch, tokens)`` of bool, broadcastable: which tokens count; and the batch size."""
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"].bool()
        return mask, mask.shape[0]
    ids = inputs.get("input_ids")
    if ids is not None:
        return torch.ones_like(ids, dtype=torch.bool), ids.shape[0]
    images = next(iter(inputs.values()))
    size = getattr(model.config, "image_size", 0) // getattr(model.config, "patch_size", 1)
    return torch.ones(images.shape[0], size * size + 1, dtype=torch.bool), images.shape[0]


def _check_moments(fit: list[dict[str, Moments]]) -> None:
    if fit[0]["query"].count < 2:
        count = fit[0]["query"].count
        raise ValueError(f"calibration data: must hold at least 2 tokens to fit on, but got {count}.")
    for index, moments in enumerate(fit):
        for name, moment in moments.items():
            if not bool(torch.isfinite(moment.products).all()):
                raise ValueError(
                    f"calibration: activations must be finite, but block {index} `{name}` read NaN or infinity."
                )


# -- one block -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _BlockCalibration:
    index: int
    block: nn.Module
    family: ModelFamily
    space: SearchSpace
    fit: Mapping[str, Moments]
    held_out: Mapping[str, Moments]

    def attention(self, importance: Importance) -> dict[str, Tensor]:
        shape, family = self.space.shape, self.family
        size = shape.heads // shape.kv_heads * shape.head_dim
        order = self._order(family.attention_out, "attention_out", size, importance, 1)
        tensors: dict[str, Tensor] = {}
        for path in (family.query, family.key, family.value):
            rows = features(order, size if path == family.query else shape.head_dim)
            tensors |= self._reader(path, rows)
        tensors |= self._writers("attention_out", family.attention_out, "heads", order, size, "rank_attention_out")
        for level in self.space.levels("heads", self.index):
            for path in (family.query, family.key, family.value):
                heads = level if path == family.query else level * shape.kv_heads // shape.heads
                tensors |= self._factors_of_reader(path, "query", tensors, heads * shape.head_dim, level, "rank_qkv")
        return tensors

    def ffn(self, importance: Importance) -> dict[str, Tensor]:
        family, chunk = self.family, max(1, self.space.shape.ffn // 48)
        order = self._order(family.ffn_out, "ffn_out", 1, importance, chunk)
        tensors: dict[str, Tensor] = {}
        for path in family.ffn_in:
            tensors |= self._reader(path, order)
        tensors |= self._writers("ffn_out", family.ffn_out, "ffn", order, 1, "rank_ffn_out")
        for level in self.space.levels("ffn", self.index):
            for path in family.ffn_in:
                tensors |= self._factors_of_reader(path, "ffn_in", tensors, level, level, "rank_ffn_in")
        return tensors

    def _linear(self, path: str) -> tuple[Tensor, Tensor | None]:
        module = _linear(self.block, path)
        return module.weight, module.bias

    def _both(self, name: str) -> Moments:
        return self.fit[name] + self.held_out[name]

    def _order(self, path: str, name: str, size: int, importance: Importance, chunk: int) -> Tensor:
        return unit_order(self._linear(path)[0], self._both(name), size, importance, chunk)

    def _reader(self, path: str, rows: Tensor) -> dict[str, Tensor]:
        """A projection that reads the residual stream: its rows in order of importance."""
        weight, bias = self._linear(path)
        tensors = {f"{self.index}.{path}.permuted": weight[rows].clone()}
        if bias is not None:
            tensors[f"{self.index}.{path}.permuted_bias"] = bias[rows].clone()
        return tensors

    def _writers(self, name: str, path: str, dimension: str, order: Tensor, size: int, rank: str) -> dict[str, Tensor]:
        """The projection that writes to the residual stream, compensated for every width level, and its factors."""
        weight, bias = self._linear(path)
        full = self.space.shape.heads if dimension == "heads" else self.space.shape.ffn
        per_unit = full // len(order)
        both = self._both(name)
        tensors: dict[str, Tensor] = {}
        for level in self.space.levels(dimension, self.index):
            prefix = f"{self.index}.{path}.{level}"
            kept = features(order[: level // per_unit], size)
            if level == full:
                kept, fitted = torch.arange(weight.shape[1]), weight.double()
                fitted_bias = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.double()
            else:
                fitted, fitted_bias = compensate(weight, bias, self.fit[name], self.held_out[name], kept)
                tensors[f"{prefix}.weight"] = fitted.to(weight.dtype)
                tensors[f"{prefix}.bias"] = fitted_bias.to(weight.dtype)
            largest = self.space.largest_rank(rank, self.index, fitted.shape[1], fitted.shape[0])
            if largest:
                mean, covariance = both.mean[kept], both.covariance[kept][:, kept]
                tensors |= _factors(prefix, fitted, fitted_bias, mean, covariance, largest, weight.dtype)
        return tensors

    def _factors_of_reader(
        self, path: str, name: str, permuted: Mapping[str, Tensor], rows: int, level: int, rank: str
    ) -> dict[str, Tensor]:
        """Factors of one width level of a projection that reads the residual stream."""
        weight, bias = self._linear(path)
        largest = self.space.largest_rank(rank, self.index, weight.shape[1], rows)
        if not largest:
            return {}
        if rows < weight.shape[0]:
            weight = permuted[f"{self.index}.{path}.permuted"][:rows]
            bias = None if bias is None else permuted[f"{self.index}.{path}.permuted_bias"][:rows]
        both = self._both(name)
        start = torch.zeros(rows, dtype=torch.float64) if bias is None else bias.double()
        return _factors(
            f"{self.index}.{path}.{level}", weight.double(), start, both.mean, both.covariance, largest, weight.dtype
        )


def _factors(
    prefix: str, weight: Tensor, bias: Tensor, mean: Tensor, covariance: Tensor, rank: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    up, down = whitened_svd(weight, covariance, rank)
    return {
        f"{prefix}.up": up.to(dtype),
        f"{prefix}.down": down.to(dtype),
        # The bias of rank r is `mean_output - up[:, :r] @ down_mean[:r]`: it keeps the mean output at every rank.
        f"{prefix}.down_mean": (down @ mean).to(dtype),
        f"{prefix}.mean_output": (bias + weight @ mean).to(dtype),
    }


def _check_size(space: SearchSpace, max_gb: float) -> None:
    shape, total = space.shape, 0
    for index in range(shape.num_blocks):
        total += 3 * shape.hidden_size * shape.heads * shape.head_dim + 2 * shape.hidden_size * shape.ffn
        for dimension, width in (("heads", shape.head_dim), ("ffn", 1)):
            names = ("rank_qkv", "rank_attention_out") if dimension == "heads" else ("rank_ffn_in", "rank_ffn_out")
            for level in space.levels(dimension, index):
                inner = level * width
                total += inner * shape.hidden_size
                for name in names:
                    copies = 3 if name == "rank_qkv" else 1
                    total += (
                        copies * space.largest_rank(name, index, inner, shape.hidden_size) * (inner + shape.hidden_size)
                    )
    gigabytes = 4 * total / 2**30
    if gigabytes > max_gb:
        raise ValueError(
            f"`calibrate.max_gb` must be at least the library's {gigabytes:.1f} GB, but got {max_gb}; "
            "raise it or give the space fewer levels."
        )
