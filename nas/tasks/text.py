"""Tasks on whole texts: sentence embedding, and classification or regression of texts and of pairs of texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from nas.evaluation.metrics import SAMPLES, Measure, Tables, computed
from nas.evaluation.similarity import AGREEMENT, RETRIEVAL, STS, embedding_rows
from nas.tasks.attention import attention_outputs
from nas.tasks.data import Examples, TextData
from nas.tasks.deployed import (
    Classifier,
    SentenceEncoder,
    asks_states,
    hidden_outputs,
    logits_and_hidden,
    pool,
    run_model,
)
from nas.tasks.heads import Head, Problem, chosen_quality, find_head
from nas.tasks.models import (
    Pooling,
    PoolingMode,
    check_positions,
    load_classifier,
    load_config,
    load_encoder,
    load_tokenizer,
    read_pooling,
)
from nas.tasks.pairs import TextPairs
from nas.tasks.samples import TextSamples
from nas.tasks.task import Batch, Outputs, check_max_length, checked_outputs, paired_outputs
from search_spaces.cost import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class SentenceEmbedding:
    """A sentence encoder, judged by agreement with its teacher: no labels needed.

    Metrics on a split: ``cosine`` (mean cosine of student and teacher embeddings), ``recall`` (share of the teacher's
    nearest neighbours in the split that are the student's, too) and ``spearman`` (rank correlation of the similarities
    of all pairs). The cosine alone flatters students whose embeddings lie in a narrow cone.

    Where the data have a pair column, the two texts are embedded one by one. With labels these say how alike the two
    are, and there are ``sts_spearman`` and ``sts_pearson``; without, the second text is what a search for the first
    must find among all second texts, and there is ``retrieval_recall``.

    Args:
        model: Folder or hub name of the encoder.
        data: The texts.
        max_length: Tokens kept of a text.
        neighbours: How many nearest neighbours ``recall`` and ``retrieval_recall`` look at.
        quality: The metric that a search maximises.
        pooling: ``mean``, ``cls`` or ``max``; None takes what sentence-transformers wrote beside the model, else mean.
        cache_dir: Where tokens and teacher outputs are kept between runs.

    Raises:
        ValueError: The metric is unknown, a number is too small, or groups are asked of pairs.
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
        chosen_quality(self.quality, self.measures)
        check_max_length(self.max_length)
        if self.neighbours < 1:
            raise ValueError(f"`neighbours` must be >= 1, but got {self.neighbours}.")
        if self.data.pair_column is not None and self.data.group_columns:
            raise ValueError(
                "`task.data.group_columns` groups single texts, but with `task.data.pair_column` a text may be of many "
                "pairs: leave out one of the two."
            )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        return load_tokenizer(self.model)

    @cached_property
    def samples(self) -> TextSamples:
        """The splits, tokenised when first used."""
        examples = self.data.read() if self._pairs is None else {s: pairs.texts for s, pairs in self._pairs.items()}
        return TextSamples(examples, self.tokenizer, self.max_length, cache_dir=self.cache_dir)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Agreement, and what the data's pairs permit."""
        if self.data.pair_column is None:
            return AGREEMENT
        return (*AGREEMENT, *(RETRIEVAL if self.data.label_column is None else STS))

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
        return check_positions(load_encoder(self.model), self.max_length)

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Every sample of a split once, as the model's inputs, sorted by length."""
        return self.samples.batches(split, batch_size)

    def outputs(self, model: nn.Module, batch: Batch, names: Collection[str] = ()) -> dict[str, Tensor]:
        """``embedding (samples, hidden)``, and what of the model's inside is named."""
        with attention_outputs(model, names) as attended:
            found = run_model(model, batch, hidden_states=asks_states(names))
        embedding = getattr(found, "sentence_embedding", None)  # Deployed graphs pool themselves.
        if embedding is None:
            embedding = pool(found.last_hidden_state, batch["attention_mask"], self.pooler)
        last = getattr(found, "last_hidden_state", embedding)
        return {"embedding": embedding, **hidden_outputs(found, last, names), **attended}

    def metrics(self, split: str, outputs: Outputs, teacher: Outputs) -> dict[str, float]:
        """Agreement with the teacher, and quality on labelled pairs; see the class."""
        return computed(self.measures, self.tables(split, outputs, teacher))

    def tables(self, split: str, outputs: Outputs, teacher: Outputs) -> Tables:
        """Rows of texts, and of pairs or queries.

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
        tables = {SAMPLES: embedding_rows(own, other, self.neighbours)}
        return tables if self._pairs is None else {**tables, **self._pairs[split].tables(own, self.neighbours)}

    def deployable(self, model: nn.Module) -> nn.Module:
        """The encoder with its pooling: gives ``last_hidden_state`` and ``sentence_embedding``."""
        return SentenceEncoder(model, self.pooler)

    def example_inputs(self, workload: Workload) -> dict[str, Tensor]:
        """Inputs of a workload's sizes."""
        return self.samples.example_inputs(workload)

    @cached_property
    def _pairs(self) -> Mapping[str, TextPairs] | None:
        if self.data.pair_column is None:
            return None
        return {split: TextPairs.from_examples(examples) for split, examples in self.data.read().items()}


