"""Labels as they stand in data, and the classes that a model's head knows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.tasks.data import Examples

_log = logging.getLogger(__name__)


def class_names(train: Examples, config: Any | None) -> tuple[str, ...]:
    """Names of the classes, in the order of the model's logits.

    The head's own names count where the labels are among them; else labels that are numbers below the head's size are
    the classes themselves; else the training labels, sorted, are as many as the head has outputs.

    Args:
        train: The train split.
        config: The model's configuration, or None for a new head.

    Raises:
        ValueError: The labels are not whole numbers or names, are only one class, or do not fit the head.
    """
    labels = sorted({label_name(label, row) for label, row in _labelled(train)}, key=_natural)
    if len(labels) < 2:
        raise ValueError(f"labels must have at least 2 classes in the train split, but have only {labels[0]!r}.")
    if config is None:
        return tuple(labels)
    heads = int(config.num_labels)
    names = tuple(str(config.id2label.get(index, index)) for index in range(heads))
    if not set(labels) <= set(names):
        numbers = all(label.isdecimal() and int(label) < heads for label in labels)
        if not numbers and len(labels) != heads:
            raise ValueError(
                f"labels must be the {heads} classes of the model's head ({_listed(names)}), but the train split has "
                f"{len(labels)} ({_listed(labels)}){_first_foreign(train, names, heads)}."
            )
        names = tuple(str(index) for index in range(heads)) if numbers else tuple(labels)
    if len(labels) < heads:
        _log.warning(
            "The model's head has %d classes (%s), but the train split only %d of them (%s).",
            heads, _listed(names), len(labels), _listed(labels),
        )  # fmt: skip
    return names


def _first_foreign(train: Examples, names: Sequence[str], heads: int) -> str:
    """The first row whose label the head does not know; nothing where names of the two have nothing in common."""
    labelled = [(row, label_name(label, row)) for label, row in _labelled(train)]
    foreign = [
        (row, name) for row, name in labelled if name not in names and not (name.isdecimal() and int(name) < heads)
    ]
    if not foreign or len(foreign) == len(labelled):
        return ""
    row, name = min(foreign)
    return f"; the first that does not fit is {name!r} in row {row}"


def encode_labels(splits: Mapping[str, Examples], classes: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Classes of every split's samples as indices into ``classes``.

    Raises:
        ValueError: A split has a label that the train split has not; the message names its row.
    """
    index = {name: position for position, name in enumerate(classes)}
    known = {label_name(label, row) for label, row in _labelled(splits["train"])}
    encoded = {}
    for split, examples in splits.items():
        ids = []
        for label, row in _labelled(examples):
            if (name := label_name(label, row)) not in known:
                raise _unseen(split, row, name, known)
            ids.append(index[name])
        encoded[split] = np.array(ids, dtype=np.int64)
    return encoded


def label_sets(examples: Examples) -> Examples:
    """Samples with several labels each as samples with one label each: a sample is repeated for each of its labels."""
    pairs = [(row, name) for row, (names, _) in enumerate(_labelled(examples)) for name in split_labels(names)]
    return replace(examples.take([row for row, _ in pairs]), labels=tuple(name for _, name in pairs))


def split_labels(cell: Any) -> tuple[Any, ...]:
    """The labels of one cell: a list, or names with ``|`` between them; none where it is empty."""
    if isinstance(cell, str):
        return tuple(name.strip() for name in cell.split("|") if name.strip())
    if isinstance(cell, list | tuple | np.ndarray):
        return tuple(cell)
    return (cell,)


def encode_label_sets(splits: Mapping[str, Examples], classes: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """1 where a sample has a label, ``(samples, labels)``, for every split.

    Raises:
        ValueError: A split has a label that the train split has not; the message names its row.
    """
    flat = {split: label_sets(examples) for split, examples in splits.items()}
    ids = encode_labels(flat, classes)
    encoded = {}
    for split, examples in splits.items():
        position = {int(row): index for index, row in enumerate(examples.rows)}
        table = np.zeros((len(examples), len(classes)), dtype=np.float32)
        table[[position[int(row)] for row in flat[split].rows], ids[split]] = 1.0
        encoded[split] = table
    return encoded


def encode_numbers(splits: Mapping[str, Examples]) -> dict[str, NDArray[np.float32]]:
    """Labels that are numbers, ``(samples, 1)``, for every split.

    Raises:
        ValueError: A label is not a finite number; the message names its row.
    """
    return {
        split: np.array([[_number(cell, row)] for cell, row in _labelled(e)], np.float32) for split, e in splits.items()
    }


def encode_tags(splits: Mapping[str, Examples], tags: Sequence[str]) -> dict[str, tuple[NDArray[np.int64], ...]]:
    """The tag of every word, one array a sample, for every split.

    Raises:
        ValueError: A sample has not one tag a word, or a tag that the train split has not; the message names its row.
    """
    index = {name: position for position, name in enumerate(tags)}
    known = {name for cell, row in _labelled(splits["train"]) for name in tag_names(cell, row)}
    encoded: dict[str, tuple[NDArray[np.int64], ...]] = {}
    for split, examples in splits.items():
        arrays = []
        for text, (cell, row) in zip(examples.texts, _labelled(examples), strict=True):
            names, words = tag_names(cell, row), text.split(" ")
            if len(names) != len(words):
                raise ValueError(
                    f"a sample must have one tag a word, but row {row} of split {split!r} has {len(words)} words and "
                    f"{len(names)} tags."
                )
            if unknown := [name for name in names if name not in known]:
                raise _unseen(split, row, unknown[0], known)
            arrays.append(np.array([index[name] for name in names], dtype=np.int64))
        encoded[split] = tuple(arrays)
    return encoded


def tag_names(cell: Any, row: int) -> list[str]:
    """The tags of one sample's words, from a list or from text with spaces between them."""
    return [label_name(tag, row) for tag in (cell.split() if isinstance(cell, str) else split_labels(cell))]


def word_tags(examples: Examples) -> Examples:
    """Sentences with a tag a word as samples with one label each."""
    pairs = [(at, name) for at, (cell, row) in enumerate(_labelled(examples)) for name in tag_names(cell, row)]
    return replace(examples.take([at for at, _ in pairs]), labels=tuple(name for _, name in pairs))


def _number(cell: Any, row: int) -> float:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"labels of a regression must be finite numbers, but row {row} has {cell!r}.")
    return number


def _unseen(split: str, row: int, name: str, known: set[str]) -> ValueError:
    return ValueError(
        f"labels of split {split!r} must occur in the train split, but row {row} has {name!r}; "
        f"known are {_listed(sorted(known, key=_natural))}."
    )


def label_name(label: Any, row: int) -> str:
    """A label as text: ``1``, ``1.0`` and ``"1"`` are one class.

    Raises:
        ValueError: The label is a number with a fraction.
    """
    if isinstance(label, float | np.floating):
        if not float(label).is_integer():
            raise ValueError(f"labels must be whole numbers or names, but row {row} has {label}.")
        return str(int(label))
    return str(int(label)) if isinstance(label, bool | np.bool_) else str(label)


def _labelled(examples: Examples) -> list[tuple[Any, int]]:
    assert examples.labels is not None
    return list(zip(examples.labels, examples.rows.tolist(), strict=True))


def _natural(label: str) -> tuple[int, int, str]:
    # 2 comes before 10, and numbers before names.
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
