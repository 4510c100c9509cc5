"""Tables of samples from local files, folders saved by `datasets`, or the Hugging Face hub."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

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
        Tables by split. A source without splits has the one split ``""``.

    Raises:
        FileNotFoundError: The path looks like a file or folder, but there is none.
        ValueError: The file's kind is unknown, its bytes do not fit the encoding, or the data set cannot be loaded.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return {"": read_file(place, encoding)}
    if place.is_dir():
        if any((place / name).is_file() for name in ("dataset_dict.json", "state.json", "dataset_info.json")):
            return _saved_folder(place)
        if classes := class_folders(place, (".txt",)):
            return {split: _texts(files, encoding) for split, files in classes.items()}
        return _folder_of_files(place, encoding)
    if place.is_absolute() or path.startswith((".", "~")) or _suffix(place) in SUFFIXES:
        raise FileNotFoundError(f"`path` must be an existing file or folder, but there is no {path!r}.")
    return _hub(path, subset)


def read_file(file: Path, encoding: str = "utf-8") -> pd.DataFrame:
    """Read one local file as a table; the rules and errors of `read_tables`."""
    import pandas as pd

    suffix = _suffix(file)
    if suffix not in SUFFIXES:
        raise ValueError(
            f"`path` must end in one of {', '.join(SUFFIXES)} (or in .gz after it), but got {file.name!r}."
        )
    readers: dict[str, Callable[[str], pd.DataFrame]] = {
        # Only an empty cell is missing: a review may well say "null", and a label may be called "NA".
        ".csv": lambda text: pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""]),
        ".tsv": lambda text: pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""], sep="\t"),
        ".jsonl": lambda text: pd.read_json(io.StringIO(text), lines=True, dtype=False),
        ".json": lambda text: pd.read_json(io.StringIO(text), dtype=False),
        ".txt": lambda text: pd.DataFrame({"text": text.splitlines()}),
    }
    try:
        return pd.read_parquet(file) if suffix == ".parquet" else readers[suffix](_decode(file, encoding))
    except _EncodingError:
        raise
    except (ValueError, pd.errors.ParserError, OSError) as error:
        raise ValueError(f"{file}: cannot be read as {suffix[1:]}: {error}") from error


def class_folders(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[tuple[Path, str]]]:
    """Files that lie in folders named after their class, alone or below folders of splits.

    Returns:
        Split (``""`` where there are none) -> files with their classes; empty where the folder is something else.
    """

    def inside(place: Path) -> list[tuple[Path, str]]:
        folders = sorted(path for path in place.iterdir() if path.is_dir())
        return [(file, path.name) for path in folders for file in sorted(path.iterdir()) if _suffix(file) in suffixes]

    if files := inside(folder):
        return {"": files}
    splits = {path.name: inside(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    return {name: files for name, files in splits.items() if files}


def _texts(files: list[tuple[Path, str]], encoding: str) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([(_decode(file, encoding), label) for file, label in files], columns=["text", "label"])


class _EncodingError(ValueError):
    """Bytes that do not fit the encoding; told apart from what a parser raises."""


def _decode(file: Path, encoding: str) -> str:
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = data[error.start : error.start + 1].hex()
        raise _EncodingError(
            f"{file}: line {line} must be {encoding}, but byte 0x{found} is not. Give the file's own encoding, "
            "such as `encoding: latin-1`."
        ) from error
    except LookupError as error:
        raise _EncodingError(f"`encoding` must be one that Python knows, but got {encoding!r}.") from error


def _suffix(file: Path) -> str:
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix.lower()


def _folder_of_files(folder: Path, encoding: str) -> dict[str, pd.DataFrame]:
    files = sorted(file for file in folder.iterdir() if _suffix(file) in SUFFIXES)
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
        return _tables(datasets.load_from_disk(str(folder)))
    except Exception as error:  # The library raises many kinds for a damaged folder.
        raise ValueError(f"{folder}: cannot be read as a folder of `datasets`: {_first_line(error)}") from error


def _hub(name: str, subset: str | None) -> dict[str, pd.DataFrame]:
    import datasets

    try:
        return _tables(datasets.load_dataset(name, subset))
    except Exception as error:  # Network, hub, parsing and script errors share no base class.
        raise ValueError(
            f"`path` must be a local file or folder, or a data set on the Hugging Face hub, but {name!r} cannot be "
            f"loaded: {_first_line(error)}"
        ) from error


def _tables(loaded: Any) -> dict[str, pd.DataFrame]:
    splits = loaded if isinstance(loaded, dict) else {"": loaded}
    tables: dict[str, pd.DataFrame] = {}
    for split, data in splits.items():
        table = data.to_pandas()
        for column, feature in data.features.items():
            # Class labels are stored as numbers; their names are what users know and what the model's head is told.
            if type(feature).__name__ == "ClassLabel":
                table[column] = [feature.int2str(int(value)) if value >= 0 else None for value in table[column]]
            elif (inner := getattr(feature, "feature", None)) and type(inner).__name__ == "ClassLabel":
                table[column] = [[inner.int2str(int(value)) for value in values] for values in table[column]]
        tables[str(split)] = table
    return tables


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
