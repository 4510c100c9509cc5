"""Classifiers that the benchmarks search and judge: MiniLM fine-tuned on real data, made once and kept.

python benchmarks/teachers.py            # all, where they are missing (minutes each)
python benchmarks/teachers.py trec       # this one
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import common

from nas.distillation.losses import Distiller
from nas.distillation.train import TrainSettings, distil
from nas.progress import Progress
from nas.tasks.data import TextData
from nas.tasks.text import TextClassification

NAMES = ("trec", "reddit_bias", "movie_sentiment")
EPOCHS, LEARNING_RATE, BATCH = 2, 1e-4, 32


def data_of(name: str, folder: Path) -> TextData:
    """A data set with its splits.

    ``trec``: 5,381 questions in six classes. ``movie_sentiment``: 10,072 sentences of reviews, positive or
    negative. ``reddit_bias``: 11,492 comments, biased or not, in five groups (Barikeri
    et al. 2021, arXiv 2106.03521); offensive, so nothing here ever prints a text.
    """
    sets: Mapping[str, TextData] = {
        "trec": TextData("trec.csv", label_column="label", calibration=512, validation=1000, test=1000),
        "reddit_bias": TextData(
            "reddit_bias.csv", label_column="label", group_columns=("group",),
            calibration=512, validation=2000, test=3500,
        ),
        "movie_sentiment": TextData(
            "movie_sentiment.csv", label_column="label", calibration=512, validation=1000, test=2000
        ),
    }  # fmt: skip
    found = sets[name]
    return replace(found, path=str(folder / str(found.path)))


def teacher_of(name: str, folder: Path) -> TextClassification:
    """A fine-tuned classifier with its data; trained where it is not there yet.

    Args:
        name: One of `NAMES`.
        folder: With `minilm/` and the data sets, as `make assets` leaves them; the model is kept in it.
    """
    data, cache, place = data_of(name, folder), str(folder / "cache"), folder / f"minilm_{name}"
    if not place.is_dir():
        plain = TextClassification(str(folder / "minilm"), data, new_head=True, cache_dir=cache)
        model = plain.load_model()
        steps = EPOCHS * plain.samples.size("train") // BATCH
        settings = TrainSettings(learning_rate=LEARNING_RATE, batch_size=BATCH)
        with Progress(f"Fine-tuning on {name}", steps) as bar:
            distil(model, plain, None, Distiller(labels=1.0), settings, steps=steps, progress=bar)
        aside = place.with_name(f".{place.name}.partial")
        model.save_pretrained(aside)
        plain.tokenizer.save_pretrained(aside)
        aside.replace(place)
    return TextClassification(str(place), data, cache_dir=cache)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(NAMES)}; all by default")
    parser.add_argument("--data", type=Path, default=common.ASSETS, metavar="DIR")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"unknown teacher {unknown[0]!r}; known are {', '.join(NAMES)}")
    for name in options.names or NAMES:
        print(teacher_of(name, options.data).model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
