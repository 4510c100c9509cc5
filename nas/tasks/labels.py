"""Labels as they stand in data, and the classes that a model's head knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.tasks.data import Examples


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
    if set(labels) <= set(names):
        return names
    if all(label.isdecimal() and int(label) < heads for label in labels):
        return tuple(str(index) for index in range(heads))
    if len(labels) != heads:
        raise ValueError(
            f"labels must be the {heads} classes of the model's head ({_listed(names)}), but the train split has "
            f"{len(labels)} ({_listed(labels)})."
        )
    return tuple(labels)


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
                raise ValueError(
                    f"labels of split {split!r} must occur in the train split, but row {row} has {name!r}; "
                    f"known are {_listed(sorted(known, key=_natural))}."
                )
            ids.append(index[name])
        encoded[split] = np.array(ids, dtype=np.int64)
    return encoded


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
