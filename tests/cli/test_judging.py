"""`nas evaluate` and `nas compare` on models and data that others made: what fits is judged, what does not is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from transformers import T5Config, T5ForSequenceClassification, T5Model

from latency_models.backends.onnx import export_onnx
from nas.__main__ import run
from nas.subjects import told_apart
from nas.tasks.models import load_classifier, load_tokenizer
from search_spaces.checkpoint import save_subnet
from search_spaces.cost import Workload
from tests.evaluation.judged import World, world
from tests.models import tiny_bert, tiny_space
from tests.texts import tiny_model_folder

FAST = [
    "task=text_classification", "task.max_length=24", "task.data.calibration=16", "task.data.validation=60",
    "task.data.test=120", "evaluation.intervals.resamples=20", "evaluation.robustness.samples=10",
    "evaluation.robustness.strengths=[0.3]", "measure=false", "torch_threads=1", "progress=quiet", "show=json",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judging")


@pytest.fixture(scope="module")
def small(place: Path) -> World:
    found = world(place / "world")
    found.student.save_pretrained(place / "student")
    return found


def evaluate(place: Path, *overrides: str, command: str = "evaluate") -> int:
    paths = [f"root={place / 'runs'}", f"model.path={place / 'world' / 'model'}"]
    return run([command, *FAST, *paths, f"task.data.path={place / 'world' / 'data.csv'}", *overrides])


def test_a_folder_of_somebody_else(small, place, capsys):
    assert evaluate(place, f"candidate={place / 'student'}", "task.data.group_columns=group") == 0
    card = json.loads(capsys.readouterr().out)
    column = card["fairness"]["columns"][0]
    # The three groups have 57, 4 and 59 samples: of the smallest nothing is claimed.
    assert [group["too_small"] for group in column["groups"]] == [False, True, False]
    assert column["worst"]["value"] is not None


def test_groups_that_are_all_too_small_are_shown_and_nothing_is_claimed(small, place, capsys):
    groups = ["task.data.group_columns=group", "evaluation.fairness.min_samples=100"]
    assert evaluate(place, f"candidate={place / 'student'}", *groups, "show=table") == 0
    out, err = capsys.readouterr()
    assert err.count("Groups of 'group' are not compared: 0 of 3 have 100 samples or more") == 1
    assert "accuracy of group even" in out
    assert "too few for a claim" in out
    assert "nothing is claimed: fewer than two groups are large enough" in " ".join(out.split())
    assert "Infinity" not in out
    assert "nan" not in out


def model_with(place: Path, name: str, **changes: object) -> Path:
    """A classifier with the teacher's tokenizer and another head."""
    labels = int(str(changes.pop("labels", 2)))
    return Path(tiny_model_folder(place / name, labels=labels, **changes))


def test_a_head_with_other_classes(small, place, capsys):
    folder = model_with(place, "three", labels=3)
    assert evaluate(place, f"candidate={folder}") == 2
    assert "as many classes as its teacher, which has 2, but has 3" in capsys.readouterr().err


def test_a_head_with_its_classes_in_another_order(small, place, capsys):
    names = {0: "LABEL_1", 1: "LABEL_0"}
    folder = model_with(place, "turned", id2label=names, label2id={name: at for at, name in names.items()})
    assert evaluate(place, f"candidate={folder}") == 2
    assert "order of the teacher's, but class 0 is 'LABEL_1' and not 'LABEL_0'" in capsys.readouterr().err


