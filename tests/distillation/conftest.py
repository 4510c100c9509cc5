"""One small encoder task and one small classifier task for all the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from nas.tasks.data import TextData
from nas.tasks.text import SentenceEmbedding, TextClassification
from tests.texts import texts, tiny_model_folder, write_lines


@pytest.fixture(scope="session")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> SentenceEmbedding:
    folder = tmp_path_factory.mktemp("embedding")
    file = write_lines(folder / "texts.txt", texts(120))
    data = TextData(file, calibration=8, validation=24, test=24)
    return SentenceEmbedding(tiny_model_folder(folder / "model"), data, 32, neighbours=3)


@pytest.fixture(scope="session")
def classification(tmp_path_factory: pytest.TempPathFactory) -> TextClassification:
    folder = tmp_path_factory.mktemp("classification")
    lines = texts(120)
    # The class is in the words, so that a model can learn it.
    labels = [("low", "middle", "high")[int(line.split()[0][1:]) // 31] for line in lines]
    pd.DataFrame({"text": lines, "label": labels}).to_csv(folder / "data.csv", index=False)
    data = TextData(str(folder / "data.csv"), label_column="label", calibration=8, validation=24, test=24)
    return TextClassification(tiny_model_folder(folder / "model", labels=3), data, 32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
