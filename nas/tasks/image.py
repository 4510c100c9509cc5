"""Classification of images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from nas.evaluation.metrics import SAMPLES, Measure, Tables, computed
from nas.tasks.deployed import ImageClassifier, logits_and_hidden
from nas.tasks.heads import SingleLabel, chosen_quality
from nas.tasks.images import ImageData, ImageSamples, Pictures
from nas.tasks.models import load_classifier, load_config, load_image_processor
from nas.tasks.task import Batch, Outputs, paired_outputs
from search_spaces.cost import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEAD = SingleLabel()


@dataclass(frozen=True)
class ImageClassification:
    """A classifier of images, judged as a classifier of texts is; see `nas.tasks.text.TextClassification`.

    Args:
        model: Folder or hub name of the fine-tuned classifier, with its image processor.
        data: The images, with labels.
        quality: The metric that a search maximises.
        new_head: Whether a model without a trained head gets a fresh one, to be fine-tuned.
        labels: The data's labels in the order of the model's logits; None pairs them by name or number.
        cache_dir: Where prepared images and teacher outputs are kept between runs.

    Raises:
        ValueError: The metric is unknown.
    """

    model: str
    data: ImageData
    quality: str = "accuracy"
    new_head: bool = False
    labels: Sequence[Any] | None = None
    cache_dir: str | None = None

    kind: ClassVar[str] = "image_classification"
    deployed: ClassVar[Mapping[str, str]] = {"logits": _HEAD.output}
    measures: ClassVar[tuple[Measure, ...]] = _HEAD.measures

    def __post_init__(self) -> None:
        chosen_quality(self.quality, self.measures)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's image processor: what is saved beside every exported model."""
        return load_image_processor(self.model)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        config = None if self.new_head else load_config(self.model)
        return _HEAD.classes(self._pictures.examples, config, self.labels)

    @cached_property
    def samples(self) -> ImageSamples:
        """The splits, prepared when first used."""
        labels = _HEAD.encode(self._pictures.examples, self.classes)
        channels = int(getattr(load_config(self.model), "num_channels", 3))
        return ImageSamples(self._pictures, self.tokenizer, labels, self.cache_dir, channels)

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
        kind = "AutoModelForImageClassification"
        classes = self.classes if self.new_head else None
        return load_classifier(self.model, classes, new_head=self.new_head, kind=kind)

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Every sample of a split once, as the model's inputs."""
        return self.samples.batches(split, batch_size)

    def outputs(self, model: nn.Module, batch: Batch, names: Collection[str] = ()) -> dict[str, Tensor]:
        """``logits (samples, classes)``, and what of the model's inside is named."""
        return logits_and_hidden(model, batch, _HEAD.output, names)

    def metrics(self, split: str, outputs: Outputs, teacher: Outputs) -> dict[str, float]:
        """Quality on the labels and agreement with the teacher."""
        return computed(self.measures, self.tables(split, outputs, teacher))

    def tables(self, split: str, outputs: Outputs, teacher: Outputs) -> Tables:
        """Rows of images."""
        labels = self.samples.labels(split)
        own, other = paired_outputs(outputs, teacher, _HEAD.output, len(labels))
        return {SAMPLES: _HEAD.rows(own, other, labels)}

    def deployable(self, model: nn.Module) -> nn.Module:
        """The classifier: gives ``logits``."""
        return ImageClassifier(model)

    def example_inputs(self, workload: Workload) -> dict[str, Tensor]:
        """As many images as the workload's batch has; its sequence length is the model's business."""
        return self.samples.example_inputs(workload)

    @cached_property
    def _pictures(self) -> Pictures:
        return self.data.read()
