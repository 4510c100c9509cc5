"""What a classifier's logits mean: one class, several labels, or a number. Each says how labels are read and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, get_args

from numpy.typing import NDArray

from nas.evaluation.metrics import (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    Floats,
    Measure,
    Rows,
    classification_rows,
    multi_label_rows,
    regression_rows,
)
from nas.tasks.classes import class_names
from nas.tasks.data import Examples
from nas.tasks.labels import encode_label_sets, encode_labels, encode_numbers, set_names

Problem = Literal["single_label", "multi_label", "regression"]
Splits = Mapping[str, Examples]


class Head(Protocol):
    """The meaning of logits.

    Attributes:
        output: What the logits are called among a task's outputs; a distiller chooses its loss by it.
        measures: What can be computed of `rows`; the first is the one that a search maximises unless told otherwise.
    """

    output: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]

    def classes(self, splits: Splits, config: Any | None, labels: Sequence[Any] | None = None) -> tuple[str, ...]:
        """Names of the outputs, in the order of the logits.

        Args:
            splits: By name.
            config: The model's configuration, or None for a new head.
            labels: The labels in the order of the logits, where the user gives it.
        """

    def encode(self, splits: Splits, classes: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Labels of every split as arrays, one row a sample."""

    def rows(self, student: Floats, teacher: Floats, labels: NDArray[Any]) -> Rows:
        """What measures are computed of."""


class SingleLabel:
    """One class a sample; logits go through a softmax."""

    output: ClassVar[str] = "logits"
    measures: ClassVar[tuple[Measure, ...]] = CLASSIFICATION

    def classes(self, splits: Splits, config: Any | None, labels: Sequence[Any] | None = None) -> tuple[str, ...]:
        """The head's classes, or those of the train split; see `class_names`."""
        return class_names(splits, config, labels)

    def encode(self, splits: Splits, classes: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Indices of classes, int64 ``(samples,)``."""
        return dict(encode_labels(splits, classes))

    def rows(self, student: Floats, teacher: Floats, labels: NDArray[Any]) -> Rows:
        """See `classification_rows`."""
        return classification_rows(student, teacher, labels)


class MultiLabel:
    """Any number of labels a sample; each logit goes through a sigmoid of its own."""

    output: ClassVar[str] = "label_logits"
    measures: ClassVar[tuple[Measure, ...]] = MULTI_LABEL

    def classes(self, splits: Splits, config: Any | None, labels: Sequence[Any] | None = None) -> tuple[str, ...]:
        """The head's labels, or those of the train split; see `class_names`."""
        return class_names(splits, config, labels, set_names)

    def encode(self, splits: Splits, classes: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """1 where a sample has a label, float32 ``(samples, labels)``."""
        return dict(encode_label_sets(splits, classes))

    def rows(self, student: Floats, teacher: Floats, labels: NDArray[Any]) -> Rows:
        """See `multi_label_rows`."""
        return multi_label_rows(student, teacher, labels)


class Regression:
    """One number a sample; the logit is the number."""

    output: ClassVar[str] = "scores"
    measures: ClassVar[tuple[Measure, ...]] = REGRESSION

    def classes(
        self,
        splits: Splits,  # noqa: ARG002  (A number has no classes.)
        config: Any | None,
        labels: Sequence[Any] | None = None,
    ) -> tuple[str, ...]:
        """One output.

        Raises:
            ValueError: The model's head has more, or labels are given.
        """
        if labels is not None:
            raise ValueError(
                f"`task.labels` must be null for a regression, whose labels are numbers, but got {labels!r}."
            )
        if config is not None and int(config.num_labels) != 1:
            raise ValueError(f"a regression model's head must have 1 output, but this one has {config.num_labels}.")
        return ("score",)

    def encode(self, splits: Splits, classes: tuple[str, ...]) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """The numbers, float32 ``(samples, 1)``."""
        return dict(encode_numbers(splits))

    def rows(self, student: Floats, teacher: Floats, labels: NDArray[Any]) -> Rows:
        """See `regression_rows`."""
        return regression_rows(student, teacher, labels)


_HEADS: Mapping[Problem, Head] = {
    "single_label": SingleLabel(),
    "multi_label": MultiLabel(),
    "regression": Regression(),
}


def find_head(problem: Problem) -> Head:
    """The head of a kind of problem.

    Raises:
        ValueError: The name is unknown.
    """
    if problem not in _HEADS:
        raise ValueError(f"`problem` must be one of {', '.join(get_args(Problem))}, but got {problem!r}.")
    return _HEADS[problem]


def chosen_quality(quality: str, measures: tuple[Measure, ...], *, lower_is_better: bool = False) -> str:
    """The metric that a search improves: the one that was asked for, the first where none was.

    Args:
        quality: What was asked for.
        measures: The task's.
        lower_is_better: Whether it may be one of which less is better.

    Raises:
        ValueError: The metric is unknown, or lower values of it are better where they must not be.
    """
    known = [measure.name for measure in measures if measure.higher_is_better or lower_is_better]
    if quality and quality not in known:
        raise ValueError(f"`quality` must be one of {', '.join(known)}, but got {quality!r}.")
    return quality or known[0]
