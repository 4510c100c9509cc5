"""Reading and splitting: disjoint, reproducible, and clear about what is wrong."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import datasets
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_files

from nas.tasks.data import Examples, TextData
from nas.tasks.files import read_file, read_tables
from nas.tasks.splits import SPLITS
from tests.texts import texts, write_lines

TEXTS = texts(60)
FRAME = pd.DataFrame({"text": TEXTS, "label": [index % 3 for index in range(60)]})
SMALL = {"calibration": 5, "validation": 10, "test": 10}


@pytest.fixture
def csv(tmp_path: Path) -> str:
    file = tmp_path / "data.csv"
    FRAME.to_csv(file, index=False)
    return str(file)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "json", "parquet"])
def test_every_kind_of_file_gives_the_same_table(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"data.{kind}"
    if kind.startswith("csv"):
        FRAME.to_csv(file, index=False)
    elif kind == "tsv":
        FRAME.to_csv(file, index=False, sep="\t")
    elif kind == "parquet":
        FRAME.to_parquet(file)
    else:
        FRAME.to_json(file, orient="records", lines=kind == "jsonl")
    table = read_file(file)
    assert list(table["text"]) == TEXTS
    assert list(table["label"]) == list(FRAME["label"])


def test_text_file_is_one_sample_a_line(tmp_path: Path) -> None:
    assert list(read_tables(write_lines(tmp_path / "t.txt", TEXTS))[""]["text"]) == TEXTS


def test_words_that_pandas_takes_for_missing_stay_text(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("text,label\nnull,NA\nnan,None\n")
    table = read_file(file)
    assert list(table["text"]) == ["null", "nan"]
    assert list(table["label"]) == ["NA", "None"]


def test_folder_saved_by_datasets_with_class_names(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    whole = datasets.Dataset.from_dict({"text": TEXTS, "label": [i % 2 for i in range(60)]}, features=features)
    halves = datasets.DatasetDict({"train": whole.select(range(40)), "test": whole.select(range(40, 60))})
    halves.save_to_disk(str(tmp_path / "saved"))
    splits = TextData(str(tmp_path / "saved"), label_column="label", calibration=5, validation=5, test=20).read()
    assert sorted(splits["test"].texts) == sorted(TEXTS[40:])
    assert set(splits["train"].labels or ()) == {"no", "yes"}
    assert len(splits["train"]) == 30


def test_folder_of_files_and_mapping_of_files_are_splits(tmp_path: Path) -> None:
    FRAME[:40].to_csv(tmp_path / "train.csv", index=False)
    FRAME[40:].to_csv(tmp_path / "dev.csv", index=False)
    by_folder = TextData(str(tmp_path), **{**SMALL, "validation": 100}).read()
    files = {"train": str(tmp_path / "train.csv"), "validation": str(tmp_path / "dev.csv")}
    assert set(by_folder["validation"].texts) == set(TEXTS[40:])
    assert by_folder["test"].texts == TextData(files, **{**SMALL, "validation": 100}).read()["test"].texts


@pytest.mark.parametrize("below", ["", "train"])
def test_class_folders_of_texts_are_read_as_scikit_learn_does(tmp_path: Path, below: str) -> None:
    for index, text in enumerate(TEXTS):
        folder = tmp_path / below / ("spam" if index % 3 else "ham")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:03d}.txt").write_text(text + "\n", encoding="utf-8")
    expected = load_files(tmp_path / below, encoding="utf-8", shuffle=False)
    splits = TextData(str(tmp_path), label_column="label", **SMALL).read()
    found = {text: label for some in splits.values() for text, label in zip(some.texts, some.labels or (), strict=True)}
    names = expected.target_names
    assert found == {text.strip(): names[label] for text, label in zip(expected.data, expected.target, strict=True)}
    (tmp_path / below / "spam" / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"bad.txt: line 1 must be utf-8, but byte 0xff is not"):
        TextData(str(tmp_path), label_column="label", **SMALL).read()


def test_splits_can_be_named(tmp_path: Path) -> None:
    FRAME[:40].to_csv(tmp_path / "everything.csv", index=False)
    FRAME[40:].to_csv(tmp_path / "matched.csv", index=False)
    data = TextData(str(tmp_path), splits={"train": "everything", "validation": "matched"}, calibration=5, test=5)
    assert set(data.read()["validation"].texts) == set(TEXTS[40:])


@given(st.lists(st.sampled_from(TEXTS), max_size=40).map(lambda some: TEXTS[:12] + some), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_splits_are_disjoint_whole_and_do_not_depend_on_order(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("splits")
    sizes = {"calibration": 1, "validation": 0.1, "test": 0.2, "seed": seed}
    splits = TextData(write_lines(folder / "a.txt", lines), **sizes).read()
    again = TextData(write_lines(folder / "b.txt", lines[::-1]), **sizes).read()
    found = [text for split in SPLITS for text in splits[split].texts]
    assert sorted(found) == sorted(set(lines))
    assert all(splits[split].texts == again[split].texts for split in SPLITS)


def test_seed_changes_the_cut(csv: str) -> None:
    first, second = (TextData(csv, seed=seed, **SMALL).read()["test"].texts for seed in (0, 1))
    assert set(first) != set(second)


def test_a_text_in_two_given_splits_stays_in_the_test_split(tmp_path: Path) -> None:
    FRAME[:40].to_csv(tmp_path / "train.csv", index=False)
    FRAME[30:].to_csv(tmp_path / "test.csv", index=False)
    splits = TextData(str(tmp_path), calibration=2, validation=2, test=100).read()
    assert set(splits["test"].texts) == set(TEXTS[30:])
    assert not set(splits["test"].texts) & set(splits["train"].texts)


@pytest.mark.parametrize(("test", "kept"), [(0.2, 30), (10, 10), (100, 30)])
def test_a_share_does_not_cut_a_given_split_and_a_number_does(tmp_path: Path, test: float, kept: int) -> None:
    FRAME[:30].to_csv(tmp_path / "train.csv", index=False)
    FRAME[30:].to_csv(tmp_path / "test.csv", index=False)
    assert len(TextData(str(tmp_path), calibration=2, validation=2, test=test).read()["test"]) == kept


def test_pairs_groups_and_rows_travel_with_their_text(tmp_path: Path) -> None:
    frame = FRAME.assign(second=[f"other {i}" for i in range(60)], group=[f"g{i % 2}" for i in range(60)])
    frame.to_csv(tmp_path / "data.csv", index=False)
    data = TextData(str(tmp_path / "data.csv"), pair_column="second", group_columns=["group"], label_column="label")
    for examples in TextData(**{**data.__dict__, **SMALL}).read().values():
        for position, row in enumerate(examples.rows):
            assert examples.texts[position] == TEXTS[row]
            assert (examples.pairs or ())[position] == f"other {row}"
            assert examples.groups["group"][position] == f"g{row % 2}"
            assert (examples.labels or ())[position] == row % 3


def test_groups_of_one_column_some_of_whose_cells_are_empty(tmp_path: Path) -> None:
    FRAME.assign(age=[None if i % 3 == 0 else i % 3 for i in range(60)]).to_csv(tmp_path / "data.csv", index=False)
    splits = TextData(str(tmp_path / "data.csv"), group_columns="age", **SMALL).read()
    assert {name for examples in splits.values() for name in examples.groups["age"]} == {"(not given)", "1", "2"}


def test_rows_without_text_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    FRAME.assign(text=["", " ", None, *TEXTS[3:]]).to_csv(tmp_path / "data.csv", index=False)
    splits = TextData(str(tmp_path / "data.csv"), **SMALL).read()
    assert sum(map(len, splits.values())) == 57
    assert "3 rows without text" in caplog.text


class TestMistakes:
    def test_missing_column_lists_those_present(self, csv: str) -> None:
        with pytest.raises(ValueError, match=r"column 'sentence' is not there; there are 'text', 'label'"):
            TextData(csv, text_column="sentence").read()

    def test_too_few_samples(self, csv: str) -> None:
        with pytest.raises(ValueError, match=r"need at least 3513 different samples, but there are 60.*smaller splits"):
            TextData(csv).read()

    def test_bytes_of_another_encoding_name_the_line(self, tmp_path: Path) -> None:
        file = tmp_path / "data.csv"
        file.write_bytes("text\nfine\ncafé\n".encode("latin-1"))
        with pytest.raises(ValueError, match=r"line 3 must be utf-8, but byte 0xe9 is not.*encoding=latin-1"):
            TextData(str(file)).read()
        assert list(read_file(file, "latin-1")["text"]) == ["fine", "café"]

    def test_unknown_encoding(self, csv: str) -> None:
        with pytest.raises(ValueError, match=r"`task.data.encoding` must be one that Python knows.*but got 'utf-99'"):
            TextData(csv, encoding="utf-99").read()

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"there is no '.*missing.csv'"):
            TextData(str(tmp_path / "missing.csv")).read()
        with pytest.raises(FileNotFoundError, match=r"there is no 'missing.csv'"):
            TextData("missing.csv").read()

    def test_unknown_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "data.xls").write_bytes(b"")
        with pytest.raises(ValueError, match=r"must end in one of .csv.*but got 'data.xls'"):
            TextData(str(tmp_path / "data.xls")).read()

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no data file"):
            TextData(str(tmp_path)).read()

    def test_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / "data.jsonl").write_text("{not json\n")
        with pytest.raises(ValueError, match="cannot be read as jsonl"):
            TextData(str(tmp_path / "data.jsonl")).read()
        (tmp_path / "data.csv.gz").write_bytes(gzip.compress(b""))
        with pytest.raises(ValueError, match="cannot be read as csv"):
            TextData(str(tmp_path / "data.csv.gz")).read()
        (tmp_path / "plain.csv.gz").write_bytes(b"text\nnot compressed\n")
        with pytest.raises(ValueError, match="cannot be read as csv"):
            TextData(str(tmp_path / "plain.csv.gz")).read()

    def test_two_files_of_one_split(self, tmp_path: Path) -> None:
        for name in ("train.csv", "train.jsonl"):
            (tmp_path / name).write_text("text\na\n" if name.endswith("csv") else '{"text": "a"}\n')
        with pytest.raises(ValueError, match="split 'train' has more than one file"):
            TextData(str(tmp_path)).read()

    def test_no_train_split(self, tmp_path: Path) -> None:
        FRAME.to_csv(tmp_path / "everything.csv", index=False)
        with pytest.raises(ValueError, match="there must be a train split, but there are 'everything'"):
            TextData(str(tmp_path)).read()
        with pytest.raises(ValueError, match="split 'all' is not there; there are 'everything'"):
            TextData(str(tmp_path), splits={"train": "all"}).read()

    def test_split_without_text(self, tmp_path: Path) -> None:
        (tmp_path / "data.csv").write_text("text,label\n,1\n ,2\n")
        with pytest.raises(ValueError, match="split 'train' must not be empty, but no row has a text"):
            TextData(str(tmp_path / "data.csv")).read()

    def test_split_that_only_repeats_another(self, tmp_path: Path) -> None:
        FRAME.to_csv(tmp_path / "train.csv", index=False)
        FRAME[:5].to_csv(tmp_path / "test.csv", index=False)
        FRAME[:5].to_csv(tmp_path / "validation.csv", index=False)
        with pytest.raises(ValueError, match="split 'validation' must not be empty, but has no sample left"):
            TextData(str(tmp_path), calibration=5).read()

    def test_row_without_label(self, tmp_path: Path) -> None:
        FRAME.assign(label=[*FRAME["label"][:-1], None]).to_csv(tmp_path / "data.csv", index=False)
        with pytest.raises(ValueError, match=r"data.csv: line 61 has no label in column 'label'"):
            TextData(str(tmp_path / "data.csv"), label_column="label").read()

    @pytest.mark.parametrize("value", [0, -1, True, "many"])
    def test_sizes(self, value: object) -> None:
        with pytest.raises(ValueError, match=re.escape(f"but got {value!r}")):
            TextData("x.csv", validation=value)  # type: ignore[arg-type]

    def test_hub_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise ConnectionError("Offline mode is enabled.")

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(ValueError, match="'someone/texts' cannot be loaded: Offline mode is enabled"):
            TextData("someone/texts").read()


def test_hub_is_asked_for_the_named_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, subset: str | None) -> datasets.DatasetDict:
        asked.append((name, subset))
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(TextData("glue", subset="sst2", **SMALL).read()["train"]) == 35
    assert asked == [("glue", "sst2")]


def test_examples_take_keeps_order() -> None:
    examples = Examples(("a", "b", "c"), rows=pd.Series([4, 5, 6]).to_numpy(), labels=(1, 2, 3))
    assert examples.take([2, 0]).texts == ("c", "a")
    assert examples.take([2, 0]).labels == (3, 1)
    assert list(examples.take([2, 0]).rows) == [6, 4]
