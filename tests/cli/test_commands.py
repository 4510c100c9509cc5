"""The command line as a user meets it: one real search of seconds, and mistakes that get one clear line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from nas.__main__ import run
from nas.commands import plain
from nas.config import conf_dir
from nas.workbench import Workbench
from tests.cli.conftest import FAST
from tests.evaluation.judged import world

QUICK = ["measure=false", "evaluation.intervals.resamples=20", "evaluation.robustness.strengths=[0.3]"]


def smoke(root: Path, command: str, *overrides: str) -> list[str]:
    model, texts = root / "smoke" / "model", root / "smoke" / "texts.csv"
    data = [f"task.data.path={texts}", "task.data.train=64", "task.data.calibration=48"]
    sizes = ["task.data.validation=48", "task.data.test=64"]
    return [command, f"root={root}", f"model.path={model}", *data, *sizes, *FAST, *overrides]


def test_search_leaves_a_report_and_models_that_load(searched):
    report = json.loads((searched / "report.json").read_text())
    rows = {(row["name"], row["precision"]) for row in report["models"]}
    assert {("teacher", "fp32"), ("teacher", "int8")} <= rows
    assert len(rows) >= 6
    assert all(row["measured"]["p50_ms"] > 0 for row in report["models"])
    assert (searched / "report.html").stat().st_size > 10_000
    from search_spaces.checkpoint import load_subnet

    folders = [path for path in (searched / "models").iterdir() if (path / "subnet.json").is_file()]
    assert len(folders) == 2
    for folder in folders:
        load_subnet(folder)


def test_running_it_again_reuses_everything_and_adds_nothing(searched, root, capsys):
    before = json.loads((searched / "report.json").read_text())
    arguments = ["search", "experiment=smoke", f"root={root}", "progress=plain", "torch_threads=1"]
    assert run(arguments) == 0
    said = capsys.readouterr().err
    assert "Reusing the calibration" in said
    assert "Reusing the profile" in said
    assert "Reusing the teacher's graph" in said
    assert "Exporting the teacher" not in said
    after = json.loads((searched / "report.json").read_text())
    assert after["explored"] == before["explored"]
    assert [r["subnet"] for r in after["models"]] == [r["subnet"] for r in before["models"]]


def test_a_study_of_another_space_is_refused(searched, root, capsys):
    assert searched.is_dir()
    assert run(["search", "experiment=smoke", f"root={root}", "space.min_blocks=2", *FAST]) == 2
    assert "begun with other settings" in capsys.readouterr().err


def test_report_is_drawn_again_identically(searched, root):
    before = (searched / "report.html").read_bytes()
    assert run(["report", f"root={root}", "study=smoke", *FAST]) == 0
    assert (searched / "report.html").read_bytes() == before


def test_export_writes_the_picked_model(searched, root, capsys):
    measure = ["measure.batches=[1]", "measure.protocol.min_visits=5", "measure.protocol.max_seconds=0.2"]
    own = ["study=smoke", "pick=fastest", "precision=[fp32]", *measure, *FAST, "progress=plain"]
    with pytest.MonkeyPatch.context() as patch:  # Both graphs are cut out of the teacher's, which is there.
        patch.delattr(torch.onnx, "export")
        assert run(["export", f"root={root}", *own]) == 0
    said = capsys.readouterr()
    assert "Reusing the teacher's graph" in said.err
    folder = Path(said.out.strip().splitlines()[-1])
    assert (folder / "model.onnx").is_file()
    assert (folder / "subnet.json").is_file()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["format=tensorrt"], 1, "device 'tensorrt_cuda': "),
        (["format=[]"], 2, "`format` must name at least one format"),
        (["format=onnx", "precision=fp7"], 2, "`precision` must be among fp32, .* but got 'fp7'"),
        (["directory={other}"], 2, "must be new, or an earlier export"),
        (["measure.batches=[1,0]"], 2, r"`measure.batches\[1\]` must be a whole number >= 1, but got 0"),
        (["measure.calibration_samples=few"], 2, "`measure.calibration_samples` must be a whole number"),
        (["measure.protocol.burst=0"], 2, "`measure.protocol.burst` must be a whole number >= 1, but got 0"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_any_work(searched, root, tmp_path, capsys, options, code, message):
    (tmp_path / "thesis.txt").write_text("years of work")
    asked = [text.format(other=tmp_path) for text in options]
    assert run(["export", f"root={root}", "study=smoke", *FAST, *asked, "progress=plain"]) == code
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert "Recalibrating" not in said
    assert len(said.strip().splitlines()) == 1
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_blocks_with_precisions_are_searched_reported_and_exported(searched, root, capsys):
    assert searched.is_dir()
    own = [
        "study=precisions",
        "+space.choices.precision=int8",
        "search.num_trials=4",
        "search.sensitivity_evaluations=0",
    ]
    few = ["profile.num_subnets=8", "profile.held_out=4", "finalists.count=1", "finalists.distil=0"]
    assert run(["search", "experiment=smoke", f"root={root}", *own, *few, *FAST]) == 0
    rows = json.loads((root / "precisions" / "report.json").read_text())["models"]
    assert [row["precision"] for row in rows if row["role"] == "front"] == ["fp32", "int8", "mixed"]
    # What was searched is what is predicted and exported in its blocks' precisions.
    assert [row["precision"] for row in rows if row["predicted_ms"]] == ["mixed"]
    mixed, int8 = rows[-1], rows[-2]
    assert mixed["metrics"] == int8["metrics"]
    assert mixed["speedup_int8"] is not None
    capsys.readouterr()
    measure = ["measure.batches=[1]", "measure.protocol.min_visits=5", "measure.protocol.max_seconds=0.2"]
    assert run(["export", f"root={root}", "study=precisions", "precision=[fp32]", *measure, *FAST]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    measured = json.loads((folder / "metrics.json").read_text())["measured"]
    assert {key for key, figures in measured.items() if "predicted_ms" in figures} == {"onnx mixed"}
    assert (folder / "model_mixed.onnx").is_file()


def test_a_device_of_int8_folds_blocks_precisions_and_judges_in_int8(searched, root, capsys):
    assert searched.is_dir()
    own = ["study=device-int8", "device=onnxruntime_cpu_int8", "+space.choices.precision=[fp32,int8]"]
    few = ["search.num_trials=3", "search.sensitivity_evaluations=0", "profile.num_subnets=8", "profile.held_out=4"]
    arguments = ["search", "experiment=smoke", f"root={root}", *own, *few, "search.only=true", "torch_threads=1"]
    assert run([*arguments, "progress=plain"]) == 0
    assert "blocks' fp32 and int8 are one choice" in capsys.readouterr().err
    assert run([*arguments, "search.judge_in=fp32", "progress=quiet"]) == 2
    assert "judged in" in capsys.readouterr().err


def test_seeds_share_evaluations_where_nothing_is_trained(searched, root):
    def context(*overrides):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("search", overrides=["experiment=smoke", f"root={root}", *FAST, *overrides])
        return Workbench(plain(config)).evaluation_context()

    others = ("seed=1", "distiller.hidden=2.0", "training.batch_size=16")
    assert context() == context(*others, "evaluation.intervals.resamples=7")
    for other in others:
        assert context("search.rungs=[0,2]") != context("search.rungs=[0,2]", other)
    # A metric of perturbed texts depends on their seed.
    perturbed = "+objectives.goals.robustness_mean_drop=minimize"
    assert context(perturbed) != context(perturbed, "seed=1")


def test_evaluate_judges_folders_and_graphs(searched, root, capsys):
    folder = next(path for path in (searched / "models").iterdir() if (path / "subnet.json").is_file())
    scores = []
    for candidate in (folder, folder / "model.onnx"):
        assert run(smoke(root, "evaluate", f"candidate={candidate}", "show=json", *QUICK)) == 0
        card = json.loads(capsys.readouterr().out)
        assert (card["model"]["kind"], card["efficiency"]) == ("onnx" if candidate.suffix else "transformers", None)
        scores.append(card["quality"]["metrics"]["cosine"]["value"]["value"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert run(smoke(root, "evaluate", "measure=false", *QUICK)) == 0
    out = capsys.readouterr().out
    assert "cosine" in out
    assert "quality" in out


def test_compare_measures_models_side_by_side(searched, root, capsys, tmp_path):
    folder = next(path for path in (searched / "models").iterdir() if (path / "subnet.json").is_file())
    models = f"models=[{root / 'smoke' / 'model'},{folder},{folder / 'model_int8.onnx'}]"
    arguments = [text for text in smoke(root, "compare", models) if not text.startswith("model.path")]
    fast = [text for text in QUICK if text != "measure=false"]
    assert (
        run([*arguments, f"output={tmp_path}", "memory=false", "protocol.max_seconds=0.1", "show=markdown", *fast]) == 0
    )
    header, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [part.strip().replace("\\", "") for part in header.split("|")[3:6]] == [
        "model",
        folder.name,
        f"{folder.name}/model_int8",
    ]
    named = {row.split("|")[2].strip().replace("\\", ""): row.split("|")[3:6] for row in rows}
    assert named["cosine"][0].strip().startswith("1.00")
    assert all(cell.strip() != "-" for cell in named["latency ms p50"])
    cards = sorted(path.parent.name for path in tmp_path.glob("*/metrics.json"))
    assert cards == sorted(["model", folder.name, f"{folder.name}-model_int8"])
    assert (tmp_path / "comparison.csv").is_file()
    size = {
        card.name: json.loads((card / "metrics.json").read_text())["efficiency"]["size_mb"]
        for card in tmp_path.iterdir()
        if card.is_dir()
    }
    # So small a graph's operators weigh more than its weights: no file is bound to be smaller than another.
    assert len(size) == 3
    assert all(value > 0 for value in size.values())


def test_search_for_the_worst_group(root, capsys, tmp_path):
    small = world(tmp_path / "world")
    data, model = small.task.data, small.task.model
    arguments = [
        "search", f"root={root}", "study=groups", "task=text_classification", "distiller=logits", f"model.path={model}",
        f"task.data.path={data.path}", "task.data.group_columns=[group]", "task.data.calibration=16",
        "calibrate.batch_size=8", "task.max_length=32",
        "task.data.validation=60", "task.data.test=120", "objectives=[quality,macs,worst_group_accuracy]",
        "+objectives.constraints.ece=0.9", "evaluation.fairness.min_samples=10", "space=width", "search.num_trials=6",
        "space.choices.ffn=[0.5,1.0]", "search.sensitivity_evaluations=0", "search.allocated_starts=0",
        "finalists.count=1", "finalists.distil=0", "finalists.protocol.max_seconds=0.05",
        "workload.sequence_length=16", *FAST,
    ]  # fmt: skip
    assert run(arguments) == 0
    capsys.readouterr()
    report = json.loads((root / "groups" / "report.json").read_text())
    assert len(report["explored"]) == 0  # No latency was asked for, so none is drawn.
    assert [(goal["name"], goal["direction"], len(goal["limits"])) for goal in report["goals"]] == [
        ("accuracy", "maximize", 0), ("macs", "minimize", 0), ("worst_group_accuracy", "maximize", 0), ("ece", "", 1)
    ]  # fmt: skip
    # Measured of the teacher and of every exported model, in every precision, on the test split.
    assert all(0 <= row["metrics"][name] <= 1 for row in report["models"] for name in ("worst_group_accuracy", "ece"))
    told = json.loads((root / "groups" / "models" / "groups-1" / "metrics.json").read_text())
    own = next(row for row in report["models"] if row["name"] == "groups-1" and row["precision"] == "fp32")
    quality = told["quality"]["transformers"]
    assert quality["accuracy_low"] <= quality["accuracy"] == own["metrics"]["accuracy"] <= quality["accuracy_high"]
    assert told["measured"]["onnx fp32"]["p50_ms"] == own["measured"]["p50_ms"]
    assert run(["pareto", f"root={root}", "study=groups", *FAST]) == 0
    heading = capsys.readouterr().out
    for title in ("accuracy, max", "worst_group_accuracy, max", "ece, <= 0.9", "MACs, min"):
        assert title in heading
    assert run(["export", f"root={root}", "study=groups", "precision=[]", "temperature=true", *FAST]) == 0
    from search_spaces.checkpoint import load_subnet

    plain = next(path for path in (root / "groups" / "models").iterdir() if path.name == "groups-1")
    cooled = load_subnet(Path(capsys.readouterr().out.strip().splitlines()[-1]))
    ratio = load_subnet(plain).classifier.weight / cooled.classifier.weight
    assert ratio.std() < 1e-4 * ratio.mean()
    assert run([*arguments, "study=typo", "+objectives.goals.worst_group_acuracy=maximize"]) == 2
    assert "Did you mean 'worst_group_accuracy'" in capsys.readouterr().err


SMALL_PROFILE = ["space=width", "profile.num_subnets=12", "profile.held_out=3", "profile.active.start=10"]
FAST_PROFILE = ["profile.protocol.max_seconds=0.05", "profile.protocol.warmup_seconds=0.01"]


def test_profile_measures_what_it_needs_and_says_how_good_the_predictor_is(searched, root, capsys, monkeypatch):
    assert searched.is_dir()
    monkeypatch.setattr("latency_models.meters.peak_memory_mb", lambda job: 10.0 + 0.1 * callable(job))
    arguments = [*SMALL_PROFILE, *FAST_PROFILE, "profile.meters=[peak_memory_mb]"]
    assert run(smoke(root, "profile", *arguments, "profile.protocol.isolate=true")) == 0
    out = capsys.readouterr().out
    for text in ("Learning curve", "Drift: the reference model was", "latency_ms, judged on fresh", "parameters alone"):
        assert text in out
    for text in ("peak_memory_mb, judged on fresh", "noise floor %", "coverage %", "Kendall", "Throughput"):
        assert text in out
    picture = Path(out.strip().splitlines()[-1].rpartition(": ")[2])
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = picture.with_suffix(".jsonl").read_text().splitlines()
    assert len(rows) >= 1 + 10 + 3
    assert run(smoke(root, "profile", *arguments, "profile.protocol.isolate=true", "progress=plain")) == 0
    assert "Reusing the profile" in capsys.readouterr().err
    assert picture.with_suffix(".jsonl").read_text().splitlines() == rows


def test_a_profile_out_of_time_says_so_and_goes_on_next_time(searched, root, capsys):
    assert searched.is_dir()
    asked = smoke(root, "profile", *SMALL_PROFILE, *FAST_PROFILE, "workload.sequence_length=12", "progress=plain")
    assert run([*asked, "profile.budget_minutes=1e-9"]) == 2
    said = capsys.readouterr().err
    assert "profile.budget_minutes" in said
    assert run(asked) == 0
    assert "Learning curve" in capsys.readouterr().out


def test_a_second_device_borrows_from_the_first(searched, root, capsys):
    assert searched.is_dir()
    first = ["device=onnxruntime_cpu", "profile.num_subnets=22", "profile.active.target=0.0001", "profile.held_out=2"]
    assert run(smoke(root, "profile", "space=width", *FAST_PROFILE, *first)) == 0
    second = ["device=torch_cpu", "profile.num_subnets=8", "profile.held_out=2", "progress=plain"]
    assert run(smoke(root, "profile", "space=width", *FAST_PROFILE, *second)) == 0
    assert "Other devices' profiles: onnxruntime_cpu" in capsys.readouterr().err


def test_a_meter_that_there_is_not_is_refused(searched, root, capsys):
    assert searched.is_dir()
    assert run(smoke(root, "profile", "profile.meters=[joy]")) == 2
    assert "`profile.meters[0]` must be one of peak_memory_mb, energy_mj, but got 'joy'" in capsys.readouterr().err


def test_training_the_supernet_keeps_the_teacher(searched, root, capsys):
    assert searched.is_dir()
    assert run(smoke(root, "train", "space=homogeneous", "train.steps=3")) == 0
    assert "->" in capsys.readouterr().out
