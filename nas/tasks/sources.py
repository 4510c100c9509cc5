"""Where a sample comes from: what messages call the line or the row that holds it."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Cells of texts may be longer than what the reader takes by itself.
_LONGEST_CELL = 2**31 - 1
_LINE_END = re.compile(r"\r\n|\r|\n")
SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Source:
    """A table of samples.

    Args:
        name: File, folder or name on the hub.
        split: Its split there; empty where there is none.
        encoding: Of a text file.
    """

    name: str = "the data"
    split: str = ""
    encoding: str = "utf-8"

    def place(self, row: int) -> str:
        """Where a row of the table stands: the line that an editor shows; of a table without lines its row from 1.

        Args:
            row: Counted from 0.
        """
        file = Path(self.name)
        if (line := self._line(file, row)) is not None:
            return f"{self.name}: line {line}"
        split = f" of split {self.split!r}" if self.split else ""
        return f"{self.name}: row {row + 1}{split}"

    def _line(self, file: Path, row: int) -> int | None:
        suffix = suffix_of(file)
        if suffix not in (*SEPARATORS, ".jsonl", ".txt") or not file.is_file():
            return None
        # Only for a message, so the file is read once more: pandas does not say where a row began.
        text = read_bytes(file).decode(self.encoding, "replace")
        lines = csv_lines(text, SEPARATORS[suffix]) if suffix in SEPARATORS else _filled(text, suffix)
        return next((line for index, line in enumerate(lines) if index == row), None)


def read_bytes(file: Path) -> bytes:
    """A file's bytes, unpacked where its name ends in ``.gz``."""
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


def suffix_of(file: Path) -> str:
    """What kind of file it is: the suffix in small letters, without ``.gz``."""
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix.lower()


def csv_header(text: str, separator: str) -> list[str]:
    """The names of a table's columns."""
    return next((cells for _, cells in _csv_rows(text, separator)), [])


def csv_lines(text: str, separator: str) -> Iterator[int]:
    """The line, from 1, on which each row of a table begins; the header and empty lines are none."""
    return (line for row, (line, _) in enumerate(_csv_rows(text, separator)) if row)


def plain_lines(text: str) -> list[str]:
    """The lines of a text as an editor counts them: Unicode's rarer separators are signs like others."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def _csv_rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the lines on which they begin; lines without anything are no rows, as pandas has it."""
    csv.field_size_limit(_LONGEST_CELL)
    reader, begin = csv.reader(io.StringIO(text, newline=""), delimiter=separator), 1
    for cells in reader:
        if len(cells) > 1 or (cells and (not cells[0] or cells[0].strip())):
            yield begin, cells
        begin = reader.line_num + 1


def _filled(text: str, suffix: str) -> Iterator[int]:
    lines = enumerate(plain_lines(text), start=1)
    return (line for line, content in lines if suffix == ".txt" or content.strip())
