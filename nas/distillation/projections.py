"""From the states of a student with a narrower residual stream to its teacher's, while it is distilled.

States of different widths are compared through a linear map for each of them, which is trained with the student and
thrown away afterwards (Romero et al. 2015, arXiv 1412.6550; Jiao et al. 2020, arXiv 1909.10351). A map begins as the
ridge regression of the teacher's states on the student's, so that from the first step on the loss is what these lack,
not what a random map does to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nas.distillation.losses import of_blocks
from search_spaces.ridge import Regression, best_change, is_held_out

# Batches that maps are fitted to: with 32 texts of 20 tokens, 25 rows for every coordinate of a stream of 200.
BATCHES = 8
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
# What a student with projections is asked for in the place of an output that is compared.
_PARTS = {"hidden": ("hidden",), "hidden_states": ("inner_states", "hidden")}
# A student's outputs, its teacher's and ``attention_mask (samples, tokens)``, if any, of the same samples.
Compared = tuple[Mapping[str, Tensor], Mapping[str, Tensor], Tensor | None]


def parts(names: Collection[str]) -> frozenset[str]:
    """The outputs that `Projections` needs to give these: states one by one, which may differ in width."""
    return frozenset(part for name in names for part in _PARTS.get(name, (name,)))


class Projections(nn.Module):
    """Widens states of a student.

    Args:
        maps: For ``hidden`` or ``hidden_states``, or both, one module for each state: ``nn.Identity`` where it is as
            wide as the teacher's.
    """

    def __init__(self, maps: Mapping[str, Sequence[nn.Module]]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.ModuleList(modules) for name, modules in maps.items()})

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A student's outputs, of which states are brought to the teacher's width."""
        widened = dict(outputs)
        for name, maps in self.maps.items():
            assert isinstance(maps, nn.ModuleList)
            states = [project(state) for project, state in zip(maps, _states(outputs, name), strict=True)]
            widened[name] = states[0] if name == "hidden" else torch.stack(states)
        return widened


def narrower(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> bool:
    """Whether a student, asked for `parts`, gives a state of another width than its teacher."""
    names = [name for name in _PARTS if name in targets]
    return any(own.shape[-1] != targets[name].shape[-1] for name in names for own in _states(outputs, name))


@torch.no_grad()
def fit_projections(compared: Iterable[Compared], names: Collection[str], blocks: Sequence[int] | None) -> Projections:
    """Fit a map for every state that is not as wide as the teacher's.

    Args:
        compared: Batches, of which the first eight are used; the student was asked for `parts` of the names.
        names: What is compared; only ``hidden`` and ``hidden_states`` count.
        blocks: Index in the teacher of each of the student's blocks; by default they are the same blocks.

    Raises:
        ValueError: There are not as many blocks as the student has.
    """
    maps: dict[str, list[_Map]] = {}
    for number, (outputs, targets, mask) in enumerate(itertools.islice(compared, BATCHES)):
        for name in (name for name in _PARTS if name in names):
            own, other = _states(outputs, name), _targets(targets, name, blocks)
            if len(own) != len(other):
                raise ValueError(f"`blocks` must name {len(own)} of the teacher's blocks, but names {len(other)}.")
            places = maps.setdefault(name, [_Map(*pair) for pair in zip(own, other, strict=True)])
            for place, *pair in zip(places, own, other, strict=True):
                rows = [state.flatten(0, 1) if mask is None else state[mask.bool()] for state in pair]
                place.update(rows[0], rows[1], number)
    return Projections({name: [place.module() for place in places] for name, places in maps.items()})


class _Map:
    """One map in the making.

    Args:
        own: A state of the student.
        other: The state of its teacher that it is compared with.
    """

    def __init__(self, own: Tensor, other: Tensor) -> None:
        self.sizes = own.shape[-1], other.shape[-1]
        self.fit, self.held_out = Regression.zeros(*self.sizes), Regression.zeros(*self.sizes)

    def update(self, own: Tensor, other: Tensor, number: int) -> None:
        """Add the rows of a batch of this number."""
        if own.shape[-1] != other.shape[-1]:
            (self.held_out if is_held_out(number) else self.fit).update(own.cpu(), other.cpu())

    def module(self) -> nn.Module:
        """The map; where no linear one helps, as good as none, one that is 0."""
        if self.sizes[0] == self.sizes[1]:
            return nn.Identity()
        own, other = self.sizes
        linear = nn.Linear(own, other, device="meta")
        found = best_change(self.fit, self.held_out, DAMPINGS, bias=True)
        weight, bias = found or (torch.zeros(other, own), torch.zeros(other))
        linear.weight, linear.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
        return linear


def _states(outputs: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """States of a student, each ``(samples, tokens, width)``, in the order of its blocks."""
    return [outputs["hidden"]] if name == "hidden" else [*outputs["inner_states"], outputs["hidden"]]


def _targets(targets: Mapping[str, Tensor], name: str, blocks: Sequence[int] | None) -> list[Tensor]:
    """The teacher's states that they are compared with."""
    return [targets[name]] if name == "hidden" else [*of_blocks(targets[name], blocks)]
