"""Tasks on text: sentence embedding without labels, and text classification."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.evaluation.metrics import classification_metrics, embedding_metrics
from nas.tasks.data import Examples, TextData
from nas.tasks.labels import class_names, encode_labels
from nas.tasks.models import Pooling, PoolingMode, load_classifier, load_encoder, load_tokenizer, read_pooling
from nas.tasks.samples import TextSamples
from nas.tasks.task import Batch, Outputs, checked_outputs
from search_spaces.cost import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDING_METRICS = ("cosine", "recall", "spearman")
CLASSIFICATION_METRICS = ("accuracy", "macro_f1", "agreement", "kl")


@dataclass(frozen=True)
class SentenceEmbedding:
    """A sentence encoder, judged by agreement with its teacher: no labels needed.

    Metrics on a split: ``cosine`` (mean cosine of student and teacher embeddings), ``recall`` (share of the teacher's
    nearest neighbours in the split that are the student's, too) and ``spearman`` (rank correlation of the similarities
    of all pairs). The cosine alone flatters students whose embeddings lie in a narrow cone.

    Args:
        model: Folder or hub name of the encoder.
        data: The texts.
        max_length: Tokens kept of a text.
        neighbours: How many nearest neighbours ``recall`` looks at.
        quality: The metric that a search maximises.
        pooling: ``mean``, ``cls`` or ``max``; None takes what sentence-transformers wrote beside the model, else mean.
        cache_dir: Where tokens and teacher outputs are kept between runs.

    Raises:
        ValueError: The metric is unknown, or a number is too small.
    """

    model: str
    data: TextData
    max_length: int = 128
    neighbours: int = 10
    quality: str = "cosine"
    pooling: PoolingMode | None = None
    cache_dir: str | None = None

    kind: ClassVar[str] = "sentence_embedding"
    deployed: ClassVar[Mapping[str, str]] = {"last_hidden_state": "hidden", "sentence_embedding": "embedding"}

    def __post_init__(self) -> None:
        _check_settings(self.quality, EMBEDDING_METRICS, self.max_length)
        if self.neighbours < 1:
            raise ValueError(f"`neighbours` must be >= 1, but got {self.neighbours}.")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        return load_tokenizer(self.model)

    @cached_property
    def samples(self) -> TextSamples:
        """The splits, tokenised when first used."""
        return TextSamples(self.data.read(), self.tokenizer, self.max_length, cache_dir=self.cache_dir)

    @property
    def output_names(self) -> tuple[str, ...]:
        """``last_hidden_state``, ``sentence_embedding``: what optimum's exported encoders call them."""
        return tuple(self.deployed)

    @cached_property
    def pooler(self) -> Pooling:
        """How token states become one embedding."""
        written = read_pooling(self.model)
        return written if self.pooling is None else Pooling(self.pooling, written.normalize)

    @property
    def output_settings(self) -> str:
        """The kind and the pooling."""
        return f"{self.kind} {self.pooler.mode} {self.pooler.normalize}"

    def load_model(self) -> PreTrainedModel:
        """The encoder, in fp32 and evaluation mode."""
        return load_encoder(self.model)

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Every sample of a split once, as the model's inputs, sorted by length."""
        return self.samples.batches(split, batch_size)

    def outputs(self, model: nn.Module, batch: Batch, names: Collection[str] = ()) -> dict[str, Tensor]:
        """``embedding (samples, hidden)``, and ``hidden`` or ``hidden_states`` when named."""
        found = _run(model, batch, hidden_states="hidden_states" in names)
        outputs = {"embedding": pool(found.last_hidden_state, batch["attention_mask"], self.pooler)}
        return outputs | _hidden(found, found.last_hidden_state, names)

    def metrics(self, split: str, outputs: Outputs, teacher: Outputs) -> dict[str, float]:
        """Agreement with the teacher; see the class.

        Raises:
            ValueError: The split has no more samples than there are neighbours to look at.
        """
        size = self.samples.size(split)
        if size <= self.neighbours + 1:
            raise ValueError(
                f"split {split!r} must have more than {self.neighbours + 1} samples, because `neighbours` is "
                f"{self.neighbours}, but has {size}."
            )
        own, other = (checked_outputs(side, "embedding", size) for side in (outputs, teacher))
        return embedding_metrics(own, other, self.neighbours)

    def deployable(self, model: nn.Module) -> nn.Module:
        """The encoder with its pooling: gives ``last_hidden_state`` and ``sentence_embedding``."""
        return SentenceEncoder(model, self.pooler)

    def example_inputs(self, workload: Workload) -> dict[str, Tensor]:
        """Inputs of a workload's sizes."""
        return self.samples.example_inputs(workload)


