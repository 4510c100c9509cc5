"""Narrower residual streams, fitted on what they themselves compute: norms and maps, from the first block to the last.

A narrow model keeps some coordinates of its teacher's residual stream. What is missing changes what its norms see, and
then everything behind them, so that nothing can be fitted on the teacher's activations alone. For each width, a whole
model with that stream is therefore walked beside its teacher. At each norm, scale and shift of every coordinate are
refitted to the teacher's normed output; at each place that reads the stream, ridge regression gives the map from the
kept coordinates, as the narrow model has them, to the full stream. (SliceGPT, Ashkboos et al. 2024, arXiv 2401.15024,
keeps principal components instead, which norms that follow the sums do not allow.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from search_spaces.compensate import Moments
from search_spaces.families import ModelFamily, base_model, blocks_of, family_of, projection_weights, tied_stem
from search_spaces.importance import Importance, stream_order
from search_spaces.modeling_subnet import narrowed, replace_part, shrink
from search_spaces.observe import Observed
from search_spaces.residual import ORDER, name_of
from search_spaces.ridge import Regression, best_change, is_held_out
from search_spaces.space import SearchSpace
from search_spaces.streams import Pair
from search_spaces.subnet import SubnetConfig
from search_spaces.surgery import subnet_changes

DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
Place = tuple[Tensor, Tensor]


def read_places(block: nn.Module, family: ModelFamily, observed: Observed) -> list[Place]:
    """The two places where a block reads the stream, as `stream_order` takes them."""
    places = []
    for role, paths in (("qkv", (family.query, family.key, family.value)), ("ffn_in", family.ffn_in)):
        found = [projection_weights(block, path) for path in dict.fromkeys(paths)]
        weight = torch.cat([weight.double().cpu() for weight, _ in found])
        # The triangular factor has the same Gram matrix and is never larger.
        factor = torch.linalg.qr(weight, mode="r").R
        places.append((factor, observed.both(role).spread(found[0][1])))
    return places


def fit_residual(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    space: SearchSpace,
    places: Sequence[Place],
    importance: Importance,
    on_block: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """The order of the stream's coordinates, and norms and maps of every narrower width of a space.

    Args:
        model: The teacher.
        batches: Its inputs.
        space: Which widths to prepare.
        places: What `read_places` gave, of all blocks.
        importance: In which order coordinates are kept; see `stream_order`.
        on_block: Called with the number of blocks fitted, for every width anew.
    """
    was_training = model.training
    model.eval()
    try:
        order = stream_order([*places, _last_place(model, batches)], importance)
        tensors = {ORDER: order}
        for size in space.narrower:
            tensors |= _Level(model, batches, space, order[:size].sort().values, on_block).tensors
    finally:
        model.train(was_training)
    return tensors


def _last_place(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Place:
    """What the model gives in the end, each of its coordinates as important as the others."""
    moments, options = Moments(), {"use_cache": False} if family_of(model).causal else {}
    for batch in batches:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        states: Tensor = base_model(model)(**inputs, **options)[0]
        mask = inputs.get("attention_mask")
        moments.update(states.flatten(0, 1) if mask is None else states[mask.bool()])
    return torch.eye(len(moments.total), dtype=torch.float64), moments.covariance


class _Level:
    """One width: walks a narrow model and its teacher, and fits on the way.

    Args:
        teacher: The full model.
        batches: Inputs.
        space: Tells the teacher's sizes.
        kept: The coordinates that are kept.
        on_block: Called with the number of blocks fitted.

    Attributes:
        tensors: What was fitted, by its name in the library.
    """

    def __init__(
        self,
        teacher: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        space: SearchSpace,
        kept: Tensor,
        on_block: Callable[[int], None] | None,
    ) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._family, self._kept, self._size = family_of(teacher), kept.to(next(teacher.parameters()).device), len(kept)
        self._base, self._teacher = base_model(teacher), list(blocks_of(teacher))
        narrow = _narrow_model(teacher, space, self._kept)
        self._own_base, self._own = base_model(narrow), list(blocks_of(narrow))
        seen: list[Tensor] = []
        stem = self._family.stem_norm
        if stem:
            norm = self._own_base.get_submodule(stem)
            handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        self._pairs = [Pair.start(narrow, teacher, self._own, self._teacher, batch) for batch in batches]
        if stem:
            handle.remove()
            self._fit_norm(name_of(self._size, stem), norm, seen, [pair.teacher.hidden for pair in self._pairs])
            for pair, inputs in zip(self._pairs, seen, strict=True):
                pair.student.hidden = norm(inputs)
        for index in range(len(self._own)):
            self._block(index)
            if on_block:
                on_block(index + 1)
        self._end()

    def _block(self, index: int) -> None:
        """The two places where a block reads the stream, and its norms."""
        family, own, full, pairs = self._family, self._own[index], self._teacher[index], self._pairs
        projections = (family.query, family.key, family.value)
        if family.post_norm:
            self._read(index, "qkv", projections, *self._streams)
            middle, end = family.attention_norm, family.ffn_norm
        else:
            self._read(index, "qkv", projections, *self._normed(family.attention_norm, *self._streams, index))
            middle, end = family.ffn_norm, ""
        sums = [pair.student.read_by(_norm(own, middle), own, index) for pair in pairs]
        theirs = [pair.teacher.read_by(_norm(full, middle), full, index) for pair in pairs]
        self._read(index, "ffn_in", family.ffn_in, *self._normed(middle, sums, theirs, index))
        if end:
            sums = [pair.student.read_by(_norm(own, end), own, index) for pair in pairs]
            theirs = [pair.teacher.read_by(_norm(full, end), full, index) for pair in pairs]
            for pair, hidden, target in zip(pairs, *self._normed(end, sums, theirs, index), strict=True):
                pair.student.hidden, pair.teacher.hidden = hidden, target
        else:
            for pair in pairs:
                pair.student.advance(own, index)
                pair.teacher.advance(full, index)

    def _end(self) -> None:
        """The last norm, where one follows the last block, and what brings the stream back to full width."""
        last = self._family.final_norm
        inputs, targets = self._normed(last, *self._streams) if last else self._streams
        name = name_of(self._size, "output")
        self.tensors[f"{name}.map"], self.tensors[f"{name}.shift"] = self._map(inputs, targets, bias=True)

    @property
    def _streams(self) -> tuple[list[Tensor], list[Tensor]]:
        return [pair.student.hidden for pair in self._pairs], [pair.teacher.hidden for pair in self._pairs]

    def _normed(
        self, path: str, inputs: Sequence[Tensor], theirs: Sequence[Tensor], block: int | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What a norm, fitted now, and its teacher's make of their inputs."""
        own, full = (self._own_base, self._base) if block is None else (self._own[block], self._teacher[block])
        norm, targets = _norm(own, path), [_norm(full, path)(rows) for rows in theirs]
        self._fit_norm(name_of(self._size, path, block), norm, inputs, targets)
        return [norm(rows) for rows in inputs], targets

    def _fit_norm(self, name: str, norm: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Scale and shift of each coordinate by least squares, over all rows: there are two numbers to fit."""
        parameters = dict(norm.named_parameters())
        if not parameters:
            return
        for kind, parameter in parameters.items():
            parameter.fill_(float(kind == "weight"))
        sums = torch.zeros(5, self._size, dtype=torch.float64)
        for pair, rows, target in zip(self._pairs, inputs, targets, strict=True):
            own, wanted = norm(rows)[pair.mask].double().cpu(), target[..., self._kept][pair.mask].double().cpu()
            products = (torch.ones_like(own), own, wanted, own * own, own * wanted)
            sums += torch.stack([values.sum(dim=0) for values in products])
        count, own, wanted, squares, crossed = sums
        centre = own / count * ("bias" in parameters)
        variance = squares / count - centre.square()
        scale = (crossed / count - centre * wanted / count) / variance.clamp_min(1e-12)
        values = {"weight": scale, "bias": wanted / count - scale * centre}
        for kind, parameter in parameters.items():
            parameter.copy_(values[kind])
            self.tensors[f"{name}.{kind}"] = parameter.detach().cpu().clone()

    def _read(
        self, index: int, role: str, paths: Sequence[str], inputs: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> None:
        """Fit the map of one place, and let its projections read through it."""
        full = [projection_weights(self._teacher[index], path) for path in dict.fromkeys(paths)]
        weight, shift = self._map(inputs, targets, bias=full[0][1] is not None)
        name = name_of(self._size, role, index)
        self.tensors[f"{name}.map"] = weight
        if full[0][1] is not None:
            self.tensors[f"{name}.shift"] = shift
        for path, (whole, bias) in zip(dict.fromkeys(paths), full, strict=True):
            own, own_bias = projection_weights(self._own[index], path)
            own.copy_(whole.cpu() @ weight)
            if own_bias is not None and bias is not None:
                own_bias.copy_(bias.cpu() + whole.cpu() @ shift)

    def _map(self, inputs: Sequence[Tensor], targets: Sequence[Tensor], *, bias: bool) -> tuple[Tensor, Tensor]:
        """From the kept coordinates, which stand for themselves, to the full stream: what is missing is regressed."""
        full = targets[0].shape[-1]
        fit, held_out = Regression.zeros(self._size, full), Regression.zeros(self._size, full)
        for number, (pair, rows, target) in enumerate(zip(self._pairs, inputs, targets, strict=True)):
            missing = target.clone()
            missing[..., self._kept] -= rows
            (held_out if is_held_out(number) else fit).update(rows[pair.mask].cpu(), missing[pair.mask].cpu())
        weight = torch.zeros(full, self._size, dtype=torch.float64)
        weight[self._kept.cpu(), torch.arange(self._size)] = 1.0
        shift = torch.zeros(full, dtype=torch.float64)
        if (change := best_change(fit, held_out, DAMPINGS, bias=bias)) is not None:
            weight, shift = weight + change[0], shift + change[1]
        return weight.to(inputs[0].dtype), shift.to(inputs[0].dtype)


def _narrow_model(teacher: nn.Module, space: SearchSpace, kept: Tensor) -> nn.Module:
    """A model with a narrower stream, and all else as in its teacher; norms and what reads the stream are to come."""
    family, narrow, tied = family_of(teacher), copy.deepcopy(teacher), tied_stem(teacher)
    subnet = SubnetConfig(space.teacher.blocks, len(kept))
    layer_types = getattr(teacher.config, "layer_types", None)
    with torch.random.fork_rng(devices=[]):
        shrink(narrow, subnet_changes(family, space.shape, subnet, layer_types, tied))
    parts: dict[str, object] = {}
    for path in family.stem:
        replace_part(base_model(teacher), path, lambda part, path=path: parts.setdefault(path, part))
        replace_part(base_model(narrow), path, lambda _, path=path: narrowed(parts[path], kept, tied=path in tied))
    for own, full in zip(blocks_of(narrow), blocks_of(teacher), strict=True):
        for path in (family.attention_out, family.ffn_out):
            for mine, whole in zip(projection_weights(own, path), projection_weights(full, path), strict=True):
                if mine is not None and whole is not None:
                    mine.copy_(whole[kept])
    return narrow.eval()


def _norm(module: nn.Module, path: str) -> nn.Module:
    """The norm at a path, which may be followed by a projection there."""
    found = module.get_submodule(path)
    return found.get_submodule("norm") if isinstance(found, nn.Sequential) else found
