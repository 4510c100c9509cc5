"""Texts with their labels, in four disjoint splits that are the same in every run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nas.tasks.files import read_tables

if TYPE_CHECKING:
    import pandas as pd

Split = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
_ALIASES = {"dev": "validation", "valid": "validation", "eval": "validation", "training": "train", "testing": "test"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """One split.

    Args:
        texts: The samples' texts.
        pairs: The second texts of sentence pairs, or None.
        labels: Labels as they stand in the data, or None where no label column was asked for.
        rows: Rows of the source table, counted from 0, for error messages.
        groups: Group column -> the samples' values in it.
    """

    texts: tuple[str, ...]
    rows: NDArray[np.int64]
    pairs: tuple[str, ...] | None = None
    labels: tuple[Any, ...] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, positions: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The samples at these positions, in this order."""
        keep = [int(position) for position in positions]
        return Examples(
            texts=tuple(self.texts[i] for i in keep),
            rows=self.rows[np.asarray(keep, dtype=np.int64)],
            pairs=None if self.pairs is None else tuple(self.pairs[i] for i in keep),
            labels=None if self.labels is None else tuple(self.labels[i] for i in keep),
            groups={name: tuple(values[i] for i in keep) for name, values in self.groups.items()},
        )

    def keys(self) -> list[tuple[str, str]]:
        """What two samples must share to count as the same text."""
        pairs = self.pairs if self.pairs is not None else ("",) * len(self.texts)
        return list(zip(self.texts, pairs, strict=True))


