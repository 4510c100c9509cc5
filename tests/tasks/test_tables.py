"""Tables that a reader would take and that are wrong: told with file, line and mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from nas.tasks.data import TextData
from nas.tasks.files import read_file
from nas.tasks.sources import Source
from tests.texts import texts

SMALL: dict[str, Any] = {"calibration": 2, "validation": 2, "test": 2}


def jsonl(folder: Path, *lines: str) -> str:
    file = folder / "data.jsonl"
    file.write_text("\n".join([*(json.dumps({"text": text}) for text in texts(9)), "", *lines]) + "\n")
    return str(file)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"a": 1}, "holds a dict"),
        ([["w1"], ["w2"]], "a list holds a list"),
        ([{"a": 1}], "a list holds a dict"),
        ([None], "a list holds a NoneType"),
        (["New York"], "one is 'New York'"),
    ],
)
def test_cells_that_are_no_texts(tmp_path: Path, cell: Any, said: str) -> None:
    data = TextData(jsonl(tmp_path, json.dumps({"text": cell})), **SMALL)
    with pytest.raises(ValueError, match=rf"data.jsonl: line 11: column 'text' must hold .*{said}"):
        data.read()


@pytest.mark.parametrize("column", ["text_column", "pair_column"])
@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_cells_of_tables_without_lines(tmp_path: Path, column: str, kind: str) -> None:
    columns = {"text": texts(20), "other": [[[word] for word in text.split()] for text in texts(20)]}
    if kind == "saved":
        datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "data"))
    else:
        pd.DataFrame(columns).to_parquet(tmp_path / "data")
        (tmp_path / "data").rename(tmp_path / "data.parquet")
    place = str(tmp_path / ("data" if kind == "saved" else "data.parquet"))
    with pytest.raises(ValueError, match=r"data(.parquet)?: row 1: column 'other' must hold texts or lists of words"):
        TextData(place, **{column: "other"}, **SMALL).read()


def test_bytes_are_no_text(tmp_path: Path) -> None:
    pd.DataFrame({"text": [b"w1", b"w2"]}).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="must hold texts or lists of words, but holds a bytes"):
        TextData(str(tmp_path / "data.parquet"), **SMALL).read()


@pytest.mark.parametrize("group", [["a"], {"a": 1}])
def test_a_group_is_a_name(tmp_path: Path, group: Any) -> None:
    data = TextData(jsonl(tmp_path, json.dumps({"text": "w1", "group": group})), group_columns="group", **SMALL)
    with pytest.raises(ValueError, match=r"line 11: a group must be a name or a number, but column 'group' holds a"):
        data.read()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "text,label,text\nx,1,y\n", "columns must have different names, but 'text' is there twice"),
        ("a.tsv", "text\ttext\nx\ty\n", "'text' is there twice"),
        ("a.csv", "text,label\nx,y,1\nz,u,2\n", "as many cells as the header has names, which are 2, but have more"),
        ("a.jsonl", '{"text": "a"}\n{"text": "a", "text": "b"}\n', "line 2: an object must have different keys"),
        ("a.json", '[{"text": "a", "text": "b"}]', "an object must have different keys, but 'text' is there twice"),
        ("a.jsonl", '{"text": "a"}\n\n["b"]\n', "line 3 must be an object such as .* but is a list"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: cannot be read as jsonl"),
        ("a.json", '[{"text": "a"}, "b"]', "row 2 must be an object such as .* but is a text"),
        ("a.json", '"b"', "must hold a list of objects, but holds a text"),
    ],
)
def test_mistakes_that_a_reader_passes_over(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: (lines must have |columns .*, but )?{said}"):
        read_file(tmp_path / name)


def test_a_mark_at_the_beginning_and_rare_line_ends_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "a"}\r\n{"text": "b"}', encoding="utf-8")
    (tmp_path / "a.txt").write_text("\ufeffa\u2028still a\nb\n", encoding="utf-8")
    assert list(read_file(tmp_path / "a.jsonl")["text"]) == ["a", "b"]
    assert list(read_file(tmp_path / "a.txt")["text"]) == ["a\u2028still a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "row", "place"),
    [
        ("a.csv", 'text,label\n"two\nlines",1\n\nb,2\n', 0, "line 2"),
        ("a.csv", 'text,label\n"two\nlines",1\n\nb,2\n', 1, "line 5"),
        ("a.tsv", "\ntext\tlabel\n  \nb\t2\n", 0, "line 4"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n', 1, "line 3"),
        ("a.txt", "a\r\n\r\nb\r\n", 2, "line 3"),
        ("a.json", '[{"text": "a"},\n{"text": "b"}]', 1, "row 2"),
    ],
)
def test_a_row_is_told_by_the_line_that_an_editor_shows(
    tmp_path: Path, name: str, text: str, row: int, place: str
) -> None:
    (tmp_path / name).write_bytes(text.encode())
    source: Source = read_file(tmp_path / name).attrs["source"]
    assert source.place(row) == f"{tmp_path / name}: {place}"


@pytest.mark.parametrize("size", [2.5, 1.0, 0.0, -0.1, 0, float("nan"), float("inf"), "half", None])
def test_sizes_are_shares_or_counts(size: Any) -> None:
    with pytest.raises(ValueError, match=r"`task.data.validation` must be a number of samples, 1 or more, or a share"):
        TextData("x.csv", validation=size)
    for fine in (0.5, 1, 1e3, 7):
        assert TextData("x.csv", validation=fine).validation == fine


@pytest.mark.parametrize("seed", ["x", 1.5, True, None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"`task.data.seed` must be a whole number, but got"):
        TextData("x.csv", seed=seed)


@pytest.mark.parametrize("encoding", ["utf-99", "hex", "rot13", "", None])
def test_an_encoding_is_checked_before_anything_is_read(encoding: Any) -> None:
    with pytest.raises(ValueError, match=r"`task.data.encoding` must be one that Python knows"):
        TextData("missing.parquet", encoding=encoding)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("path", 3, "must be a file, a folder or a name on the hub"),
        ("path", ["a.csv"], "a file for each split such as"),
        ("path", {}, "but got {}"),
        ("text_column", ["text"], "must name one column, but got"),
        ("text_column", None, "must name one column"),
        ("pair_column", 3, "must name one column, but got 3"),
        ("label_column", [3], "must name a column, or a list of columns"),
        ("group_columns", 3, "must name a column, or a list of columns, but got 3"),
        ("splits", "train", "must give the source's names"),
        ("splits", {"dev": "x"}, "must name train, calibration"),
    ],
)
def test_options_of_a_wrong_kind(option: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"`task.data.{option}` .*{said}"):
        TextData(**{"path": "x.csv", option: value})


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "\n"), ("a.json", "[]")])
def test_a_file_without_samples(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="must hold at least one sample, but is empty"):
        read_file(tmp_path / name)


def test_another_encoding_is_guessed_by_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nw1\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"such as `task.data.encoding=utf-16`"):
        read_file(tmp_path / "a.csv")
