"""Tables of samples from local files, folders saved by `datasets`, or the Hugging Face hub."""

from __future__ import annotations

import codecs
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.tasks.sources import SEPARATORS, Source, csv_header, plain_lines, read_bytes, suffix_of

if TYPE_CHECKING:
    import pandas as pd

# What tables keep beside their cells: where they come from, and the classes of columns that say them, in their order.
SOURCE, ORDERS = "source", "orders"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")


def read_tables(path: str, subset: str | None = None, encoding: str = "utf-8") -> dict[str, pd.DataFrame]:
    """Read a data set as tables, by the name of its split.

    Args:
        path: A file (``.csv``, ``.tsv``, ``.jsonl``, ``.json``, ``.txt``, each also with ``.gz``, or ``.parquet``), a
            folder of such files named after their splits, a folder of class folders with one text a ``.txt`` file (as
            scikit-learn's ``load_files`` reads; alone or below folders of splits: ``train/spam/1.txt``), a folder
            written by ``datasets.save_to_disk``, or the name of a data set on the Hugging Face hub. A text file is a
            table with the column ``text``, one row a line; class folders give the columns ``text`` and ``label``.
        subset: Name of the data set's configuration on the hub (``sst2`` of ``glue``).
        encoding: Of text files.

    Returns:
        Tables by split. A source without splits has the one split ``""``. Their `attrs` hold the `Source`, and, of
        data sets with class labels, the classes of every such column in their order.

    Raises:
        FileNotFoundError: The path looks like a file or folder, but there is none.
        ValueError: The file's kind is unknown, its bytes do not fit the encoding, two columns have one name, a line
            has more cells than there are columns, or the data set cannot be loaded.
    """
    check_encoding(encoding)
    place = Path(path).expanduser()
    if place.is_file():
        return {"": read_file(place, encoding)}
    if place.is_dir():
        if any((place / name).is_file() for name in ("dataset_dict.json", "state.json", "dataset_info.json")):
            return _saved_folder(place)
        if classes := class_folders(place, (".txt",)):
            return {split: _texts(files, encoding) for split, files in classes.items()}
        return _folder_of_files(place, encoding)
    if place.is_absolute() or path.startswith((".", "~")) or suffix_of(place) in SUFFIXES:
        raise FileNotFoundError(f"`path` must be an existing file or folder, but there is no {path!r}.")
    return _hub(path, subset)


def read_file(file: Path, encoding: str = "utf-8") -> pd.DataFrame:
    """Read one local file as a table; the rules and errors of `read_tables`."""
    import pandas as pd

    check_encoding(encoding)
    suffix = suffix_of(file)
    if suffix not in SUFFIXES:
        raise ValueError(
            f"`path` must end in one of {', '.join(SUFFIXES)} (or in .gz after it), but got {file.name!r}."
        )
    readers: dict[str, Callable[[str], pd.DataFrame]] = {
        ".csv": lambda text: _read_cells(text, SEPARATORS[".csv"]),
        ".tsv": lambda text: _read_cells(text, SEPARATORS[".tsv"]),
        ".jsonl": _read_json_lines,
        ".json": _read_json,
        ".txt": lambda text: pd.DataFrame({"text": plain_lines(text)}),
    }
    try:
        table = pd.read_parquet(file) if suffix == ".parquet" else readers[suffix](_decode(file, encoding))
    except _EncodingError:
        raise
    except _TableError as error:
        raise ValueError(f"{file}: {error}") from error
    except Exception as error:  # Of damaged files pyarrow, gzip and pandas raise errors without a common base.
        raise ValueError(f"{file}: cannot be read as {suffix[1:]}: {_first_line(error)}") from error
    if not len(table.columns):
        raise ValueError(f"{file}: must hold at least one sample, but is empty.")
    table.attrs[SOURCE] = Source(str(file), encoding=encoding)
    return table


def check_encoding(encoding: str) -> None:
    """Check that Python knows an encoding of texts.

    Raises:
        ValueError: It does not.
    """
    try:
        known = codecs.lookup(encoding)._is_text_encoding
    except (LookupError, TypeError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"`task.data.encoding` must be one that Python knows, such as utf-8 or latin-1, but got {encoding!r}."
        )


class _TableError(ValueError):
    """A mistake of a table that a reader would pass over."""


def _read_cells(text: str, separator: str) -> pd.DataFrame:
    """A table of cells between separators."""
    import pandas as pd

    if twice := [name for name, count in Counter(csv_header(text, separator)).items() if count > 1]:
        raise _TableError(f"columns must have different names, but {twice[0]!r} is there twice. Rename one of them.")
    # Only an empty cell is missing: a review may well say "null", and a label may be called "NA".
    table = pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""], sep=separator, low_memory=False)
    if not isinstance(table.index, pd.RangeIndex):  # The reader takes surplus cells at the beginning for row names.
        raise _TableError(
            f"lines must have as many cells as the header has names, which are {len(table.columns)}, but have more. "
            "Put texts that hold the separator in quotes."
        )
    return table


