"""Labels as they stand in data, and as the arrays that losses and metrics read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.tasks.data import Examples
from nas.tasks.sources import Source

# Labels by name, each with its row in the source.
Named = list[tuple[str, int]]
# What gives a label's place among the classes, or None.
Find = Callable[[str], int | None]


def single_names(examples: Examples) -> Named:
    """The label of every sample.

    Raises:
        ValueError: A label is neither a name nor a whole number.
    """
    source = examples.source
    return [(label_name(label, source, row), row) for label, row in _labelled(examples)]


def set_names(examples: Examples) -> Named:
    """All labels of every sample.

    Raises:
        ValueError: As `single_names`.
    """
    source = examples.source
    return [(label_name(label, source, row), row) for cell, row in _labelled(examples) for label in split_labels(cell)]


def word_names(examples: Examples) -> Named:
    """The tags of every word of every sample.

    Raises:
        ValueError: As `single_names`.
    """
    return [(name, row) for cell, row in _labelled(examples) for name in tag_names(cell, examples.source, row)]


def place_by_name(classes: Sequence[str]) -> Find:
    """What gives a label's place among classes: of its own name, else of one that differs in case or blanks only."""
    exact = {name: place for place, name in enumerate(classes)}
    alike: dict[str, list[int]] = {}
    for place, name in enumerate(classes):
        alike.setdefault(_folded(name), []).append(place)

    def find(name: str) -> int | None:
        if name in exact:
            return exact[name]
        places = alike.get(_folded(name), [])
        return places[0] if len(places) == 1 else None

    return find


def fit(labels: Iterable[str], classes: Sequence[str]) -> bool:
    """Whether all labels are names of classes."""
    find = place_by_name(classes)
    return all(find(name) is not None for name in labels)


def are_numbers(labels: Iterable[str], count: int) -> bool:
    """Whether all labels are numbers of so many classes, counted from 0."""
    return all(name.isdecimal() and int(name) < count for name in labels)


def _finder(named: Iterable[Named], classes: Sequence[str]) -> Find:
    """What gives a label's place: by name, or by number where all labels are numbers and not all of them names."""
    labels = {name for names in named for name, _ in names}
    if are_numbers(labels, len(classes)) and not fit(labels, classes):
        return int
    return place_by_name(classes)


def encode_labels(splits: Mapping[str, Examples], classes: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Classes of every split's samples as indices into ``classes``.

    Raises:
        ValueError: A split has a label that the classes have not; the message names its row.
    """
    named = {split: single_names(examples) for split, examples in splits.items()}
    find = _finder(named.values(), classes)
    return {
        split: np.array([_found(find, name, row, splits[split]) for name, row in names], dtype=np.int64)
        for split, names in named.items()
    }


def split_labels(cell: Any) -> tuple[Any, ...]:
    """The labels of one cell: a list, or names with ``|`` between them; none where it is empty."""
    if isinstance(cell, str):
        return tuple(name.strip() for name in cell.split("|") if name.strip())
    if isinstance(cell, list | tuple | np.ndarray):
        return tuple(cell)
    return (cell,)


def encode_label_sets(splits: Mapping[str, Examples], classes: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """1 where a sample has a label, ``(samples, classes)``, for every split.

    Raises:
        ValueError: A split has a label that the classes have not; the message names its row.
    """
    named = {split: set_names(examples) for split, examples in splits.items()}
    find = _finder(named.values(), classes)
    encoded = {}
    for split, examples in splits.items():
        position = {int(row): index for index, row in enumerate(examples.rows)}
        table = np.zeros((len(examples), len(classes)), dtype=np.float32)
        for name, row in named[split]:
            table[position[row], _found(find, name, row, examples)] = 1.0
        encoded[split] = table
    return encoded


def encode_numbers(splits: Mapping[str, Examples]) -> dict[str, NDArray[np.float32]]:
    """Labels that are numbers, ``(samples, 1)``, for every split.

    Raises:
        ValueError: A label is not a finite number; the message names its row.
    """
    return {
        split: np.array([[_number(cell, row, examples)] for cell, row in _labelled(examples)], np.float32)
        for split, examples in splits.items()
    }


def encode_tags(splits: Mapping[str, Examples], classes: Sequence[str]) -> dict[str, tuple[NDArray[np.int64], ...]]:
    """The tag of every word, one array a sample, for every split.

    Raises:
        ValueError: A sample has not one tag a word, or a tag that the classes have not; the message names its row.
    """
    find = _finder(map(word_names, splits.values()), classes)
    encoded: dict[str, tuple[NDArray[np.int64], ...]] = {}
    for split, examples in splits.items():
        arrays = []
        for text, (cell, row) in zip(examples.texts, _labelled(examples), strict=True):
            names, words = tag_names(cell, examples.source, row), text.split(" ")
            if len(names) != len(words):
                raise ValueError(
                    f"{examples.source.place(row)}: a sample must have one tag a word, but has {len(words)} words and "
                    f"{len(names)} tags."
                )
            arrays.append(np.array([_found(find, name, row, examples) for name in names], dtype=np.int64))
        encoded[split] = tuple(arrays)
    return encoded


def tag_names(cell: Any, source: Source, row: int) -> list[str]:
    """The tags of one sample's words, from a list or from text with spaces between them."""
    tags = cell.split() if isinstance(cell, str) else split_labels(cell)
    return [label_name(tag, source, row) for tag in tags]


def _found(find: Find, name: str, row: int, examples: Examples) -> int:
    place = find(name)
    if place is None:
        raise ValueError(
            f"{examples.source.place(row)}: labels must occur in the train split, whose classes a new head gets, but "
            f"{name!r} does not. Give more training samples, or all classes with `task.labels=[...]`."
        )
    return place


def _number(cell: Any, row: int, examples: Examples) -> float:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{examples.source.place(row)}: labels of a regression must be finite numbers, but this one is {cell!r}."
        )
    return number


def label_name(label: Any, source: Source, row: int) -> str:
    """A label as text: ``1``, ``1.0`` and ``"1"`` are one class.

    Raises:
        ValueError: The label is a number with a fraction, or a list or something else that is no name.
    """
    if isinstance(label, list | tuple | np.ndarray):
        raise ValueError(
            f"{source.place(row)}: a label must be one name or number, but is a list. Samples with several labels are "
            "for task=multi_label_classification, words with a tag each for task=token_classification."
        )
    if isinstance(label, Mapping | bytes) or label is None:
        kind = type(label).__name__
        raise ValueError(f"{source.place(row)}: a label must be a name or a number, but is a {kind}.")
    if isinstance(label, float | np.floating):
        if not float(label).is_integer():
            raise ValueError(f"{source.place(row)}: labels must be whole numbers or names, but this one is {label}.")
        return str(int(label))
    return str(int(label)) if isinstance(label, bool | np.bool_) else str(label)


def _folded(name: str) -> str:
    return name.strip().casefold()


def natural(label: str) -> tuple[int, int, str]:
    """The key of an order in which 2 comes before 10, and numbers before names."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def _labelled(examples: Examples) -> list[tuple[Any, int]]:
    assert examples.labels is not None
    return list(zip(examples.labels, examples.rows.tolist(), strict=True))
