"""A split's texts with identity terms exchanged, and what models make of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import SAMPLES, Rows, take
from nas.evaluation.substitution import Substitution, substitution_rows
from nas.tasks.samples import TextSamples
from nas.tasks.task import Task, main_output

if TYPE_CHECKING:
    from nas.evaluation.evaluate import Run


class SubstitutedSplit:
    """The texts of a split that have identity terms, once with every group's, tokenised once for all models.

    Args:
        task: A classification of texts.
        split: Whose texts.
        substitution: Which terms.

    Raises:
        ValueError: The task is another, or no text has any of the terms.
    """

    def __init__(self, task: Task, split: str, substitution: Substitution) -> None:
        samples = task.samples
        if task.kind != "text_classification" or not isinstance(samples, TextSamples):
            raise ValueError(
                f"`evaluation.fairness.terms` are exchanged in classified texts, but the task is {task.kind}."
            )
        if (problem := getattr(task, "problem", "single_label")) == "regression":
            raise ValueError(
                f"`evaluation.fairness.terms` are exchanged in classified texts, but the `task.problem` is {problem}."
            )
        self.task = task
        self.split = split
        self.substitution = substitution
        examples = samples.examples[split]
        pairs = examples.pairs or ("",) * len(examples)
        mentions = [
            substitution.mentions(f"{text}\n{other}") for text, other in zip(examples.texts, pairs, strict=True)
        ]
        self.rows: NDArray[np.int64] = np.flatnonzero(mentions)
        if len(self.rows) < 2:
            raise ValueError(
                f"`evaluation.fairness.terms` must occur in at least 2 texts of split {split!r}, but do "
                f"in {len(self.rows)}."
            )
        self._copies = {
            group: samples.changed(split, self.rows, partial(substitution, group=group))
            for group in substitution.groups
        }

    def by_group(self, run: Run, batch_size: int = 64) -> dict[str, Rows]:
        """Rows of a model under every group's terms, of the texts that have any."""
        from nas.evaluation.evaluate import predict

        name, size = main_output(self.task), self.task.samples.size(self.split)
        found = {}
        for group, copy in self._copies.items():
            some = predict(run, self.task, self.split, batch_size, copy)[name]
            values = np.zeros((size, *some.shape[1:]), dtype=some.dtype)
            values[self.rows] = some
            outputs = {name: values}
            found[group] = take(self.task.tables(self.split, outputs, outputs)[SAMPLES], self.rows)
        return found

    def compared(self, run: Run, batch_size: int = 64) -> Rows:
        """Whether and how far a model's decisions depend on the group; see `substitution_rows`."""
        return substitution_rows(list(self.by_group(run, batch_size).values()))