@dataclass(frozen=True)
class TextData:
    """Where the texts lie and how they are split.

    A source that brings its own splits keeps them; what is missing is cut from its train split. Texts that occur more
    than once are kept once, so that no split leaks into another: test first, then validation, calibration, train.
    The cut depends on the texts and the seed alone, not on the order of the rows.

    Args:
        path: A local file or folder, or a data set on the Hugging Face hub (see `nas.tasks.files.read_tables`), or
            a mapping from split to file.
        text_column: Column with the text.
        pair_column: Column with the second text of sentence pairs.
        label_column: Column with the label.
        group_columns: Columns that name groups, kept for fairness figures.
        subset: The data set's configuration on the hub (``sst2`` of ``glue``).
        encoding: Of text files.
        splits: Our split -> the source's name for it, where the names say too little (``{validation: dev_matched}``).
        train: Most samples in train; None means all that are left.
        calibration, validation, test: Samples to cut when the source has no such split; a fraction below 1 is a share
            of the different texts. Splits that the source brings are cut down to a number given here.
        seed: Of the cut.

    Raises:
        ValueError: A size is not positive.
    """

    path: str | Mapping[str, str]
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str | None = None
    group_columns: Sequence[str] = ()
    subset: str | None = None
    encoding: str = "utf-8"
    splits: Mapping[str, str] | None = None
    train: int | float | None = None
    calibration: int | float = 512
    validation: int | float = 1000
    test: int | float = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in SPLITS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
                raise ValueError(f"`{name}` must be a number of samples or a fraction > 0, but got {value!r}.")
        for name in self.splits or {}:
            if name not in SPLITS:
                raise ValueError(f"`splits` must name {', '.join(SPLITS)}, but got {name!r}.")

    def read(self) -> dict[str, Examples]:
        """Read the source and split it.

        Returns:
            The four splits, disjoint by text.

        Raises:
            FileNotFoundError, ValueError: As `read_tables`; a column is missing (the message lists those there are),
                a label is missing, or there are too few samples.
        """
        given = {split: self._examples(table, split) for split, table in self._tables().items()}
        seen: set[tuple[str, str]] = set()
        unique = {split: _without_repeats(given[split], seen) for split in reversed(SPLITS) if split in given}
        repeats = sum(map(len, given.values())) - sum(map(len, unique.values()))
        if repeats:
            _log.info("%s: %d texts that occur more than once were dropped.", self._name, repeats)
        splits = self._cut(unique)
        for split, examples in splits.items():
            if not len(examples):
                raise ValueError(f"{self._name}: split {split!r} must not be empty, but has no sample left.")
        return splits

    @property
    def _name(self) -> str:
        return self.path if isinstance(self.path, str) else ", ".join(self.path.values())

    def _tables(self) -> dict[str, pd.DataFrame]:
        if not isinstance(self.path, str):
            tables = {}
            for split, file in self.path.items():
                read = read_tables(file, self.subset, self.encoding)
                if len(read) != 1:
                    raise ValueError(f"`path` for split {split!r} must be one table, but {file!r} has splits.")
                tables[split] = next(iter(read.values()))
        else:
            tables = read_tables(self.path, self.subset, self.encoding)
        if set(tables) == {""}:
            return {"train": tables[""]}
        if self.splits is not None:
            if missing := sorted(set(self.splits.values()) - set(tables)):
                raise ValueError(f"{self._name}: split {missing[0]!r} is not there; there are {_listed(tables)}.")
            tables = {ours: tables[theirs] for ours, theirs in self.splits.items()}
        named = {_ALIASES.get(split, split): table for split, table in tables.items()}
        known = {split: table for split, table in named.items() if split in SPLITS}
        if "train" not in known:
            raise ValueError(
                f"{self._name}: there must be a train split, but there are {_listed(tables)}. "
                "Say which one it is with `splits: {train: NAME}`."
            )
        return known

    def _examples(self, table: pd.DataFrame, split: str) -> Examples:
        wanted = [self.text_column, self.pair_column, self.label_column, *self.group_columns]
        for column in wanted:
            if column is not None and column not in table.columns:
                raise ValueError(f"{self._name}: column {column!r} is not there; there are {_listed(table.columns)}.")
        filled = table[self.text_column].notna() & (table[self.text_column].astype(str).str.strip() != "")
        if self.pair_column is not None:
            filled &= table[self.pair_column].notna()
        if not filled.all():
            _log.warning("%s: %d rows without text were left out.", self._name, int((~filled).sum()))
        rows = np.flatnonzero(filled.to_numpy())
        if not len(rows):
            raise ValueError(f"{self._name}: split {split!r} must not be empty, but no row has a text.")
        table = table.iloc[rows]
        if self.label_column is not None and (lacking := table[self.label_column].isna().to_numpy()).any():
            row = int(rows[int(lacking.argmax())])
            raise ValueError(f"{self._name}: row {row} of split {split!r} has no label in {self.label_column!r}.")
        return Examples(
            texts=tuple(table[self.text_column].astype(str).str.strip()),
            rows=rows.astype(np.int64),
            pairs=None if self.pair_column is None else tuple(table[self.pair_column].astype(str).str.strip()),
            labels=None if self.label_column is None else tuple(table[self.label_column].tolist()),
            groups={name: tuple(table[name].astype(str)) for name in self.group_columns},
        )

    def _cut(self, unique: Mapping[str, Examples]) -> dict[str, Examples]:
        total = sum(map(len, unique.values()))
        splits = {
            split: examples.take(_shuffled(examples, self.seed)[: self._size(split, total)])
            for split, examples in unique.items()
            if split != "train"
        }
        pool = unique["train"].take(_shuffled(unique["train"], self.seed))
        missing = [split for split in reversed(SPLITS) if split not in splits and split != "train"]
        needed = sum(self._size(split, total) for split in missing) + 1
        if len(pool) < needed:
            sizes = ", ".join(f"{split} {self._size(split, total)}" for split in missing)
            raise ValueError(
                f"{self._name}: the splits ({sizes}, and train) need at least {needed} different texts, but there are "
                f"{len(pool)}. Give more data or smaller numbers, such as `validation: 0.2`."
            )
        start = 0
        for split in missing:
            size = self._size(split, total)
            splits[split] = pool.take(range(start, start + size))
            start += size
        splits["train"] = pool.take(range(start, min(len(pool), start + self._size("train", total))))
        return {split: splits[split] for split in SPLITS}

    def _size(self, split: str, total: int) -> int:
        value = getattr(self, split)
        if value is None:
            return total
        return max(1, round(value * total)) if value < 1 else int(value)


def _without_repeats(examples: Examples, seen: set[tuple[str, str]]) -> Examples:
    keep = []
    for position, key in enumerate(examples.keys()):
        if key not in seen:
            seen.add(key)
            keep.append(position)
    return examples.take(keep)


def _shuffled(examples: Examples, seed: int) -> list[int]:
    """Positions in the order of a hash of seed and text: an order that neither rows nor other samples change."""

    def digest(key: tuple[str, str]) -> bytes:
        return hashlib.blake2b("\0".join((str(seed), *key)).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    digests = [digest(key) for key in examples.keys()]  # noqa: SIM118  (Not a mapping.)
    return sorted(range(len(digests)), key=digests.__getitem__)


def _listed(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names)
