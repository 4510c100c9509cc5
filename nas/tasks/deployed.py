"""Models as they are run and deployed: outputs by name, pooling, and the modules that are exported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from latency_models.backends.base import with_cache
from nas.tasks.attention import attention_outputs
from nas.tasks.models import Pooling
from nas.tasks.task import Batch

_ARRAY_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}


class SentenceEncoder(nn.Module):
    """An encoder with its pooling, as it is deployed.

    Args:
        model: A `transformers` encoder.
        pooling: How token states become one embedding.
    """

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``last_hidden_state (samples, tokens, hidden)`` and ``sentence_embedding (samples, hidden)``."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        hidden = run_model(self.model, {k: v for k, v in inputs.items() if v is not None}).last_hidden_state
        return hidden, pool(hidden, attention_mask, self.pooling)


class Classifier(nn.Module):
    """A classifier of texts or of their tokens as it is deployed.

    Args:
        model: A `transformers` sequence or token classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor]:
        """``logits (samples, classes)``, or ``(samples, tokens, classes)``."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return (run_model(self.model, {k: v for k, v in inputs.items() if v is not None}).logits,)


class ImageClassifier(nn.Module):
    """A classifier of images as it is deployed.

    Args:
        model: A `transformers` image classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """``logits (samples, classes)``."""
        return (run_model(self.model, {"pixel_values": pixel_values}).logits,)


class GraphModel:
    """A deployed ONNX graph that answers as its `transformers` model would: outputs by name.

    Args:
        model: File or bytes.
        threads: Of ONNX Runtime.

    Raises:
        ValueError: ONNX Runtime cannot read it.
    """

    def __init__(self, model: str | bytes, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._name = model if isinstance(model, str) else "the ONNX model"
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # The library's own errors have no base class that it exports.
            raise ValueError(f"{self._name}: ONNX Runtime cannot read it: {_first_line(error)}") from error
        # Some exporters take token numbers as int32.
        self._inputs = {node.name: _ARRAY_TYPES.get(node.type, np.int64) for node in self._session.get_inputs()}
        self._shapes = {node.name: node.shape for node in self._session.get_inputs()}
        self.output_names = tuple(node.name for node in self._session.get_outputs())

    def __call__(self, **batch: Any) -> SimpleNamespace:
        """Outputs as attributes; options of `transformers` among the arguments are left aside.

        Raises:
            ValueError: The graph takes inputs of other names or sizes.
        """
        feeds = {n: values.numpy().astype(self._inputs[n]) for n, values in batch.items() if n in self._inputs}
        try:
            values = self._session.run(None, with_cache(self._shapes, feeds))
        except Exception as error:  # As above.
            sizes = ", ".join(f"{name} {list(found.shape)}" for name, found in feeds.items())
            raise ValueError(
                f"{self._name}: cannot be run on {sizes}: {_first_line(error)}. Export it with the inputs of its "
                "tokenizer, and batch and sequence as free dimensions."
            ) from error
        found = zip(self.output_names, values, strict=True)
        return SimpleNamespace(hidden_states=None, **{name: torch.from_numpy(values) for name, values in found})


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def run_model(model: Any, batch: Batch, *, hidden_states: bool = False) -> Any:
    """Run a `transformers` model, or a `GraphModel`, on a batch; outputs are attributes of what is returned."""
    # `return_dict` also for a model whose configuration says otherwise: outputs are read by name.
    return model(**batch, output_hidden_states=hidden_states, return_dict=True)


def asks_states(names: Collection[str]) -> bool:
    """Whether outputs are named that need the states between a model's blocks."""
    return bool({"hidden_states", "inner_states"} & set(names))


def hidden_outputs(found: Any, last: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """``hidden``, ``hidden_states`` and ``inner_states`` of what `run_model` returned, where they are named."""
    outputs = {"hidden": last} if "hidden" in names else {}
    # The first of them is the embeddings' output, before any block.
    states = tuple(found.hidden_states)[1:] if asks_states(names) else ()
    if "inner_states" in names:
        outputs["inner_states"] = torch.stack(states[:-1]) if len(states) > 1 else last.new_zeros((0, *last.shape))
    if "hidden_states" in names:
        if len(widths := {state.shape[-1] for state in states}) > 1:
            raise ValueError(
                f"`hidden_states` must all have one hidden size, but have {' and '.join(map(str, sorted(widths)))}: "
                "this model's residual stream is narrower than its teacher's. Use `hidden`."
            )
        outputs["hidden_states"] = torch.stack(states)
    return outputs


def logits_and_hidden(model: Any, batch: Batch, name: str, names: Collection[str]) -> dict[str, Tensor]:
    """A classifier's logits under their name in the task, and what of its inside is named."""
    with attention_outputs(model, names) as attended:
        found = run_model(model, batch, hidden_states="hidden" in names or asks_states(names))
    last = found.hidden_states[-1] if found.hidden_states else found.logits
    return {name: found.logits, **hidden_outputs(found, last, names), **attended}


def pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Token states ``(samples, tokens, hidden)`` to embeddings ``(samples, hidden)``; padding does not count."""
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    if pooling.mode == "cls":
        pooled = hidden[:, 0]
    elif pooling.mode == "max":
        pooled = hidden.masked_fill(mask == 0, float("-inf")).amax(dim=1)
    else:
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
    return functional.normalize(pooled, dim=-1) if pooling.normalize else pooled
