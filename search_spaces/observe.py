"""What a teacher's projections read while it runs over unlabelled data: the moments that calibration fits to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.compensate import Moments
from search_spaces.families import ModelFamily, base_model, blocks_of, family_of
from search_spaces.shapes import ModelShape

# Every eighth sequence chooses the damping and does not fit.
HELD_OUT_EVERY = 8
# Moments are squares of the widths in double precision: a large model's blocks are observed in several passes.
_MOMENTS_GB = 4.0


@dataclass(frozen=True)
class Observed:
    """Moments of what one block's projections read, by the projections' names in `READ`.

    Args:
        fit: Over the sequences to fit on.
        held_out: Over the sequences to choose on.
    """

    fit: Mapping[str, Moments]
    held_out: Mapping[str, Moments]

    def both(self, name: str) -> Moments:
        """Over all sequences."""
        return self.fit[name] + self.held_out[name]


def passes(shape: ModelShape) -> list[range]:
    """The blocks in groups whose moments fit into memory together; each group costs one pass over the data."""
    widths = (shape.hidden_size, shape.heads * shape.head_dim, shape.hidden_size, shape.ffn)
    gigabytes = 2 * 8 * sum(width**2 for width in widths) / 2**30
    count = max(1, int(_MOMENTS_GB / gigabytes))
    return [range(start, min(start + count, shape.num_blocks)) for start in range(0, shape.num_blocks, count)]


@torch.inference_mode()
def observe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    blocks: Sequence[int],
    on_batch: Callable[[int], None] | None = None,
) -> list[Observed]:
    """Run a teacher over data and collect the moments of some of its blocks.

    Args:
        model: A `transformers` model of a known family.
        batches: Its inputs; ``attention_mask`` tells which tokens count, labels are left out.
        blocks: Which blocks to observe.
        on_batch: Called with the number of batches seen.

    Raises:
        ValueError: Fewer than two tokens were seen, or an activation is not finite.
    """
    family, base = family_of(model), base_model(model)
    observed, handles = [], []
    state: dict[str, Any] = {}
    for index in blocks:
        block = blocks_of(model)[index]
        modules = {name: block.get_submodule(path) for name, path in _read(family).items()}
        found = Observed({name: Moments() for name in modules}, {name: Moments() for name in modules})
        handles += [m.register_forward_pre_hook(_collect(found, name, state)) for name, m in modules.items()]
        observed.append(found)
    was_training = model.training
    model.eval()
    try:
        seen = 0
        for number, batch in enumerate(batches, start=1):
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            size = len(next(iter(inputs.values())))
            state["mask"] = inputs.get("attention_mask")
            state["chosen"] = (torch.arange(seen, seen + size) % HELD_OUT_EVERY) == HELD_OUT_EVERY - 1
            seen += size
            base(**inputs, **({"use_cache": False} if family.causal else {}))
            if on_batch:
                on_batch(number)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    _check(observed, blocks)
    return observed


def _read(family: ModelFamily) -> dict[str, str]:
    """Name of a read tensor -> path of a projection that reads it."""
    return {
        "qkv": family.query,
        "attention_out": family.attention_out,
        "ffn_in": family.ffn_in[0],
        "ffn_out": family.ffn_out,
    }


def _collect(observed: Observed, name: str, state: Mapping[str, Any]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        rows: Tensor = args[0]
        mask = torch.ones(rows.shape[:2], device=rows.device) if state["mask"] is None else state["mask"]
        mask, chosen = mask.bool(), state["chosen"][:, None].to(rows.device)
        observed.fit[name].update(rows[mask & ~chosen])
        observed.held_out[name].update(rows[mask & chosen])

    return hook


def _check(observed: Sequence[Observed], blocks: Sequence[int]) -> None:
    count = observed[0].fit["qkv"].count
    if count < 2:
        raise ValueError(f"calibration data: must hold at least 2 tokens to fit on, but got {count}.")
    for index, found in zip(blocks, observed, strict=True):
        for name, moments in found.fit.items():
            if not bool(torch.isfinite(moments.products).all()):
                raise ValueError(
                    f"calibration: activations must be finite, but block {index} `{name}` read NaN or infinity."
                )
