"""What the rest of the project needs of a task: one Protocol for all kinds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost import Workload

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from nas.tasks.samples import TextSamples

Batch = Mapping[str, "torch.Tensor"]
Outputs = Mapping[str, NDArray[Any]]


class Task(Protocol):
    """A data set with what models are to do on it.

    Attributes:
        kind: ``sentence_embedding`` or ``text_classification``.
        deployed: Output name of the deployed model -> name in `outputs`, in order.
    """

    kind: ClassVar[str]
    deployed: ClassVar[Mapping[str, str]]

    @property
    def quality(self) -> str:
        """Name of the metric that a search maximises."""

    @property
    def samples(self) -> TextSamples:
        """The splits ``train``, ``calibration``, ``validation`` and ``test``."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What turns texts into tokens; saved beside every exported model."""

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
            batch: The model's inputs.
            names: Outputs wanted beyond the task's own (``embedding`` or ``logits``): ``hidden`` (the last hidden
                state, ``(samples, tokens, hidden)``) and ``hidden_states`` (after every block,
                ``(blocks, samples, tokens, hidden)``).
        """

    def metrics(self, split: str, outputs: Outputs, teacher: Outputs) -> dict[str, float]:
        """Quality of a model's outputs on a whole split.

        Args:
            split: Its name.
            outputs: Arrays of `outputs`' main entry, ``(samples, ...)``, in the order of the split.
            teacher: The teacher's, in the same order.
        """

    def deployable(self, model: torch.nn.Module) -> torch.nn.Module:
        """The module that is exported and measured: tokenizer's inputs by keyword in, a tuple of `output_names` out."""

    def example_inputs(self, workload: Workload) -> dict[str, torch.Tensor]:
        """Inputs of a workload's sizes."""


def main_output(task: Task) -> str:
    """The output that metrics read: ``embedding`` or ``logits``."""
    return tuple(task.deployed.values())[-1]


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
