"""Texts with their labels, in four disjoint splits that are the same in every run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.tasks.cells import groups_of, names_of, texts_of
from nas.tasks.checks import check_columns, check_path
from nas.tasks.files import ORDERS, SOURCE, check_encoding, read_tables
from nas.tasks.sources import Source
from nas.tasks.splits import Cut, check_split_names, listed, named_splits

if TYPE_CHECKING:
    import pandas as pd

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
        source: The table.
        order: The classes in the source's own order, where it has one.
    """

    texts: tuple[str, ...]
    rows: NDArray[np.int64]
    pairs: tuple[str, ...] | None = None
    labels: tuple[Any, ...] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: Source = field(default_factory=Source)
    order: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, positions: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The samples at these positions, in this order."""
        keep = [int(position) for position in positions]
        return replace(
            self,
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
        text_column: Column with the text, or with a list of its words; these are kept with one space between them.
        pair_column: Column with the second text of sentence pairs.
        label_column: Column with the label, or with a list of labels; or several columns, each of which says (1 or 0)
            whether the label of its name holds.
        empty_labels: Whether an empty cell says that no label holds; otherwise it is a mistake.
        group_columns: Column or columns that name groups, kept for fairness figures.
        subset: The data set's configuration on the hub (``sst2`` of ``glue``).
        encoding: Of text files.
        splits: Our split -> the source's name for it, where the names say too little (``{validation: dev_matched}``).
        train: Most samples in train; None means all that are left.
        calibration, validation, test: Samples to cut when the source has no such split; a fraction below 1 is a share
            of the different texts. Splits that the source brings are cut down to a number given here.
        seed: Of the cut.

    Raises:
        ValueError: A size is neither a share nor a number of samples, the seed is no whole number, or Python does not
            know the encoding.
    """

    path: str | Mapping[str, str]
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str | Sequence[str] | None = None
    group_columns: str | Sequence[str] = ()
    subset: str | None = None
    encoding: str = "utf-8"
    splits: Mapping[str, str] | None = None
    train: int | float | None = None
    calibration: int | float = 512
    validation: int | float = 1000
    test: int | float = 2000
    seed: int = 0
    empty_labels: bool = False

    def __post_init__(self) -> None:
        _ = self.cut
        check_path(self.path)
        check_columns(
            text_column=self.text_column or "",
            pair_column=self.pair_column,
            label_column=self.label_column,
            group_columns=self.group_columns,
        )
        check_encoding(self.encoding)
        check_split_names(self.splits)

    def read(self) -> dict[str, Examples]:
        """Read the source and split it.

        Returns:
            The four splits, disjoint by text.

        Raises:
            FileNotFoundError, ValueError: As `read_tables`; a column is missing (the message lists those there are),
                a label is missing, or there are too few samples.
        """
        return self.cut(self.given(), self.name)

    def given(self) -> dict[str, Examples]:
        """The source's splits under our names, whole, in the source's order; those of a source without are all train.

        Raises:
            FileNotFoundError, ValueError: As `read`.
        """
        tables = named_splits(self._tables(), self.splits, self.name)
        return {split: self._examples(table, split) for split, table in tables.items()}

    @property
    def cut(self) -> Cut:
        """What makes the four splits of the source's own."""
        return Cut(self.train, self.calibration, self.validation, self.test, self.seed)

    @property
    def name(self) -> str:
        """What the source is called in messages."""
        return self.path if isinstance(self.path, str) else ", ".join(self.path.values())

    def _tables(self) -> dict[str, pd.DataFrame]:
        if isinstance(self.path, str):
            return read_tables(self.path, self.subset, self.encoding)
        tables = {}
        for split, file in self.path.items():
            read = read_tables(file, self.subset, self.encoding)
            if len(read) != 1:
                raise ValueError(f"`path` for split {split!r} must be one table, but {file!r} has splits.")
            tables[split] = next(iter(read.values()))
        return tables

    def _examples(self, table: pd.DataFrame, split: str) -> Examples:
        for column in (self.text_column, self.pair_column, *self._label_columns, *names_of(self.group_columns)):
            if column is not None and column not in table.columns:
                raise ValueError(f"{self.name}: column {column!r} is not there; there are {listed(table.columns)}.")
        source: Source = table.attrs.get(SOURCE, Source(self.name, split))
        texts = texts_of(table, self.text_column, source)
        filled = np.array([bool(text) for text in texts], dtype=bool)
        others = None
        if self.pair_column is not None:
            others = texts_of(table, self.pair_column, source)
            filled &= np.array([bool(text) for text in others], dtype=bool)
        if not filled.all():
            _log.warning("%s: %d rows without text were left out.", self.name, int((~filled).sum()))
        rows = np.flatnonzero(filled)
        if not len(rows):
            raise ValueError(f"{self.name}: split {split!r} must not be empty, but no row has a text.")
        orders, table = table.attrs.get(ORDERS, {}), table.iloc[rows]
        return Examples(
            texts=tuple(texts[row] for row in rows),
            rows=rows.astype(np.int64),
            pairs=None if others is None else tuple(others[row] for row in rows),
            labels=None if self.label_column is None else self._labels(table, source, rows),
            groups=groups_of(table, self.group_columns, source, rows),
            source=source,
            order=self._order(orders),
        )

    @property
    def _label_columns(self) -> list[str]:
        if self.label_column is None:
            return []
        return names_of(self.label_column)

    def _order(self, orders: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """The classes in the source's order; several columns are in the order in which the user names them."""
        if isinstance(self.label_column, str):
            return orders.get(self.label_column, ())
        return tuple(self._label_columns)

    def _labels(self, table: pd.DataFrame, source: Source, rows: NDArray[np.int64]) -> tuple[Any, ...]:
        import pandas as pd

        names = self._label_columns
        columns = table[names]
        lacking = columns.isna().to_numpy()
        if lacking.any() and not self.empty_labels:
            at, column = (int(position[0]) for position in lacking.nonzero())
            raise ValueError(
                f"{source.place(int(rows[at]))} has no label in column {names[column]!r}. Fill it in, or leave the "
                "sample out."
            )
        if isinstance(self.label_column, str):
            cells = columns.iloc[:, 0].tolist()
            return tuple(() if empty else cell for cell, empty in zip(cells, lacking[:, 0], strict=True))
        holds = columns.fillna(0).apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        if (wrong := ~np.isin(holds, (0.0, 1.0))).any():
            at, column = (int(position[0]) for position in wrong.nonzero())
            raise ValueError(
                f"{source.place(int(rows[at]))}: label columns must be 1 or 0, but {names[column]!r} is "
                f"{columns[names[column]].tolist()[at]!r}."
            )
        return tuple(tuple(name for name, on in zip(names, row, strict=True) if on) for row in holds)
