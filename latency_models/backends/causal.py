"""Causal language models as they are deployed: one module, and one graph, for prompts and for token after token.

The module takes new tokens and an attention mask over cached and new ones: by as much as the mask is longer, so many
are cached. In torch the cache is made of zeros and stays as it is, so that a run can be repeated: for measuring, and,
with an empty cache, for prompts. In the graph the zeros become inputs, and what the blocks make of them outputs: see
`expose_cache`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from latency_models.backends.base import PAST
from latency_models.backends.onnx_passes import scopes_of
from search_spaces.families import blocks_of

if TYPE_CHECKING:
    import onnx_ir as ir

_PRESENT = "present."
_BATCH, _CACHED, _TOTAL = "batch_size", "past_sequence_length", "total_sequence_length"
# Of a key or a value: (batch, heads, tokens, head_dim).
_TOKENS = 2


class CausalModel(nn.Module):
    """A causal language model of `transformers` as it is deployed.

    Args:
        model: A model with a language model's head; blocks may have different numbers of key/value heads.
    """

    dynamic_axes: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "input_ids": {0: _BATCH, 1: "sequence_length"},
        "attention_mask": {0: _BATCH, 1: _TOTAL},
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._zeros: dict[tuple[int, ...], Tensor] = {}
        self._blocks = len(blocks_of(model))
        taken = inspect.signature(model.forward).parameters
        # Releases of `transformers` differ in what they call it.
        self._cache_name = "cache" if "cache" in taken else "past_key_values"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        """``logits (samples, new tokens, vocabulary)``."""
        new = input_ids.shape[1]
        cached = attention_mask.shape[1] - new
        # Counted over real tokens, so that prompts of one batch may be padded on the left.
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, cached:]
        cache = Cache(layers=[_StandingLayer(block, cached, self._past) for block in range(self._blocks)])
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=True,
            return_dict=True,
            **{self._cache_name: cache},
        )
        return (found.logits,)

    def _past(self, place: int, like: Tensor, cached: int) -> Tensor:
        """Keys or values of cached tokens; each place has its own, as a real cache does not stay in the processor's."""
        size = (like.shape[0], like.shape[1], cached, like.shape[3])
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return like.new_zeros(size)
        zeros = self._zeros.get((place, *size))
        if zeros is None or zeros.dtype != like.dtype or zeros.device != like.device:
            zeros = self._zeros[place, *size] = like.new_zeros(size)
        return zeros


class _StandingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A block's cache with as many tokens before every run."""

    def __init__(self, block: int, cached: int, past: Callable[[int, Tensor, int], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._block = block
        self._cached = cached
        self._past = past

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        key = torch.cat([self._past(2 * self._block, key_states, self._cached), key_states], dim=_TOKENS)
        value = torch.cat([self._past(2 * self._block + 1, value_states, self._cached), value_states], dim=_TOKENS)
        return key, value

    def get_seq_length(self) -> int:
        return self._cached

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cached + query_length, 0


@dataclass(frozen=True, slots=True)
class CachePlace:
    """Where one block of a graph puts its new keys, or its new values, behind the cached ones.

    Args:
        block: Its number in the exported model.
        result: Name of the value that holds all of them.
        heads: Key/value heads.
        head_dim: Width of a head.
    """

    block: int
    result: str
    heads: int
    head_dim: int


def find_caches(model: ir.Model) -> tuple[CachePlace, ...]:
    """The places of a freshly exported `CausalModel`, keys before values, block by block; none in other graphs."""
    found = []
    for node in _caching(model):
        shape = node.outputs[0].shape
        assert shape is not None
        block = next(int(part) for scope in scopes_of(node) for part in scope.split(".") if part.isdigit())
        found.append(CachePlace(block, str(node.outputs[0].name), int(shape[1]), int(shape[3])))  # type: ignore[arg-type]
    return tuple(found)


def expose_cache(model: ir.Model, places: Sequence[CachePlace], heads: Mapping[int, int] | None = None) -> None:
    """Make the cache inputs and outputs of a graph: ``past_key_values.0.key``, ... and ``present.0.key``, ...

    Names and numbers are those that `optimum` gives: blocks with attention are counted, others have no cache.

    Args:
        model: The graph, changed in place.
        places: What `find_caches` found in it; those that are gone are left out.
        heads: Block -> key/value heads, where they are not those of the places.
    """
    import onnx_ir as ir

    by_result = {str(node.outputs[0].name): node for node in model.graph}
    left = [place for place in places if place.result in by_result]
    for number, place in enumerate(left):
        node = by_result[place.result]
        name = f"{number // 2}.{'value' if number % 2 else 'key'}"
        count = (heads or {}).get(place.block, place.heads)
        before, result = node.inputs[0], node.outputs[0]
        assert before is not None
        past = ir.val(f"{PAST}{name}", type=result.type, shape=ir.Shape([_BATCH, count, _CACHED, place.head_dim]))
        model.graph.inputs.append(past)
        node.replace_input_with(0, past)
        result.name = f"{_PRESENT}{name}"
        result.shape = ir.Shape([_BATCH, count, _TOTAL, place.head_dim])
        model.graph.outputs.append(result)


def _caching(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes that put new tokens behind cached ones, which are zeros until they become inputs."""
    for node in model.graph:
        first = node.inputs[0] if node.op_type == "Concat" and len(node.inputs) == 2 else None
        producer = None if first is None else first.producer()
        rank = len(node.outputs[0].shape or ())
        if producer is not None and producer.op_type in ("ConstantOfShape", "Expand") and rank == _TOKENS + 2:
            yield node
