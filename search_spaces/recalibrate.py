"""Sequential compensation: an extracted subnet's output projections refitted on what its own blocks compute.

The variants of a library are compensated block by block on the *teacher's* activations, so that they fit any subnet;
the errors of a whole subnet's blocks then add up. Once a subnet is chosen, its projections that write to the residual
stream are refitted from the first block to the last, each by ridge regression from the inputs that it really gets to
what brings the residual stream back to the teacher's (the order of GPTQ and SparseGPT, Frantar and Alistarh 2023,
arXiv 2301.00774, with the teacher's own stream as the target). No gradients, seconds to a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.compensate import damped
from search_spaces.families import ModelFamily, base_model, blocks_of, family_of

DAMPINGS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# One batch of four chooses the damping and does not fit.
HELD_OUT_EVERY = 4


@torch.inference_mode()
def recalibrate(
    model: nn.Module,
    teacher: nn.Module,
    kept: Sequence[int],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    on_block: Callable[[int], None] | None = None,
) -> None:
    """Refit an extracted subnet in place.

    Args:
        model: The subnet, as `Supernet.extract` gives it.
        teacher: The model that it was cut out of.
        kept: Index in the teacher of each of the subnet's blocks.
        batches: Inputs of the model; ``attention_mask`` tells which tokens count. At least two batches.
        on_block: Called with the number of blocks refitted.

    Raises:
        ValueError: There are fewer than two batches, or ``kept`` does not fit the model.
    """
    own, full = list(blocks_of(model)), list(blocks_of(teacher))
    if len(own) != len(kept) or list(kept) != sorted(set(kept)) or not set(kept) <= set(range(len(full))):
        raise ValueError(f"`kept` must name {len(own)} of the teacher's {len(full)} blocks in order, but got {kept}.")
    pairs = [_Pair.start(model, teacher, own, full, batch) for batch in batches]
    if len(pairs) < 2:
        raise ValueError(f"recalibration needs at least 2 batches, but got {len(pairs)}.")
    family, at = family_of(model), 0
    for position, index in enumerate(kept):
        while at < index:  # The teacher goes on through blocks that the subnet lacks.
            for pair in pairs:
                pair.teacher.advance(full[at], at)
            at += 1
        # Both targets are taken before the teacher moves on; the subnet is run anew after each change.
        targets = [pair.teacher.sites(family, full[index], index) for pair in pairs]
        for part, path in enumerate((family.attention_out, family.ffn_out)):
            if (linear := last_linear(own[position], path)) is not None:
                _refit(linear, family, own[position], position, part, pairs, targets)
        for pair in pairs:
            pair.student.advance(own[position], position)
            pair.teacher.advance(full[index], index)
        at = index + 1
        if on_block:
            on_block(position + 1)


@dataclass
class _Stream:
    """One model's residual stream on one batch, a block at a time.

    Args:
        hidden: ``(samples, tokens, hidden)`` before the next block.
        arguments: What each block is called with beside the stream: masks and positions, which do not depend on it.
    """

    hidden: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def advance(self, block: nn.Module, index: int) -> None:
        """Run one block."""
        self.hidden = self._run(block, index)

    def sites(self, family: ModelFamily, block: nn.Module, index: int) -> tuple[_Site, _Site]:
        """What is read and written at the two places where a block adds to the residual stream."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        writers = {"attention": last_linear(block, family.attention_out), "ffn": last_linear(block, family.ffn_out)}
        watched = {**writers, "middle": block.get_submodule(family.ffn_in[0]) if writers["ffn"] is not None else None}
        handles = [
            module.register_forward_hook(_watch(name, seen)) for name, module in watched.items() if module is not None
        ]
        try:
            self._run(block, index)
        finally:
            for handle in handles:
                handle.remove()
        first = _Site(self.hidden, *seen.get("attention", (None, None)))
        # With norms after the sums, the FFN adds to what the first norm gives, which is what it reads.
        between = seen["middle"][0].view_as(self.hidden) if family.post_norm and "middle" in seen else first.total
        return first, _Site(between, *seen.get("ffn", (None, None)))

    def _run(self, block: nn.Module, index: int) -> Tensor:
        positional, named = self.arguments[index]
        output = block(self.hidden, *positional, **named)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


@dataclass(frozen=True)
class _Site:
    """One sum of the residual stream: what stood there, what the projection read, and what it added."""

    before: Tensor
    read: Tensor | None
    written: Tensor | None

    @property
    def total(self) -> Tensor:
        """The stream after the sum."""
        return self.before if self.written is None else self.before + self.written.view_as(self.before)


