"""Empirical Fisher information of units: how much what the model says would change if a unit were switched off.

Every unit gets a gate of 1; the information of a gate is its expected squared gradient (Kwon et al. 2022, arXiv
2204.09656), over samples of what the model itself gives, so that no labels are needed: a class or token is drawn from
its own distribution, and what is no distribution (an embedding, a regression) counts with unit variance.

A unit is switched off to its mean where the projection that reads it has a bias, because compensation puts the mean
there: a unit that always says the same has no information, however loud it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.families import blocks_of, family_of, projection_weights
from search_spaces.observe import Observed
from search_spaces.shapes import ModelShape

# One block's gradients of the gates of heads and neurons, by the role of the projection that reads them.
Gradients = Mapping[str, Tensor]


def unit_gradients(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    shape: ModelShape,
    observed: Mapping[int, Observed],
    seed: int = 0,
) -> list[Gradients]:
    """Of every block, the gradients ``(samples, units)`` of its query heads and of its FFN's neurons.

    Args:
        model: A `transformers` model of a known family.
        batches: Its inputs; ``attention_mask`` tells which tokens count, labels are left out.
        shape: Its head counts.
        observed: Which blocks, and moments of what their projections read.
        seed: Of what is drawn from the model's distributions.

    Raises:
        ValueError: A gradient is not finite.
    """
    places = [place for index in observed for place in _places(model, shape, observed, index)]
    found: dict[int, dict[str, list[Tensor]]] = {index: {} for index in observed}
    was_training = model.training
    model.eval()
    try:
        # Gradients need tensors that were not made in inference mode, which callers may be in.
        with torch.inference_mode(mode=False), torch.enable_grad():
            for number, batch in enumerate(batches):
                inputs = {key: value.clone() for key, value in batch.items() if key != "labels"}
                for place, gradient in zip(places, _of_batch(model, places, inputs, seed + number), strict=True):
                    found[place.block].setdefault(place.role, []).append(gradient)
    finally:
        model.train(was_training)
    joined: list[Gradients] = [{role: torch.cat(parts) for role, parts in each.items()} for each in found.values()]
    for index, of_block in zip(observed, joined, strict=True):
        if not all(bool(torch.isfinite(gradients).all()) for gradients in of_block.values()):
            raise ValueError(f"calibration: gradients must be finite, but block {index} has NaN or infinity.")
    return joined


def fisher_information(gradients: Tensor, size: int) -> Tensor:
    """``(units,)``: the expected squared gradient of units that are made of ``size`` gated ones each."""
    return gradients.double().reshape(len(gradients), -1, size).sum(dim=-1).square().mean(dim=0)


@dataclass(frozen=True)
class _Place:
    """Where units are read: the projection of one block, how many units, and what stands in for one that is off."""

    block: int
    role: str
    module: nn.Module
    units: int
    off: Tensor | None


def _places(model: nn.Module, shape: ModelShape, observed: Mapping[int, Observed], index: int) -> list[_Place]:
    family, block = family_of(model), blocks_of(model)[index]
    found = []
    for role, path, units in (
        ("attention_out", family.attention_out, shape.heads),
        ("ffn_out", family.ffn_out, shape.ffn),
    ):
        weight, bias = projection_weights(block, path)
        off = None if bias is None else observed[index].both(role).mean.clone().to(weight)
        found.append(_Place(index, role, block.get_submodule(path), units, off))
    return found


def _of_batch(model: nn.Module, places: Sequence[_Place], inputs: Mapping[str, Tensor], seed: int) -> list[Tensor]:
    """One batch's gradients ``(samples, units)``, place by place."""
    gates: dict[int, Tensor] = {}
    handles = [p.module.register_forward_pre_hook(_gated(gates, number, p)) for number, p in enumerate(places)]
    try:
        outputs = model(**inputs, **({"use_cache": False} if family_of(model).causal else {}))
    finally:
        for handle in handles:
            handle.remove()
    loss = _surprise(outputs, model, inputs, torch.Generator().manual_seed(seed))
    found = torch.autograd.grad(loss, [gates[number] for number in range(len(places))])
    return [gradient.flatten(1).float().cpu() for gradient in found]


def _gated(gates: dict[int, Tensor], number: int, place: _Place) -> Callable[..., tuple[Tensor]]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (rows,) = args
        gate = torch.ones(len(rows), 1, place.units, 1, device=rows.device, dtype=rows.dtype, requires_grad=True)
        gates[number] = gate
        off = torch.zeros_like(rows[:1, :1]) if place.off is None else place.off
        return (((rows - off).reshape(*rows.shape[:-1], place.units, -1) * gate).flatten(-2) + off,)

    return hook


def _surprise(outputs: Any, model: nn.Module, inputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """A scalar whose gradient has the output's Fisher information as its expected square, sample by sample."""
    logits = outputs.get("logits")
    if logits is None or logits.shape[-1] == 1:
        return _of_vectors(outputs["last_hidden_state"] if logits is None else logits, inputs, generator)
    config = getattr(model, "config", None)
    if getattr(config, "problem_type", None) == "multi_label_classification":
        drawn = torch.bernoulli(logits.detach().sigmoid().cpu().float(), generator=generator).to(logits)
        return functional.binary_cross_entropy_with_logits(logits, drawn, reduction="sum")
    rows = logits.flatten(0, -2)
    if logits.dim() == 3 and "attention_mask" in inputs:
        rows = rows[inputs["attention_mask"].flatten().bool()]
    drawn = torch.multinomial(rows.detach().softmax(dim=-1).cpu().float(), 1, generator=generator)
    return functional.cross_entropy(rows, drawn[:, 0].to(rows.device), reduction="sum")


def _of_vectors(values: Tensor, inputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Hidden states count by their mean over tokens: what sentences and images are told apart by."""
    if values.dim() == 3:
        mask = inputs.get("attention_mask")
        weights = torch.ones(values.shape[:2]) if mask is None else mask
        weights = (weights / weights.sum(dim=1, keepdim=True)).to(values)
        values = (values * weights[..., None]).sum(dim=1)
    noise = torch.randn(values.shape, generator=generator)
    return (values * noise.to(values)).sum()
