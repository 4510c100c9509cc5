"""Causal language models as ONNX graphs with their KV cache as inputs and outputs: a token at a time, anywhere.

Names are those that `optimum` gives: ``input_ids``, ``attention_mask`` (over cache and new tokens) and
``past_key_values.0.key``, ... in, ``logits`` and ``present.0.key``, ... out. Positions follow from the mask. The first
run's cache is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latency_models.backends.base import PAST
from latency_models.backends.graph_file import input_names, input_shapes
from latency_models.backends.onnx import DEFAULT_OPSET, export_onnx

if TYPE_CHECKING:
    import onnx
    from torch import nn


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
    import torch

    from latency_models.backends.causal import CausalModel

    tokens = torch.ones(2, 4, dtype=torch.int64)
    example = {"input_ids": tokens, "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    return export_onnx(CausalModel(model), example, ["logits"], metadata=metadata, opset=opset)


def empty_cache(graph: Any, batch_size: int = 1) -> dict[str, NDArray[Any]]:
    """The cache of a first run, by the names of a graph's inputs.

    Args:
        graph: A graph of `export_causal_onnx`: ``ModelProto``, bytes or path.
        batch_size: Sequences that are generated together.
    """
    shapes = {name: shape for name, shape in input_shapes(graph).items() if name.startswith(PAST)}
    return {
        name: np.zeros((batch_size, int(shape[1]), 0, int(shape[3])), dtype=np.float32)
        for name, shape in shapes.items()
    }


def has_cache(graph: Any) -> bool:
    """Whether a graph takes a KV cache."""
    return any(name.startswith(PAST) for name in input_names(graph))


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
    tokens = step = np.asarray(prompt, dtype=np.int64)
    for _ in range(new_tokens):
        logits, *present = session.run(None, {"input_ids": step, "attention_mask": np.ones_like(tokens), **past})
        step = logits[:, -1].argmax(-1)[:, None]
        tokens = np.concatenate([tokens, step], axis=1)
        past = dict(zip(names, present, strict=True))
    return tokens