def _read_json_lines(text: str) -> pd.DataFrame:
    """A table of one object a line."""
    import pandas as pd

    rows = []
    for line, content in enumerate(plain_lines(text), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content, object_pairs_hook=_object)
        except ValueError as error:
            kind = "" if isinstance(error, _TableError) else "cannot be read as jsonl: "
            raise _TableError(f"line {line}: {kind}{error}") from error
        if not isinstance(row, dict):
            raise _TableError(f'line {line} must be an object such as {{"text": ...}}, but is a {_kind(row)}.')
        rows.append(row)
    return pd.DataFrame(rows)


def _read_json(text: str) -> pd.DataFrame:
    """A table of a list of objects, or of an object of columns."""
    import pandas as pd

    data = json.loads(text, object_pairs_hook=_object)
    if isinstance(data, list):
        wrong = next((at for at, row in enumerate(data, start=1) if not isinstance(row, dict)), None)
        if wrong is not None:
            kind = _kind(data[wrong - 1])
            raise _TableError(f'row {wrong} must be an object such as {{"text": ...}}, but is a {kind}.')
    elif not isinstance(data, dict):
        raise _TableError(f"must hold a list of objects, but holds a {_kind(data)}.")
    return pd.DataFrame(data).reset_index(drop=True)


def _kind(value: Any) -> str:
    return {"str": "text", "int": "number", "float": "number", "NoneType": "null"}.get(
        type(value).__name__, type(value).__name__
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _TableError(f"an object must have different keys, but {twice!r} is there twice. Rename one of them.")
    return found


def class_folders(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[tuple[Path, str]]]:
    """Files that lie in folders named after their class, alone or below folders of splits.

    Returns:
        Split (``""`` where there are none) -> files with their classes; empty where the folder is something else.
    """

    def inside(place: Path) -> list[tuple[Path, str]]:
        folders = sorted(path for path in place.iterdir() if path.is_dir())
        return [(file, path.name) for path in folders for file in sorted(path.iterdir()) if suffix_of(file) in suffixes]

    if files := inside(folder):
        return {"": files}
    splits = {path.name: inside(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    return {name: files for name, files in splits.items() if files}


def _texts(files: list[tuple[Path, str]], encoding: str) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame([(_decode(file, encoding), label) for file, label in files], columns=["text", "label"])
    table.attrs[SOURCE] = Source(str(files[0][0].parent.parent))
    return table


class _EncodingError(ValueError):
    """Bytes that do not fit the encoding; told apart from what a parser raises."""


def _decode(file: Path, encoding: str) -> str:
    data = read_bytes(file)
    try:
        # Spreadsheets put a mark before the first name; it is no part of it.
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = data.count(b"\n", 0, start) + 1
        found = data[start : start + 1].hex()
        guess = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin-1"
        raise _EncodingError(
            f"{file}: line {line} must be {encoding}, but byte 0x{found} is not. Give the file's own encoding, such as "
            f"`task.data.encoding={guess}`."
        ) from error


def _folder_of_files(folder: Path, encoding: str) -> dict[str, pd.DataFrame]:
    files = sorted(file for file in folder.iterdir() if suffix_of(file) in SUFFIXES)
    if not files:
        raise ValueError(
            f"{folder}: holds no data file ({', '.join(SUFFIXES)}) and was not written by `datasets.save_to_disk`."
        )
    tables = {}
    for file in files:
        split = file.name.split(".", 1)[0]
        if split in tables:
            raise ValueError(f"{folder}: split {split!r} has more than one file; give one file for each split.")
        tables[split] = read_file(file, encoding)
    return tables


def _saved_folder(folder: Path) -> dict[str, pd.DataFrame]:
    import datasets

    try:
        return _tables(datasets.load_from_disk(str(folder)), str(folder))
    except Exception as error:  # The library raises many kinds for a damaged folder.
        raise ValueError(f"{folder}: cannot be read as a folder of `datasets`: {_first_line(error)}") from error


def _hub(name: str, subset: str | None) -> dict[str, pd.DataFrame]:
    import datasets

    try:
        return _tables(datasets.load_dataset(name, subset), name)
    except Exception as error:  # Network, hub, parsing and script errors share no base class.
        raise ValueError(
            f"`path` must be a local file or folder, or a data set on the Hugging Face hub, but {name!r} cannot be "
            f"loaded: {_first_line(error)}"
        ) from error


def _tables(loaded: Any, name: str) -> dict[str, pd.DataFrame]:
    splits = loaded if isinstance(loaded, dict) else {"": loaded}
    tables: dict[str, pd.DataFrame] = {}
    for split, data in splits.items():
        table, orders = data.to_pandas(), {}
        for column, feature in data.features.items():
            # Class labels are stored as numbers; their names are what users know and what the model's head is told.
            inner: Any = getattr(feature, "feature", None)
            if type(feature).__name__ == "ClassLabel":
                orders[column] = tuple(feature.names)
                table[column] = [feature.int2str(int(value)) if value >= 0 else None for value in table[column]]
            elif type(inner).__name__ == "ClassLabel":
                orders[column] = tuple(inner.names)
                table[column] = [
                    None if values is None else [inner.int2str(int(value)) for value in values]
                    for values in table[column]
                ]
        table.attrs |= {SOURCE: Source(name, str(split)), ORDERS: orders}
        tables[str(split)] = table
    return tables


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
