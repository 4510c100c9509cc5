"""Which of a head's outputs a label is: by name, by number, or by its place in an order that somebody gave."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nas.tasks.data import Examples
from nas.tasks.labels import Named, are_numbers, fit, natural, place_by_name, single_names

_log = logging.getLogger(__name__)
# What `transformers` calls the classes of a head to which nobody gave names.
_NAMELESS = re.compile(r"(?:LABEL_)?(\d+)", re.IGNORECASE)
_MEND = (
    "Rename them in the data, or say which label each output is, in the order of the logits, with "
    "`task.labels=[...]`, or in `id2label` of the model's config.json."
)


def class_names(
    splits: Mapping[str, Examples],
    config: Any | None,
    labels: Sequence[Any] | None = None,
    read: Callable[[Examples], Named] = single_names,
) -> tuple[str, ...]:
    """Names of the classes, in the order of the model's logits.

    Of a trained head, in this order: the labels that are given; the head's own names, where all labels of the data are
    among them, whatever their case; numbers below the head's size, which are the outputs themselves; and of a head
    without names (``LABEL_0``) the data's own order of classes, or all of its labels, sorted. Anything else would be a
    guess. Of a new head: the labels that are given, or those of the train split, sorted.

    Args:
        splits: By name.
        config: The model's configuration, or None for a new head.
        labels: The user's order.
        read: Gives a split's labels with their rows.

    Raises:
        ValueError: There is only one class, or labels do not fit the head; the message names both sides.
    """
    found = {split: read(examples) for split, examples in splits.items()}
    counted = found if config is not None else {"train": found["train"]}
    own = sorted({name for names in counted.values() for name, _ in names}, key=natural)
    if len(own) < 2:
        where = "data have" if config is not None else "train split has"
        raise ValueError(f"labels must be of at least 2 classes, but the {where} only {listed(own) or 'empty ones'}.")
    if config is None:
        return tuple(own) if labels is None else _given(labels, len(labels), own)
    size = int(config.num_labels)
    names = _of_head(config, size, own, labels, next(iter(splits.values())).order)
    if names is None:
        head = _head_names(config, size)
        raise ValueError(
            f"labels must be the {size} classes of the model's head ({listed(head)}), but the data have {len(own)} "
            f"({listed(own)}){_first_foreign(splits, found, head)}. {_MEND}"
        )
    if len(own) < size:
        _log.warning(
            "The model's head has %d classes (%s), but the data only %d of them (%s).",
            size, listed(_head_names(config, size)), len(own), listed(own),
        )  # fmt: skip
    return names


def listed(names: Sequence[str]) -> str:
    """The first few names in quotes."""
    shown = ", ".join(map(repr, names[:8]))
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _of_head(
    config: Any, size: int, own: Sequence[str], labels: Sequence[Any] | None, order: Sequence[str]
) -> tuple[str, ...] | None:
    """Names of a trained head's outputs, or None where the labels do not fit it."""
    if labels is not None:
        return _given(labels, size, own)
    head = _head_names(config, size)
    if fit(own, head) or are_numbers(own, size):
        return head
    nameless = all((found := _NAMELESS.fullmatch(name)) and int(found[1]) == at for at, name in enumerate(head))
    if nameless and len(order) == size and fit(own, order):
        return tuple(order)
    return tuple(own) if nameless and len(own) == size else None


def _given(labels: Sequence[Any], size: int, own: Sequence[str]) -> tuple[str, ...]:
    names = tuple(map(str, labels)) if isinstance(labels, list | tuple) else ()
    if len(set(names)) != size or len(names) != size or not fit(own, names):
        raise ValueError(
            f"`task.labels` must list every label of the data ({listed(own)}) once, in the order of the model's {size} "
            f"logits, but got {labels!r}."
        )
    return names


def _head_names(config: Any, size: int) -> tuple[str, ...]:
    return tuple(str(config.id2label.get(index, index)) for index in range(size))


def _first_foreign(splits: Mapping[str, Examples], found: Mapping[str, Named], head: Sequence[str]) -> str:
    """The first label that the head does not know; nothing where the two have nothing in common."""
    find = place_by_name(head)

    def foreign(name: str) -> bool:
        return find(name) is None and not (name.isdecimal() and int(name) < len(head))

    wrong = [(row, split, name) for split, names in found.items() for name, row in names if foreign(name)]
    if not wrong or len(wrong) == sum(map(len, found.values())):
        return ""
    row, split, name = min(wrong)
    return f"; the first that does not fit is {name!r} in {splits[split].source.place(row)}"