@dataclass(frozen=True)
class TextClassification:
    """A classifier of texts or of pairs of texts, or a model that gives them a number.

    Metrics on a split, by problem: ``single_label`` has ``accuracy``, ``macro_f1`` and ``mcc``; ``multi_label`` has
    ``micro_f1``, ``macro_f1`` and ``accuracy`` (every label right); ``regression`` has ``spearman``, ``pearson`` and
    ``rmse``. All have ``agreement`` with the teacher (share of decisions that are the same; of numbers, their Pearson
    correlation), classifiers also ``kl`` (mean Kullback-Leibler divergence from the teacher's to the student's
    distribution, in nats; lower is better).

    Args:
        model: Folder or hub name of the fine-tuned classifier.
        data: The texts, with a label column.
        max_length: Tokens kept of a text.
        problem: What the logits mean: ``single_label``, ``multi_label`` or ``regression``.
        quality: The metric that a search maximises; the problem's first where it is empty.
        new_head: Whether a model without a trained head gets a fresh one, to be fine-tuned.
        labels: The data's labels in the order of the model's logits; None pairs them by name or number, see
            `nas.tasks.classes.class_names`.
        cache_dir: Where tokens and teacher outputs are kept between runs.

    Raises:
        ValueError: The metric is unknown, the data name no label column, or a number is too small.
    """

    model: str
    data: TextData
    max_length: int = 128
    problem: Problem = "single_label"
    quality: str = ""
    new_head: bool = False
    labels: Sequence[Any] | None = None
    cache_dir: str | None = None

    kind: ClassVar[str] = "text_classification"

    def __post_init__(self) -> None:
        object.__setattr__(self, "quality", chosen_quality(self.quality, self.head.measures))
        check_max_length(self.max_length)
        if self.data.label_column is None:
            raise ValueError("`label_column` must name the column with the labels, but got None.")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        return load_tokenizer(self.model)

    @property
    def head(self) -> Head:
        """What the logits mean."""
        return find_head(self.problem)

    @property
    def deployed(self) -> Mapping[str, str]:
        """``logits``, under the name that says what they mean."""
        return {"logits": self.head.output}

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The problem's."""
        return self.head.measures

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        config = None if self.new_head else load_config(self.model)
        return self.head.classes(self._examples, config, self.labels)

    @cached_property
    def samples(self) -> TextSamples:
        """The splits, tokenised when first used."""
        labels = self.head.encode(self._examples, self.classes)
        return TextSamples(self._examples, self.tokenizer, self.max_length, labels, self.cache_dir)

    @property
    def output_names(self) -> tuple[str, ...]:
        """``logits``."""
        return tuple(self.deployed)

    @property
    def output_settings(self) -> str:
        """The kind: logits are what the model says."""
        return self.kind

    def load_model(self) -> PreTrainedModel:
        """The classifier, in fp32 and evaluation mode."""
        classes = self.classes if self.new_head else None
        model = load_classifier(self.model, classes, new_head=self.new_head, problem=self.problem)
        return check_positions(model, self.max_length)

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Every sample of a split once, as the model's inputs, sorted by length."""
        return self.samples.batches(split, batch_size)

    def outputs(self, model: nn.Module, batch: Batch, names: Collection[str] = ()) -> dict[str, Tensor]:
        """Logits ``(samples, classes)`` under the problem's name, and what of the model's inside is named."""
        return logits_and_hidden(model, batch, self.head.output, names)

    def metrics(self, split: str, outputs: Outputs, teacher: Outputs) -> dict[str, float]:
        """Quality on the labels and agreement with the teacher; see the class."""
        return computed(self.measures, self.tables(split, outputs, teacher))

    def tables(self, split: str, outputs: Outputs, teacher: Outputs) -> Tables:
        """Rows of samples."""
        labels = self.samples.labels(split)
        assert labels is not None
        own, other = paired_outputs(outputs, teacher, self.head.output, len(labels))
        return {SAMPLES: self.head.rows(own, other, labels)}

    def deployable(self, model: nn.Module) -> nn.Module:
        """The classifier: gives ``logits``."""
        return Classifier(model)

    def example_inputs(self, workload: Workload) -> dict[str, Tensor]:
        """Inputs of a workload's sizes."""
        return self.samples.example_inputs(workload)

    @cached_property
    def _examples(self) -> dict[str, Examples]:
        return self.data.read()
