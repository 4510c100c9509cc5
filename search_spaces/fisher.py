"""Empirical Fisher information of units: how much what the model says would change if a unit were switched off.

Every unit gets a gate of 1; the information of a gate is its expected squared gradient (Kwon et al. 2022, arXiv
2204.09656), over samples of what the model itself gives, so that no labels are needed: a class or token is drawn from
its own distribution, and what is no distribution (an embedding, a regression) counts with unit variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.families import ModelFamily, blocks_of, family_of
from search_spaces.shapes import ModelShape

# One block's gradients of the gates of heads and neurons, by the role of the projection that reads them.
Gradients = Mapping[str, Tensor]


def unit_gradients(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], shape: ModelShape, blocks: Sequence[int], seed: int = 0
) -> list[Gradients]:
    """Of every block, the gradients ``(samples, units)`` of its query heads and of its FFN's neurons.

    Args:
        model: A `transformers` model of a known family.
        batches: Its inputs; ``attention_mask`` tells which tokens count, labels are left out.
        shape: Its head counts.
        blocks: Which blocks.
        seed: Of what is drawn from the model's distributions.

    Raises:
        ValueError: A gradient is not finite.
    """
    family, found = family_of(model), {index: _empty() for index in blocks}
    was_training = model.training
    model.eval()
    try:
        # Gradients need tensors that were not made in inference mode, which callers may be in.
        with torch.inference_mode(mode=False), torch.enable_grad():
            for number, batch in enumerate(batches):
                inputs = {key: value.clone() for key, value in batch.items() if key != "labels"}
                for (index, role), gradient in _of_batch(model, family, shape, blocks, inputs, seed + number).items():
                    found[index][role].append(gradient)
    finally:
        model.train(was_training)
    parts = [found[index] for index in blocks]
    joined: list[Gradients] = [{role: torch.cat(every) for role, every in of_block.items()} for of_block in parts]
    for index, of_block in zip(blocks, joined, strict=True):
        if not all(bool(torch.isfinite(gradients).all()) for gradients in of_block.values()):
            raise ValueError(f"calibration: gradients must be finite, but block {index} has NaN or infinity.")
    return joined


def fisher_information(gradients: Tensor, size: int) -> Tensor:
    """``(units,)``: the expected squared gradient of units that are made of ``size`` gated ones each."""
    return gradients.double().reshape(len(gradients), -1, size).sum(dim=-1).square().mean(dim=0)


def _empty() -> dict[str, list[Tensor]]:
    return {"attention_out": [], "ffn_out": []}


def _of_batch(
    model: nn.Module,
    family: ModelFamily,
    shape: ModelShape,
    blocks: Sequence[int],
    inputs: Mapping[str, Tensor],
    seed: int,
) -> dict[tuple[int, str], Tensor]:
    """One batch's gradients ``(samples, units)`` by block and role."""
    gates: dict[tuple[int, str], Tensor] = {}
    places = {"attention_out": (family.attention_out, shape.heads), "ffn_out": (family.ffn_out, shape.ffn)}
    handles = [
        blocks_of(model)[index].get_submodule(path).register_forward_pre_hook(_gated(gates, (index, role), units))
        for index in blocks
        for role, (path, units) in places.items()
    ]
    try:
        outputs = model(**inputs, **({"use_cache": False} if family.causal else {}))
    finally:
        for handle in handles:
            handle.remove()
    loss = _surprise(outputs, model, inputs, torch.Generator().manual_seed(seed))
    found = torch.autograd.grad(loss, list(gates.values()))
    return {key: gradient.flatten(1).float().cpu() for key, gradient in zip(gates, found, strict=True)}


def _gated(gates: dict[tuple[int, str], Tensor], key: tuple[int, str], units: int) -> Callable[..., tuple[Tensor]]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (rows,) = args
        gate = torch.ones(len(rows), 1, units, 1, device=rows.device, dtype=rows.dtype, requires_grad=True)
        gates[key] = gate
        return ((rows.reshape(*rows.shape[:-1], units, -1) * gate).flatten(-2),)

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
