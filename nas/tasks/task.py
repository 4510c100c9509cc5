"""What the rest of the project needs of a task: one Protocol for all kinds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import Measure, Tables
from search_spaces.cost import Workload

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from nas.tasks.data import Examples

Batch = Mapping[str, "torch.Tensor"]
Outputs = Mapping[str, NDArray[Any]]


class Samples(Protocol):
    """The splits of a task as arrays: `nas.tasks.samples.TextSamples`, `nas.tasks.images.ImageSamples`."""

    @property
    def examples(self) -> Mapping[str, Examples]:
        """Samples by split, as they were read."""

    def size(self, split: str) -> int:
        """How many samples a split has."""

    def labels(self, split: str) -> NDArray[Any] | None:
        """The samples' labels, one row a sample, or None without labels."""

    def groups(self, split: str) -> Mapping[str, tuple[str, ...]]:
        """Group column -> the samples' values in it."""

    def fingerprint(self, split: str) -> str:
        """Name of a split's content as the model sees it."""

    @property
    def max_length(self) -> int:
        """Tokens kept of a text; 0 for images."""

    def offsets(self, split: str) -> NDArray[np.int64] | None:
        """Where each sample's tokens begin among the split's, ``(samples + 1,)``; None where all have as many."""

    def order(self, split: str, batch_size: int) -> list[NDArray[np.int64]]:
        """Rows of batches that hold every sample once."""

    def shuffled(self, split: str, batch_size: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """Rows of random batches without end."""

    def batch(self, split: str, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The model's inputs for these samples."""

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Every sample of a split once, as the model's inputs."""


class Task(Protocol):
    """A data set with what models are to do on it.

    Attributes:
        kind: ``sentence_embedding``, ``text_classification`` and so on: what its YAML file is called, mostly.
    """

    kind: ClassVar[str]

    @property
    def deployed(self) -> Mapping[str, str]:
        """Output name of the deployed model -> name in `outputs`, in order."""

    @property
    def quality(self) -> str:
        """Name of the metric that a search maximises."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What can be computed of `tables`."""

    @property
    def samples(self) -> Samples:
        """The splits ``train``, ``calibration``, ``validation`` and ``test``."""

    @property
    def tokenizer(self) -> Any:
        """What turns texts into tokens, or prepares images; saved beside every exported model."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the deployed model's outputs, in order."""

    @property
    def output_settings(self) -> str:
        """Everything but model and samples that changes what `outputs` gives: part of the key of stored outputs."""

    def load_model(self) -> PreTrainedModel:
        """The pretrained model: the teacher."""

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Every sample of a split once, as the model's inputs, sorted by length."""

    def outputs(self, model: torch.nn.Module, batch: Batch, names: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """What the model says about a batch.

        Args:
            model: A `transformers` model of the task's kind.
            batch: The model's inputs; of a language model also what it is asked about, where it is compared with a
                teacher (see `nas.distillation.teacher.TeacherOutputs.inputs`).
            names: Outputs wanted beyond the task's own (`main_output`): ``hidden`` (the last hidden
                state, ``(samples, tokens, hidden)``), ``hidden_states`` (after every block,
                ``(blocks, samples, tokens, hidden)``), ``inner_states`` (after every block but the last, as wide as the
                residual stream), and ``queries``, ``keys`` and ``values`` (see `nas.tasks.attention`).
        """

    def metrics(self, split: str, outputs: Outputs, teacher: Outputs) -> dict[str, float]:
        """Quality of a model's outputs on a whole split.

        Args:
            split: Its name.
            outputs: Arrays of `outputs`' main entry, ``(samples, ...)``, in the order of the split.
            teacher: The teacher's, in the same order.
        """

    def tables(self, split: str, outputs: Outputs, teacher: Outputs) -> Tables:
        """What `measures` are computed of: rows, so that intervals can be drawn; arguments as of `metrics`."""

    def deployable(self, model: torch.nn.Module) -> torch.nn.Module:
        """The module that is exported and measured: tokenizer's inputs by keyword in, a tuple of `output_names` out."""

    def example_inputs(self, workload: Workload) -> dict[str, torch.Tensor]:
        """Inputs of a workload's sizes."""


def main_output(task: Task) -> str:
    """The output that metrics read: ``embedding``, ``logits``, ``next_token``, ..."""
    return tuple(task.deployed.values())[-1]


def check_max_length(max_length: int) -> None:
    """Check how many tokens of a text are kept.

    Raises:
        ValueError: They are no whole number, or too few for a text between its two special tokens.
    """
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 2:
        raise ValueError(f"`task.max_length` must be a whole number >= 2 of tokens, but got {max_length!r}.")


def checked_outputs(outputs: Outputs, name: str, size: int) -> NDArray[np.float32]:
    """One output as a finite array of ``size`` rows.

    Raises:
        ValueError: The output is absent or has another number of rows.
    """
    if name not in outputs:
        raise ValueError(f"outputs must hold {name!r}, but hold {', '.join(map(repr, outputs)) or 'nothing'}.")
    values = np.asarray(outputs[name], dtype=np.float32)
    if len(values) != size:
        raise ValueError(f"output {name!r} must have {size} rows, one for each sample, but has {len(values)}.")
    return values


def paired_outputs(
    outputs: Outputs, teacher: Outputs, name: str, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One output of a model and of its teacher, whose columns must mean the same.

    Raises:
        ValueError: As `checked_outputs`, or the two have not as many columns.
    """
    own, other = (checked_outputs(side, name, size) for side in (outputs, teacher))
    if own.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"a model must have as many classes as its teacher, which has {other.shape[-1]}, but has {own.shape[-1]}: "
            "compare models of one task."
        )
    return own, other
