"""A class for every word of a text: named entities, parts of speech."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nas.evaluation.metrics import SAMPLES, Measure, Tables, computed
from nas.evaluation.tokens import TOKENS, token_rows
from nas.tasks.classes import class_names
from nas.tasks.data import Examples, TextData
from nas.tasks.deployed import Classifier, logits_and_hidden
from nas.tasks.heads import chosen_quality
from nas.tasks.labels import encode_tags, word_names
from nas.tasks.models import check_positions, load_classifier, load_config, load_tokenizer
from nas.tasks.samples import TextSamples
from nas.tasks.task import Batch, Outputs, check_max_length, paired_outputs
from search_spaces.cost import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What torch's cross-entropy and everyone else's leaves out.
_IGNORED = -100


@dataclass(frozen=True)
class TokenClassification:
    """A tagger of words: the first token of a word carries its tag.

    Metrics on a split: ``entity_f1`` (whole entities, of tags such as ``B-PER`` and ``I-PER``; CoNLL's measure),
    ``accuracy`` and ``macro_f1`` of words, ``agreement`` with the teacher's tags and ``kl`` a word. Words beyond
    ``max_length`` tokens do not count.

    Args:
        model: Folder or hub name of the fine-tuned tagger.
        data: Texts as lists of words, or words with one space between them; labels as lists of as many tags.
        max_length: Tokens kept of a text.
        quality: The metric that a search maximises.
        new_head: Whether a model without a trained head gets a fresh one, to be fine-tuned.
        labels: The data's tags in the order of the model's logits; None pairs them by name or number.
        cache_dir: Where tokens and teacher outputs are kept between runs.

    Raises:
        ValueError: The metric is unknown, the data name no label column, or a number is too small.
    """

    model: str
    data: TextData
    max_length: int = 128
    quality: str = "entity_f1"
    new_head: bool = False
    labels: Sequence[Any] | None = None
    cache_dir: str | None = None

    kind: ClassVar[str] = "token_classification"
    deployed: ClassVar[Mapping[str, str]] = {"logits": "logits"}
    measures: ClassVar[tuple[Measure, ...]] = TOKENS

    def __post_init__(self) -> None:
        chosen_quality(self.quality, self.measures)
        check_max_length(self.max_length)
        if not isinstance(self.data.label_column, str):
            raise ValueError(f"`label_column` must name the column with the tags, but got {self.data.label_column!r}.")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        return load_tokenizer(self.model)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the tags, in the order of the logits."""
        config = None if self.new_head else load_config(self.model)
        return class_names(self._examples, config, self.labels, word_names)

    @cached_property
    def samples(self) -> TextSamples:
        """The splits, tokenised when first used."""
        samples = TextSamples(self._examples, self.tokenizer, self.max_length, cache_dir=self.cache_dir, words=True)
        tags = encode_tags(self._examples, self.classes)
        return samples.with_labels({split: self._aligned(samples, split, tags[split]) for split in tags})

    @property
    def output_names(self) -> tuple[str, ...]:
        """``logits``."""
        return tuple(self.deployed)

    @property
    def output_settings(self) -> str:
        """The kind and the length that logits are padded to."""
        return f"{self.kind} {self.max_length}"

    def load_model(self) -> PreTrainedModel:
        """The tagger, in fp32 and evaluation mode."""
        kind = "AutoModelForTokenClassification"
        classes = self.classes if self.new_head else None
        model = load_classifier(self.model, classes, new_head=self.new_head, kind=kind)
        return check_positions(model, self.max_length)

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Every sample of a split once, as the model's inputs, sorted by length."""
        return self.samples.batches(split, batch_size)

    def outputs(self, model: nn.Module, batch: Batch, names: Collection[str] = ()) -> dict[str, Tensor]:
        """``logits (samples, max_length, tags)``, 0 at padding, and what of the model's inside is named."""
        outputs = logits_and_hidden(model, batch, "logits", names)
        real = outputs["logits"] * batch["attention_mask"].unsqueeze(-1)
        # One shape for all batches, so that they can be stored as one array; equal padding has no divergence.
        outputs["logits"] = functional.pad(real, (0, 0, 0, self.max_length - real.shape[1]))
        return outputs

    def metrics(self, split: str, outputs: Outputs, teacher: Outputs) -> dict[str, float]:
        """Quality on the tags and agreement with the teacher; see the class."""
        return computed(self.measures, self.tables(split, outputs, teacher))

    def tables(self, split: str, outputs: Outputs, teacher: Outputs) -> Tables:
        """Rows of texts."""
        labels = self.samples.labels(split)
        assert labels is not None
        own, other = paired_outputs(outputs, teacher, "logits", len(labels))
        return {SAMPLES: token_rows(own, other, labels, self.classes)}

    def deployable(self, model: nn.Module) -> nn.Module:
        """The tagger: gives ``logits (samples, tokens, tags)``."""
        return Classifier(model)

    def example_inputs(self, workload: Workload) -> dict[str, Tensor]:
        """Inputs of a workload's sizes."""
        return self.samples.example_inputs(workload)

    @cached_property
    def _examples(self) -> dict[str, Examples]:
        return self.data.read()

    def _aligned(self, samples: TextSamples, split: str, tags: tuple[NDArray[np.int64], ...]) -> NDArray[np.int64]:
        """Every token's tag, ``(samples, max_length)``; -100 where a token does not begin a word."""
        tokens = samples.tokens(split)
        labels = np.full((len(tags), self.max_length), _IGNORED, dtype=np.int64)
        for row, (start, end) in enumerate(zip(tokens["offsets"][:-1], tokens["offsets"][1:], strict=True)):
            words = np.asarray(tokens["words"][start:end])
            begins = np.flatnonzero(words >= 0)
            labels[row, begins] = tags[row][words[begins]]
        return labels