def test_a_model_with_another_tokenizer(small, place, capsys):
    folder = place / "foreign"
    shutil.copytree(place / "world" / "model", folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"w1":', '"v1":'), encoding="utf-8")
    assert load_tokenizer(str(folder)).vocab_size
    assert evaluate(place, f"candidate={folder}") == 2
    assert "must have its teacher's tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("turned", ["head", "tokenizer"])
def test_a_folder_of_ours_that_does_not_fit(small, place, capsys, turned):
    model, space, folder = small.task.load_model(), tiny_space(small.teacher), place / f"turned-{turned}"
    if turned == "head":
        model.config.id2label = {0: "LABEL_1", 1: "LABEL_0"}
    save_subnet(model, space.teacher, space.shape, folder, tokenizer=small.task.tokenizer)
    if turned == "tokenizer":
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        (folder / "tokenizer.json").write_text(text.replace('"w1":', '"v1":'), encoding="utf-8")
    assert evaluate(place, f"candidate={folder}") == 2
    said = {
        "head": "order of the teacher's, but class 0 is 'LABEL_1'",
        "tokenizer": "must have its teacher's tokenizer",
    }
    assert said[turned] in capsys.readouterr().err


@pytest.mark.parametrize("label", ["same", "score"])
def test_a_correlation_that_is_undefined_is_null(small, place, capsys, label):
    frame = pd.read_csv(place / "world" / "data.csv").assign(same=1.5, score=range(260))
    frame.to_csv(place / "numbers.csv", index=False)
    folder = model_with(place, f"number-{label}", labels=1)
    if label == "score":  # The other side is constant here.
        model = load_classifier(str(folder))
        model.classifier.weight.data.zero_()
        model.save_pretrained(folder)
    task = ["task=text_regression", f"task.data.path={place / 'numbers.csv'}", f"task.data.label_column={label}"]
    out = place / f"card-{label}"
    assert evaluate(place, f"model.path={folder}", *task, f"output={out}", "show=table") == 0
    told = capsys.readouterr()
    metrics = json.loads((out / "metrics.json").read_text())["quality"]["metrics"]
    for name in ("spearman", "pearson"):
        assert metrics[name]["value"] == {"value": None, "low": None, "high": None}
        assert metrics[name]["retention"] is None
    assert metrics["rmse"]["value"]["value"] > 0
    assert "undefined" in told.out
    assert "spearman undefined on 120 texts" in (out / "model_card.md").read_text()
    assert "Warning" not in told.err


def test_texts_longer_than_the_models_positions_and_a_folder_without_vocabulary(small, place, capsys):
    assert evaluate(place, "task.max_length=33") == 2
    assert "`task.max_length` must be at most 32 (the model's positions), but got 33." in capsys.readouterr().err
    folder = place / "bare"
    tiny_bert(labels=2).save_pretrained(folder)
    assert evaluate(place, f"model.path={folder}") == 2
    assert f"must hold the model's tokenizer, but '{folder}' has no vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [T5Model, T5ForSequenceClassification])
def test_an_encoder_decoder_is_told_which_families_are_known(small, place, capsys, kind):
    config = T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    folder = place / kind.__name__
    kind(config).save_pretrained(folder)
    small.task.tokenizer.save_pretrained(folder)
    task = "sentence_embedding" if kind is T5Model else "text_classification"
    assert evaluate(place, f"model.path={folder}", f"task={task}") == 2
    error = capsys.readouterr().err
    assert f"{folder}: `model_type` must be one of bert, " in error
    assert "but got 't5'" in error


def test_broken_folders_are_refused_in_one_line(small, place, capsys):
    cut, sizes = place / "cut", place / "sizes"
    other = place / "other-sizes"
    for folder in (cut, sizes, other):
        shutil.copytree(place / "world" / "model", folder)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    settings = json.loads((sizes / "config.json").read_text(encoding="utf-8"))
    (sizes / "config.json").write_text(json.dumps({**settings, "hidden_size": "big"}), encoding="utf-8")
    (other / "config.json").write_text(json.dumps({**settings, "intermediate_size": 48}), encoding="utf-8")
    wrong = [(cut, "incomplete metadata, file not fully covered"), (sizes, "expected int, got str")]
    for folder, said in (*wrong, (other, "intermediate.dense.bias' is (64,) and not (48,)")):
        for options in ([f"candidate={folder}"], [f"model.path={folder}"]):
            assert evaluate(place, *options) == 2
            error = capsys.readouterr().err
            assert str(folder) in error
            assert said in error
            assert "Traceback" not in error
            assert "LOAD REPORT" not in error


def test_graphs_that_others_exported(small, place, capsys):
    task = small.task
    model = task.deployable(load_classifier(small.task.model))
    graph = export_onnx(model, task.example_inputs(Workload(sequence_length=16)), task.output_names)
    good, bad, narrow = (place / f"{name}.onnx" for name in ("good", "bad", "narrow"))
    good.write_bytes(graph.SerializeToString())
    bad.write_bytes(b"no graph")
    for node in graph.graph.input:
        for size, axis in zip((1, 16), node.type.tensor_type.shape.dim, strict=True):
            axis.Clear()
            axis.dim_value = size
    narrow.write_bytes(graph.SerializeToString())
    assert evaluate(place, f"models=[{place / 'world' / 'model'},{good}]", command="compare") == 0
    cards = json.loads(capsys.readouterr().out)
    assert [card["model"]["kind"] for card in cards] == ["transformers", "onnx"]
    assert cards[0]["quality"]["metrics"]["accuracy"]["value"] == cards[1]["quality"]["metrics"]["accuracy"]["value"]
    assert evaluate(place, f"candidate={bad}") == 2
    assert f"{bad}: ONNX Runtime cannot read it" in capsys.readouterr().err
    assert evaluate(place, f"candidate={narrow}") == 2
    assert "batch and sequence as free dimensions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["candidate={}/nowhere"], "`candidate` must be a model's folder, an .onnx file or a hub name, but"),
        (["candidate={}/nowhere.onnx"], "nowhere.onnx' is not there"),
        (["candidate=nowhere"], "`candidate` must be a folder of `transformers` or a hub name; no model in 'nowhere'"),
        (["candidate={}/world/nowhere"], "world/model"),
        (["show=html"], "`show` must be one of table, markdown, json, but got 'html'"),
        (["split=dev"], "`split` must be one of train, calibration, validation, test, but got 'dev'"),
        (["task.data.group_columns=[gruop]"], "column 'gruop' is not there; there are 'text', 'label', 'group'"),
        (["task.data.path={}/unseen.csv"], "that does not fit is '7' in {}/unseen.csv: line 5"),
        (["task.data.path={}/more.csv"], "have 3 ('0', '1', '7'); the first that does not fit is '7' in"),
        (["task.data.path={}/latin.csv"], "line 3 must be utf-8, but byte 0xe9 is not"),
        (["task.data.path={}/empty.csv"], "split 'train' must not be empty"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(small, place, capsys, wrong, said):
    frame = pd.read_csv(place / "world" / "data.csv")
    frame.assign(label=[7 if row == 3 else label for row, label in enumerate(frame["label"])]).to_csv(
        place / "unseen.csv", index=False
    )
    frame.assign(label=[row % 3 if row % 3 < 2 else 7 for row in range(len(frame))]).to_csv(
        place / "more.csv", index=False
    )
    frame.iloc[:0].to_csv(place / "empty.csv", index=False)
    lines = (place / "world" / "data.csv").read_bytes().splitlines()
    (place / "latin.csv").write_bytes(b"\n".join([*lines[:2], b"caf\xe9,1,odd", *lines[2:]]))
    assert evaluate(place, *(text.format(place) for text in wrong)) == 2
    told = capsys.readouterr()
    assert said.format(place) in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


def test_labels_that_are_fewer_than_the_heads_are_told(small, place, capsys):
    folder = place / "wide"
    shutil.copytree(place / "world" / "model", folder)
    tiny_bert(labels=4).save_pretrained(folder)
    assert evaluate(place, f"model.path={folder}") == 0
    assert "head has 4 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("workload.sequence_length=512", "`workload.sequence_length` must be at most"),
        ("protocol.burst=0", "`protocol.burst` must be a whole number >= 1, but got 0"),
        ("+protocol.bursts=3", "bursts"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_judged(small, place, capsys, monkeypatch, wrong, said):
    monkeypatch.setattr("nas.cards.JudgeBench._card", lambda *_: pytest.fail("judged"))
    assert evaluate(place, f"candidate={place / 'student'}", "measure=true", wrong) == 2
    assert said in capsys.readouterr().err


def test_models_of_one_name_are_told_apart():
    paths = ["a/x/model", "b/x/model", "/c/other", "a/x/model_int8.onnx", "b/x/model_int8.onnx", "a/x/model"]
    names = ["a/x/model", "b/x/model", None, "a/x/model_int8", "b/x/model_int8", "a/x/model"]
    assert told_apart(paths) == names
    assert told_apart(["a/model", "model"]) == ["a/model", "model"]
    assert told_apart(["/r/one", "/r/two/model.onnx"]) == [None, None]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["models={0}/student"], "`models` must list folders or .onnx files"),
        (["models=[]"], "`models` must list folders or .onnx files"),
        (["models=[{0}/student]", "model.path={0}/world/data.csv"], "`model.path` must be a folder or a hub name"),
        (["models=[{0}/student]", "output={0}/world/data.csv"], "`output` must be a folder"),
    ],
)
def test_a_comparison_that_cannot_be_made(small, place, capsys, wrong, said):
    paths = [f"root={place / 'runs'}", f"task.data.path={place / 'world' / 'data.csv'}"]
    assert run(["compare", *FAST, *paths, *(text.format(place) for text in wrong)]) == 2
    assert said in capsys.readouterr().err


def test_a_model_whose_outputs_are_not_finite_is_named_among_others(small, place, capsys):
    broken = load_classifier(str(place / "student"))
    broken.classifier.bias.data[:] = float("nan")
    broken.save_pretrained(place / "broken")
    paths = [f"root={place / 'runs'}", f"task.data.path={place / 'world' / 'data.csv'}"]
    models = [f"models=[{place / 'student'},{place / 'broken'}]"]
    assert run(["compare", *FAST, *paths, f"model.path={place / 'world' / 'model'}", *models]) == 2
    assert f"{place / 'broken'}: the model's logits on 'test' must be finite" in capsys.readouterr().err
