"""A small classifier of texts in groups, and a worse copy of it: what judges are tried on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nas.distillation.teacher import TeacherOutputs
from nas.evaluation.aspects import Aspects
from nas.evaluation.fairness import Fairness
from nas.evaluation.intervals import Resampling
from nas.evaluation.judge import Judge
from nas.evaluation.robustness import Robustness
from nas.tasks.data import TextData
from nas.tasks.models import load_classifier, load_tokenizer
from nas.tasks.text import TextClassification
from tests.texts import texts, tiny_model_folder

TERMS = {"low": ["w1", "w2"], "high": ["w3", "w4"]}
ASPECTS = Aspects(
    Resampling(resamples=60),
    Fairness(min_samples=10, terms=TERMS),
    Robustness(kinds=("keyboard", "word_drop"), strengths=(0.5,), samples=40),
)


@dataclass(frozen=True)
class World:
    """A task with its teacher and a student."""

    task: TextClassification
    teacher: Any
    student: Any

    def judge(self, aspects: Aspects = ASPECTS) -> Judge:
        outputs = TeacherOutputs(self.task, model=self.teacher)
        return Judge(self.task, outputs, lambda batch: self.task.outputs(self.teacher, batch), aspects)


def world(folder: Path, labels: int = 2) -> World:
    """Texts whose label the teacher itself gave, with some of them turned round; groups by the row's number."""
    folder.mkdir(exist_ok=True)
    model = tiny_model_folder(folder / "model", labels=labels)
    lines = texts(260)
    teacher = load_classifier(model)
    tokens = load_tokenizer(model)(lines, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        given = teacher(**tokens).logits.argmax(dim=1).tolist()
    own = [(label + (index % 5 == 0)) % labels for index, label in enumerate(given)]
    groups = ["few" if index % 40 == 0 else "odd" if index % 2 else "even" for index in range(len(lines))]
    pd.DataFrame({"text": lines, "label": own, "group": groups}).to_csv(folder / "data.csv", index=False)
    data = TextData(
        str(folder / "data.csv"), label_column="label", group_columns=("group",),
        calibration=16, validation=60, test=120,
    )  # fmt: skip
    task = TextClassification(model, data, max_length=24)
    student = task.load_model()
    with torch.no_grad():
        student.bert.encoder.layer[1].output.dense.weight.mul_(0.2)
        student.bert.encoder.layer[2].output.dense.weight.mul_(0.4)
    return World(task, task.load_model(), student)
