"""The residual stream of one model on one batch, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.families import ModelFamily, base_model, family_of


@dataclass
class Stream:
    """One model's residual stream on one batch, a block at a time.

    Args:
        hidden: ``(samples, tokens, hidden)`` before the next block.
        arguments: What each block is called with beside the stream: masks and positions, which do not depend on it.
    """

    hidden: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def advance(self, block: nn.Module, index: int) -> None:
        """Run one block."""
        self.hidden = self.run(block, index)

    def sites(self, family: ModelFamily, block: nn.Module, index: int) -> tuple[Site, Site]:
        """What is read and written at the two places where a block adds to the residual stream."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        writers = {"attention": last_linear(block, family.attention_out), "ffn": last_linear(block, family.ffn_out)}
        watched = {**writers, "middle": block.get_submodule(family.ffn_in[0]) if writers["ffn"] is not None else None}
        handles = [
            module.register_forward_hook(_watch(name, seen)) for name, module in watched.items() if module is not None
        ]
        try:
            self.run(block, index)
        finally:
            for handle in handles:
                handle.remove()
        first = Site(self.hidden, *seen.get("attention", (None, None)))
        # With norms after the sums, the FFN adds to what the first norm gives, which is what it reads.
        between = seen["middle"][0].view_as(self.hidden) if family.post_norm and "middle" in seen else first.total
        return first, Site(between, *seen.get("ffn", (None, None)))

    def read_by(self, module: nn.Module, block: nn.Module, index: int) -> Tensor:
        """What a module of the block reads."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        handle = module.register_forward_hook(_watch("module", seen))
        try:
            self.run(block, index)
        finally:
            handle.remove()
        return seen["module"][0].view(*self.hidden.shape[:2], -1)

    def run(self, block: nn.Module, index: int) -> Tensor:
        """What the block makes of the stream, which stays where it is."""
        positional, named = self.arguments[index]
        output = block(self.hidden, *positional, **named)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


@dataclass(frozen=True)
class Site:
    """One sum of the residual stream: what stood there, what the projection read, and what it added."""

    before: Tensor
    read: Tensor | None
    written: Tensor | None

    @property
    def total(self) -> Tensor:
        """The stream after the sum."""
        return self.before if self.written is None else self.before + self.written.view_as(self.before)


def start(model: nn.Module, blocks: list[nn.Module], inputs: Mapping[str, Tensor]) -> Stream:
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
    return Stream(streams[0], arguments)


@dataclass
class Pair:
    """A subnet's and its teacher's streams on the same batch."""

    student: Stream
    teacher: Stream
    mask: Tensor

    @classmethod
    def start(
        cls,
        model: nn.Module,
        teacher: nn.Module,
        own: list[nn.Module],
        full: list[nn.Module],
        batch: Mapping[str, Tensor],
    ) -> Pair:
        """Both models up to their first block."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        student = start(model, own, inputs)
        mask = inputs.get("attention_mask")
        shape = student.hidden.shape[:2]
        real = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool()
        return cls(student, start(teacher, full, inputs), real)


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
