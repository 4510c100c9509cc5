"""Sequential compensation: an extracted subnet's output projections refitted on what its own blocks compute.

The variants of a library are compensated block by block on the *teacher's* activations, so that they fit any subnet;
the errors of a whole subnet's blocks then add up. Once a subnet is chosen, its projections that write to the residual
stream are refitted from the first block to the last, each by ridge regression from the inputs that it really gets to
what brings the residual stream back to the teacher's (the order of GPTQ and SparseGPT, Frantar and Alistarh 2023,
arXiv 2301.00774, with the teacher's own stream as the target). No gradients, seconds to a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from search_spaces.families import ModelFamily, base_model, blocks_of, family_of
from search_spaces.ridge import Regression, best_change, is_held_out
from search_spaces.streams import Pair, Site, last_linear

DAMPINGS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@torch.inference_mode()
def recalibrate(
    model: nn.Module,
    teacher: nn.Module,
    kept: Sequence[int],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    coordinates: Tensor | None = None,
    on_block: Callable[[int], None] | None = None,
) -> None:
    """Refit an extracted subnet in place.

    Args:
        model: The subnet, as `Supernet.extract` gives it.
        teacher: The model that it was cut out of.
        kept: Index in the teacher of each of the subnet's blocks.
        batches: Inputs of the model; ``attention_mask`` tells which tokens count. At least two batches.
        coordinates: Which of the teacher's residual coordinates a subnet with a narrower stream has:
            `Supernet.coordinates`. What brings its stream back to full width is refitted, too.
        on_block: Called with the number of blocks refitted.

    Raises:
        ValueError: There are fewer than two batches, or ``kept`` or ``coordinates`` do not fit the model.
    """
    own, full = list(blocks_of(model)), list(blocks_of(teacher))
    pairs = [Pair.start(model, teacher, own, full, batch) for batch in batches]
    _check(kept, own, full, pairs, coordinates)
    family, at = family_of(model), 0
    for position, index in enumerate(kept):
        _catch_up(pairs, full, range(at, index))
        # Both targets are taken before the teacher moves on; the subnet is run anew after each change.
        targets = [pair.teacher.sites(family, full[index], index) for pair in pairs]
        for part, path in enumerate((family.attention_out, family.ffn_out)):
            if (linear := last_linear(own[position], path)) is not None:
                _refit(linear, family, own[position], position, part, pairs, targets, coordinates)
        for pair in pairs if position + 1 < len(own) else ():
            pair.student.advance(own[position], position)
        _catch_up(pairs, full, range(index, index + 1))
        at = index + 1
        if on_block:
            on_block(position + 1)
    if coordinates is not None:
        _catch_up(pairs, full, range(at, len(full)))
        _refit_output(model, teacher, pairs, len(own) - 1)


def _check(
    kept: Sequence[int],
    own: Sequence[nn.Module],
    full: Sequence[nn.Module],
    pairs: Sequence[Pair],
    coordinates: Tensor | None,
) -> None:
    if len(own) != len(kept) or list(kept) != sorted(set(kept)) or not set(kept) <= set(range(len(full))):
        raise ValueError(f"`kept` must name {len(own)} of the teacher's {len(full)} blocks in order, but got {kept}.")
    if len(pairs) < 2:
        raise ValueError(f"recalibration needs at least 2 batches, but got {len(pairs)}.")
    width, theirs = (stream.hidden.shape[-1] for stream in (pairs[0].student, pairs[0].teacher))
    if width != (theirs if coordinates is None else len(coordinates)):
        given = "none" if coordinates is None else len(coordinates)
        raise ValueError(f"`coordinates` must name the {width} of {theirs} that the subnet's stream has; got {given}.")


def _catch_up(pairs: Sequence[Pair], full: Sequence[nn.Module], blocks: range) -> None:
    """The teacher goes on through some of its blocks, also those that the subnet lacks."""
    for index in blocks:
        for pair in pairs:
            pair.teacher.advance(full[index], index)


def _refit(
    linear: nn.Linear,
    family: ModelFamily,
    block: nn.Module,
    position: int,
    part: int,
    pairs: list[Pair],
    targets: list[tuple[Site, Site]],
    coordinates: Tensor | None,
) -> None:
    """Refit one projection that writes to the stream to what brings that back to the teacher's."""
    residuals, read = [], []
    for pair, target in zip(pairs, targets, strict=True):
        site = pair.student.sites(family, block, position)[part]
        assert site.read is not None
        read.append(site.read)
        residuals.append(_kept(target[part].total, coordinates) - site.total)
    _change(linear, pairs, read, residuals)


def _refit_output(model: nn.Module, teacher: nn.Module, pairs: list[Pair], last: int) -> None:
    """Refit what brings a narrower stream back to full width to what the teacher gives in the end.

    Args:
        model: The subnet, whose streams stand before the last block.
        teacher: Its teacher, whose streams stand behind the last block.
        pairs: The streams.
        last: Number of the subnet's last block.
    """
    family, base, block = family_of(model), base_model(model), blocks_of(model)[last]
    norm = base.get_submodule(family.final_norm) if family.final_norm else block.get_submodule(family.ffn_norm)
    linear, read, residuals = (base if family.expands_output else norm).get_submodule("expand"), [], []
    assert isinstance(linear, nn.Linear)
    norm = norm if family.expands_output else norm.get_submodule("norm")
    for pair in pairs:
        if family.final_norm:
            read.append(norm(pair.student.run(block, last)))
            target = base_model(teacher).get_submodule(family.final_norm)(pair.teacher.hidden)
        else:
            read.append(pair.student.read_by(linear, block, last))
            target = pair.teacher.hidden
        residuals.append(target - linear(read[-1]))
    _change(linear, pairs, read, residuals)


def _kept(stream: Tensor, coordinates: Tensor | None) -> Tensor:
    return stream if coordinates is None else stream[..., coordinates]


def _change(linear: nn.Linear, pairs: Sequence[Pair], read: Sequence[Tensor], residuals: Sequence[Tensor]) -> None:
    """Add to a projection what explains residuals; it is left as it is where no damping helps on held-out batches."""
    fit, held_out = (Regression.zeros(linear.in_features, linear.out_features) for _ in range(2))
    for number, (pair, inputs, residual) in enumerate(zip(pairs, read, residuals, strict=True)):
        rows = inputs.reshape(*pair.mask.shape, -1)[pair.mask]
        (held_out if is_held_out(number) else fit).update(rows, residual[pair.mask])
    biased = linear.bias is not None
    if (change := best_change(fit, held_out, DAMPINGS, bias=biased)) is None:
        return
    linear.weight.add_(change[0].to(linear.weight.dtype))
    if biased:
        linear.bias.add_(change[1].to(linear.bias.dtype))