@dataclass(frozen=True)
class TextClassification:
    """A classifier of texts or of pairs of texts.

    Metrics on a split: ``accuracy``, ``macro_f1``, ``agreement`` (share of samples on which student and teacher choose
    the same class) and ``kl`` (mean Kullback-Leibler divergence from the teacher's to the student's distribution, in
    nats; lower is better).

    Args:
        model: Folder or hub name of the fine-tuned classifier.
        data: The texts, with a label column.
        max_length: Tokens kept of a text.
        quality: The metric that a search maximises.
        new_head: Whether a model without a trained head gets a fresh one, to be fine-tuned.
        cache_dir: Where tokens and teacher outputs are kept between runs.

    Raises:
        ValueError: The metric is unknown, the data name no label column, or a number is too small.
    """

    model: str
    data: TextData
    max_length: int = 128
    quality: str = "accuracy"
    new_head: bool = False
    cache_dir: str | None = None

    kind: ClassVar[str] = "text_classification"
    deployed: ClassVar[Mapping[str, str]] = {"logits": "logits"}

    def __post_init__(self) -> None:
        _check_settings(self.quality, CLASSIFICATION_METRICS[:3], self.max_length)
        if self.data.label_column is None:
            raise ValueError("`label_column` must name the column with the labels, but got None.")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        return load_tokenizer(self.model)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        from transformers import AutoConfig

        config = None if self.new_head else AutoConfig.from_pretrained(self.model)
        return class_names(self._examples["train"], config)

    @cached_property
    def samples(self) -> TextSamples:
        """The splits, tokenised when first used."""
        labels = encode_labels(self._examples, self.classes)
        return TextSamples(self._examples, self.tokenizer, self.max_length, labels, self.cache_dir)

    @property
    def output_names(self) -> tuple[str, ...]:
        """``logits``."""
        return tuple(self.deployed)

    @property
    def output_settings(self) -> str:
        """The kind: logits are what the model says they are."""
        return self.kind

    def load_model(self) -> PreTrainedModel:
        """The classifier, in fp32 and evaluation mode."""
        return load_classifier(self.model, self.classes, new_head=self.new_head)

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Every sample of a split once, as the model's inputs, sorted by length."""
        return self.samples.batches(split, batch_size)

    def outputs(self, model: nn.Module, batch: Batch, names: Collection[str] = ()) -> dict[str, Tensor]:
        """``logits (samples, classes)``, and ``hidden`` or ``hidden_states`` when named."""
        found = _run(model, batch, hidden_states=bool({"hidden", "hidden_states"} & set(names)))
        last = found.hidden_states[-1] if found.hidden_states else found.logits
        return {"logits": found.logits, **_hidden(found, last, names)}

    def metrics(self, split: str, outputs: Outputs, teacher: Outputs) -> dict[str, float]:
        """Quality on the labels and agreement with the teacher; see the class."""
        labels = self.samples.labels(split)
        assert labels is not None
        own, other = (checked_outputs(side, "logits", len(labels)) for side in (outputs, teacher))
        return classification_metrics(own, other, labels)

    def deployable(self, model: nn.Module) -> nn.Module:
        """The classifier: gives ``logits``."""
        return Classifier(model)

    def example_inputs(self, workload: Workload) -> dict[str, Tensor]:
        """Inputs of a workload's sizes."""
        return self.samples.example_inputs(workload)

    @cached_property
    def _examples(self) -> dict[str, Examples]:
        return self.data.read()


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
        hidden = _run(self.model, {k: v for k, v in inputs.items() if v is not None}).last_hidden_state
        return hidden, pool(hidden, attention_mask, self.pooling)


class Classifier(nn.Module):
    """A classifier as it is deployed.

    Args:
        model: A `transformers` sequence classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor]:
        """``logits (samples, classes)``."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return (_run(self.model, {k: v for k, v in inputs.items() if v is not None}).logits,)


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


def _run(model: nn.Module, batch: Batch, *, hidden_states: bool = False) -> Any:
    # `return_dict` also for a model whose configuration says otherwise: outputs are read by name.
    return model(**batch, output_hidden_states=hidden_states, return_dict=True)


def _hidden(found: Any, last: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    outputs = {"hidden": last} if "hidden" in names else {}
    if "hidden_states" in names:
        # The first of them is the embeddings' output, before any block.
        outputs["hidden_states"] = torch.stack(tuple(found.hidden_states)[1:])
    return outputs


def _check_settings(quality: str, known: tuple[str, ...], max_length: int) -> None:
    if quality not in known:
        raise ValueError(f"`quality` must be one of {', '.join(known)}, but got {quality!r}.")
    if max_length < 2:
        raise ValueError(f"`max_length` must be >= 2 tokens, but got {max_length}.")