@dataclass
class _Pair:
    """A subnet's and its teacher's streams on the same batch."""

    student: _Stream
    teacher: _Stream
    mask: Tensor

    @classmethod
    def start(
        cls,
        model: nn.Module,
        teacher: nn.Module,
        own: list[nn.Module],
        full: list[nn.Module],
        batch: Mapping[str, Tensor],
    ) -> _Pair:
        """Both models up to their first block."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        student = _start(model, own, inputs)
        mask = inputs.get("attention_mask")
        shape = student.hidden.shape[:2]
        real = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool()
        return cls(student, _start(teacher, full, inputs), real)


def _start(model: nn.Module, blocks: list[nn.Module], inputs: Mapping[str, Tensor]) -> _Stream:
    """One run of the model that takes down what its blocks are called with."""
    streams: list[Tensor] = []
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def watch(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        rest = dict(named)
        streams.append(positional[0] if positional else rest.pop("hidden_states"))
        arguments.append((positional[1:], rest))

    handles = [block.register_forward_pre_hook(watch, with_kwargs=True) for block in blocks]
    options = {"use_cache": False} if family_of(model).causal else {}
    try:
        base_model(model)(**inputs, **options)
    finally:
        for handle in handles:
            handle.remove()
    return _Stream(streams[0], arguments)


def _watch(name: str, seen: dict[str, tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def hook(_: nn.Module, positional: tuple[Any, ...], output: Tensor) -> None:
        seen[name] = positional[0], output

    return hook


def last_linear(block: nn.Module, path: str) -> nn.Linear | None:
    """The projection at a path; of a factored one the part that writes; None where there is none."""
    try:
        module = block.get_submodule(path)
    except AttributeError:
        return None
    last = module[-1] if isinstance(module, nn.Sequential) and len(module) else module
    return last if isinstance(last, nn.Linear) and last.weight.numel() else None


@dataclass
class _Regression:
    """Running moments of inputs and residuals, in double precision."""

    count: int
    inputs: Tensor
    residuals: Tensor
    products: Tensor
    crossed: Tensor
    squares: float

    @classmethod
    def zeros(cls, width: int, outputs: int) -> _Regression:
        def new(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        return cls(0, new(width), new(outputs), new(width, width), new(outputs, width), 0.0)

    def update(self, read: Tensor, residual: Tensor) -> None:
        """Add ``(rows, width)`` and ``(rows, outputs)``."""
        read, residual = read.float(), residual.float()
        self.count += len(read)
        self.inputs += read.sum(dim=0, dtype=torch.float64)
        self.residuals += residual.sum(dim=0, dtype=torch.float64)
        self.products += read.T @ read
        self.crossed += residual.T @ read
        self.squares += float(residual.square().sum(dtype=torch.float64))

    def __add__(self, other: _Regression) -> _Regression:
        return _Regression(
            self.count + other.count,
            self.inputs + other.inputs,
            self.residuals + other.residuals,
            self.products + other.products,
            self.crossed + other.crossed,
            self.squares + other.squares,
        )

    def solve(self, damping: float, *, bias: bool) -> tuple[Tensor, Tensor]:
        """Change of the weight ``(outputs, width)`` and of the bias ``(outputs,)``, 0 where there is to be none."""
        mean, target = self.inputs / self.count * bias, self.residuals / self.count * bias
        covariance = self.products / self.count - torch.outer(mean, mean)
        crossed = self.crossed / self.count - torch.outer(target, mean)
        weight = torch.cholesky_solve(crossed.T, torch.linalg.cholesky(damped(covariance, damping))).T
        return weight, target - weight @ mean

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Summed squared error that a change leaves."""
        linear = (weight * self.crossed).sum() + bias @ self.residuals
        square = (weight @ self.products * weight).sum() + 2 * bias @ (weight @ self.inputs)
        return self.squares - 2 * float(linear) + float(square + self.count * bias.square().sum())


def _refit(
    linear: nn.Linear,
    family: ModelFamily,
    block: nn.Module,
    position: int,
    part: int,
    pairs: list[_Pair],
    targets: list[tuple[_Site, _Site]],
) -> None:
    """Refit one projection; it is left as it is where no damping helps on the held-out batches."""
    fit, held_out = (_Regression.zeros(linear.in_features, linear.out_features) for _ in range(2))
    for number, (pair, target) in enumerate(zip(pairs, targets, strict=True)):
        site = pair.student.sites(family, block, position)[part]
        assert site.read is not None
        read = site.read.reshape(*pair.mask.shape, -1)[pair.mask]
        (held_out if number % HELD_OUT_EVERY == 1 else fit).update(read, (target[part].total - site.total)[pair.mask])
    biased = linear.bias is not None
    changes = [fit.solve(damping, bias=biased) for damping in DAMPINGS]
    errors = [held_out.error(*change) for change in changes]
    best = min(range(len(errors)), key=errors.__getitem__)
    if errors[best] >= held_out.squares:
        return
    weight, bias = (fit + held_out).solve(DAMPINGS[best], bias=biased)
    linear.weight.add_(weight.to(linear.weight.dtype))
    if biased:
        linear.bias.add_(bias.to(linear.bias.dtype))
