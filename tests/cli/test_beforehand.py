"""What would fail late is told before anything is measured, with the names of the options that mend it."""

from __future__ import annotations

import pytest

from nas.__main__ import run
from tests.cli.conftest import FAST
from tests.evaluation.judged import world


def refused(arguments, root, capsys) -> str:
    """The one line that a search ends in, before anything was measured."""
    assert run([*arguments, f"root={root}", *FAST]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nas: ")]
    assert len(said) == 1
    assert not list(root.rglob("*.jsonl"))
    assert not list(root.rglob("libraries"))
    return said[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "calibrate.batch_size=48",
            "its 48 samples are one of `calibrate.batch_size`=48: lower that, raise `task.data",
        ),
        ("calibrate.batch_size=0", "`calibrate.batch_size` must be a whole number >= 1, but got 0"),
        ("search.sensitivity_evaluations=12", "`search.sensitivity_evaluations` must be at least 13 for this space"),
        ("finalists.count=0", "`finalists.count` must be a whole number >= 1, but got 0"),
        ("finalists.minutes=-1", "`finalists.minutes` must be a number >= 0 or null"),
        ("finalists.protocol.burst=0", "`finalists.protocol.burst` must be a whole number >= 1"),
        ("+finalists.protocol.isolate=true", "`finalists.protocol.isolate` must be false"),
        ("objectives=[quality,energy_mj]", "`profile.meters` must have 'energy_mj'"),
        ("+objectives.constraints.latncy_ms=1", "nothing is known by the name 'latncy_ms'; can be asked for: cosine, "),
        (
            "+objectives.constraints.ece=0.1",
            "'ece' needs labels, probabilities, but a sentence_embedding task has none",
        ),
        ("+objectives.constraints.worst_group_cosine=0.1", "name their columns in `task.data.group_columns`"),
        ("+objectives.constraints.flip_rate=0.1", "give them in `evaluation.fairness.terms`"),
    ],
)
def test_a_search_that_would_fail_late_is_refused_early(tmp_path, capsys, wrong, said):
    assert said in refused(["search", "experiment=smoke", wrong], tmp_path, capsys)


def test_energy_without_a_counter_is_refused_early(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("latency_models.meters.find_energy_meter", lambda _: None)
    asked = ["search", "experiment=smoke", "objectives=[quality,energy_mj]", "profile.meters=[energy_mj]"]
    assert "'energy_mj' needs a counter of energy" in refused(asked, tmp_path, capsys)


@pytest.mark.parametrize(
    ("labels", "asked", "said"),
    [
        (2, "worst_group_accuracy", "lower `evaluation.fairness.min_samples` or give a larger split"),
        (
            3,
            "worst_group_false_positive_rate",
            "needs accused, negatives, but a text_classification task has none here",
        ),
    ],
)
def test_metrics_of_groups_are_tried_on_the_teacher_first(tmp_path, capsys, labels, asked, said):
    small = world(tmp_path / "world", labels)
    least = 50 if labels == 2 else 10
    arguments = [
        "search", "task=text_classification", "task.max_length=32", "distiller=logits",
        f"model.path={small.task.model}", f"task.data.path={small.task.data.path}",
        "task.data.group_columns=[group]", "task.data.calibration=16",
        "task.data.validation=60", "task.data.test=120", "calibrate.batch_size=8", "workload.sequence_length=16",
        f"+objectives.constraints.{asked}=0.5", f"evaluation.fairness.min_samples={least}",
    ]  # fmt: skip
    assert said in refused(arguments, tmp_path / "runs", capsys)
