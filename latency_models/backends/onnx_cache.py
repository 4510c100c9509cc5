"""Causal language models as ONNX graphs with their KV cache as inputs and outputs: a token at a time, anywhere.

Names are those that `optimum` gives: ``input_ids``, ``attention_mask`` (over cache and new tokens), ``position_ids``,
``past_key_values.0.key``, ... in, ``logits`` and ``present.0.key``, ... out. The first run's cache is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latency_models.backends.graph_file import input_names
from latency_models.backends.onnx import DEFAULT_OPSET, clean, export_ir

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

_BATCH, _PAST, _SEQUENCE = 2, 5, 11
_PAST_AXES = {0: "batch_size", 2: "past_sequence_length"}
_AXES: Mapping[str, Mapping[int, str]] = {
    "input_ids": {0: "batch_size", 1: "sequence_length"},
    "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
    "position_ids": {0: "batch_size", 1: "sequence_length"},
}
_PREFIX = "past_key_values."


def export_causal_onnx(
    model: nn.Module, *, metadata: Mapping[str, str] | None = None, opset: int = DEFAULT_OPSET
) -> onnx.ModelProto:
    """Export a causal language model of `transformers` with its KV cache.

    Args:
        model: A model with a language model's head; blocks may have different numbers of key/value heads.
        metadata: Entries for the graph's own metadata.
        opset: Version of the ONNX operator set.

    Returns:
        The graph with its weights; batch, new tokens and cached tokens are dynamic.

    Raises:
        BackendError: torch cannot export the model.
    """
    import onnx_ir as ir
    import torch

    cache = _first_cache(model)
    places = [f"{index}.{part}" for index in range(len(cache)) for part in ("key", "value")]
    names = {f"past_{place.replace('.', '_')}": f"{_PREFIX}{place}" for place in places}
    example = {
        "input_ids": torch.ones(_BATCH, _SEQUENCE, dtype=torch.int64),
        "attention_mask": torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.int64),
        "position_ids": torch.arange(_PAST, _PAST + _SEQUENCE).repeat(_BATCH, 1),
        **dict(zip(names, (tensor for pair in cache for tensor in pair), strict=True)),
    }
    axes = {**_AXES, **dict.fromkeys(names, _PAST_AXES)}
    outputs = ["logits", *(f"present.{place}" for place in places)]
    program = export_ir(_with_cache(model, tuple(names)), example, outputs, axes=axes, opset=opset)
    for value in program.graph.inputs:
        value.name = names.get(str(value.name), value.name)
    clean(program)
    program.metadata_props.update(metadata or {})
    proto: onnx.ModelProto = ir.to_proto(program)
    return proto


def _first_cache(model: Any) -> list[tuple[Tensor, Tensor]]:
    """A cache of a few tokens, as the model makes it: its sizes are whatever the blocks have."""
    import torch

    with torch.no_grad():
        tokens = torch.ones(_BATCH, _PAST, dtype=torch.int64)
        found = model(input_ids=tokens, use_cache=True, return_dict=True).past_key_values
    return [(layer.keys, layer.values) for layer in found.layers]


def _with_cache(model: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The model with its cache as plain tensors."""
    import torch
    from transformers import DynamicCache

    class WithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
            past = [inputs.pop(name) for name in names]
            cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
            found = self.model(**inputs, past_key_values=cache, use_cache=True, return_dict=True)
            layers = found.past_key_values.layers
            return (found.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))

    return WithCache()


def empty_cache(graph: Any, batch_size: int = 1) -> dict[str, NDArray[Any]]:
    """The cache of a first run, by the names of a graph's inputs.

    Args:
        graph: A graph of `export_causal_onnx`: ``ModelProto``, bytes or path.
        batch_size: Sequences that are generated together.
    """
    from latency_models.backends.graph_file import load_graph

    sizes = {}
    for entry in load_graph(graph).graph.input:
        if entry.name.startswith(_PREFIX):
            dims = entry.type.tensor_type.shape.dim
            sizes[entry.name] = (batch_size, dims[1].dim_value, 0, dims[3].dim_value)
    return {name: np.zeros(size, dtype=np.float32) for name, size in sizes.items()}


def has_cache(graph: Any) -> bool:
    """Whether a graph takes a KV cache."""
    return any(name.startswith(_PREFIX) for name in input_names(graph))


def generate(session: Any, cache: Mapping[str, NDArray[Any]], prompt: NDArray[Any], new_tokens: int) -> NDArray[Any]:
    """Continue prompts greedily in plain ONNX Runtime.

    Args:
        session: An ``InferenceSession`` of the graph.
        cache: See `empty_cache`.
        prompt: Token ids ``(batch, tokens)``, all of the same length.
        new_tokens: How many to add.

    Returns:
        Token ids ``(batch, tokens + new_tokens)``.
    """
    names, past = list(cache), dict(cache)
    taken = {entry.name for entry in session.get_inputs()}
    tokens = step = np.asarray(prompt, dtype=np.int64)
    for _ in range(new_tokens):
        total = tokens.shape[1]
        places = np.arange(total - step.shape[1], total)[None].repeat(len(tokens), 0)
        feeds = {"input_ids": step, "attention_mask": np.ones_like(tokens), "position_ids": places, **past}
        logits, *present = session.run(None, {name: value for name, value in feeds.items() if name in taken})
        step = logits[:, -1].argmax(-1)[:, None]
        tokens = np.concatenate([tokens, step], axis=1)
        past = dict(zip(names, present, strict=True))
    return tokens
