"""An evaluation is right, repeats itself, never changes the supernet, and never runs the teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latency_models.backends.onnx import export_onnx
from latency_models.backends.quantize import quantize_int8
from nas.distillation.losses import Distiller
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings
from nas.evaluation.evaluate import Evaluator, evaluate_model, evaluate_run, onnx_run, predict
from nas.tasks.data import TextData
from nas.tasks.text import SentenceEmbedding, TextClassification
from search_spaces.calibrate import calibrate
from search_spaces.cost import Workload
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig
from search_spaces.supernet import Supernet
from tests.models import tiny_space
from tests.texts import texts, tiny_model_folder, write_lines

SMALL = SubnetConfig((BlockConfig(2, 2, 32), SKIPPED, BlockConfig(1, 1, 16)), 32)
SETTINGS = TrainSettings(learning_rate=2e-3, batch_size=8, precision="fp32")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SentenceEmbedding:
    folder = tmp_path_factory.mktemp("task")
    data = TextData(write_lines(folder / "texts.txt", texts(150)), calibration=16, validation=40, test=40)
    return SentenceEmbedding(
        tiny_model_folder(folder / "model"), data, 32, neighbours=3, cache_dir=str(folder / "cache")
    )


@pytest.fixture(scope="module")
def supernet(task: SentenceEmbedding) -> Supernet:
    model = task.load_model()
    space = tiny_space(model)
    return Supernet(model, calibrate(model, list(task.batches("calibration", 8)), space), space)


@pytest.fixture(scope="module")
def evaluator(task: SentenceEmbedding, supernet: Supernet) -> Evaluator:
    return Evaluator(supernet, task, Distiller(embedding=1.0, hidden_states=0.1), SETTINGS, precision="fp32")


def state(supernet: Supernet) -> dict[str, torch.Tensor]:
    found = {f"model.{name}": values.clone() for name, values in supernet.model.state_dict().items()}
    for name, weights in supernet.linear_weights(SMALL).items():
        found[name] = weights.weight.clone()
    return found


def test_a_narrower_stream_is_judged_and_distilled_on_what_its_teacher_gives_in_the_end(task: SentenceEmbedding):
    model = task.load_model()
    space = tiny_space(model, hidden_size=[16, 32])
    supernet = Supernet(model, calibrate(model, list(task.batches("calibration", 8)), space), space)
    made = Evaluator(supernet, task, Distiller(embedding=1.0, hidden=1.0), SETTINGS, precision="fp32")
    subnet = SubnetConfig(space.teacher.blocks, 16)
    before, after = made.evaluate(subnet), made.evaluate(subnet, steps=30)
    assert before["cosine"] < after["cosine"] < 1.0
    assert made.evaluate(subnet) == before
    every = Evaluator(supernet, task, Distiller(embedding=1.0, hidden_states=1.0), SETTINGS, precision="fp32")
    assert before["cosine"] < every.evaluate(subnet, steps=30)["cosine"] < 1.0


def test_the_largest_subnet_agrees_with_the_teacher_wholly(evaluator: Evaluator, supernet: Supernet) -> None:
    assert evaluator.evaluate(supernet.space.teacher) == pytest.approx(
        {"cosine": 1.0, "recall": 1.0, "spearman": 1.0}, abs=1e-5
    )


def test_activated_and_extracted_subnets_score_alike(evaluator: Evaluator, supernet: Supernet) -> None:
    activated = evaluator.evaluate(SMALL)
    assert evaluator.score(supernet.extract(SMALL)) == pytest.approx(activated, abs=1e-3)
    assert 0 < activated["cosine"] < 0.999


def test_distillation_helps_and_repeats_itself(evaluator: Evaluator) -> None:
    before = evaluator.evaluate(SMALL)
    first, again, other = (evaluator.evaluate(SMALL, steps=60, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first["cosine"] > before["cosine"] + 0.01
    assert evaluator.evaluate(SMALL) == before


def test_an_evaluation_never_changes_the_supernet(evaluator: Evaluator, supernet: Supernet) -> None:
    supernet.activate(supernet.space.teacher)
    before = state(supernet)
    evaluator.evaluate(SMALL, steps=3)
    model = evaluator.distil(SMALL, minutes=0.002)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    supernet.activate(supernet.space.teacher)
    after = state(supernet)
    assert set(after) == set(before)
    assert all(torch.equal(values, before[name]) for name, values in after.items())


def test_half_precision_judges_alike(evaluator: Evaluator, supernet: Supernet, task: SentenceEmbedding) -> None:
    half = Evaluator(supernet, task, evaluator.distiller, SETTINGS, evaluator.teacher, precision="bf16")
    found, expected = half.evaluate(SMALL), evaluator.evaluate(SMALL)
    assert found != expected
    assert found["cosine"] == pytest.approx(expected["cosine"], abs=0.01)
    with pytest.raises(ValueError, match="`precision` must be one of auto, fp32, bf16, but got 'fp8'"):
        Evaluator(supernet, task, precision="fp8")  # type: ignore[arg-type]


def test_a_device_of_int8_is_judged_as_its_graphs_are(
    evaluator: Evaluator, supernet: Supernet, task: SentenceEmbedding
) -> None:
    quantised = Evaluator(
        supernet, task, evaluator.distiller, SETTINGS, evaluator.teacher, precision="fp32", device_precision="int8"
    )
    example = task.example_inputs(Workload())
    for subnet in (supernet.space.teacher, SMALL):
        exported = export_onnx(task.deployable(supernet.extract(subnet)), example, task.output_names)
        run = onnx_run(quantize_int8(exported).SerializeToString(), task)
        deployed = evaluate_run(run, task, evaluator.teacher, batch_size=1)["cosine"]
        found, exact = quantised.evaluate(subnet)["cosine"], evaluator.evaluate(subnet)["cosine"]
        assert found == pytest.approx(deployed, rel=5e-3)
        assert found != exact
        assert evaluator.evaluate(subnet.on_device("int8"))["cosine"] == found
    distilled = quantised.evaluate(SMALL, steps=20)["cosine"]
    assert quantised.evaluate(SMALL)["cosine"] < distilled != evaluator.evaluate(SMALL, steps=20)["cosine"]


def test_the_teacher_never_runs_again(
    evaluator: Evaluator, supernet: Supernet, task: SentenceEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator.teacher.prepare(["train", "validation"])
    expected = evaluator.evaluate(SMALL, steps=2)
    seen: list[nn.Module] = []
    outputs = SentenceEmbedding.outputs

    def spy(self: SentenceEmbedding, model: nn.Module, *arguments: Any) -> Any:
        seen.append(model)
        return outputs(self, model, *arguments)

    monkeypatch.setattr(SentenceEmbedding, "outputs", spy)
    fresh = Evaluator(supernet, task, evaluator.distiller, SETTINGS, precision="fp32")
    assert fresh.evaluate(SMALL, steps=2) == expected
    assert len({id(model) for model in seen}) == 1
    assert seen[0] is not fresh.teacher._loaded


def test_predictions_keep_the_order_of_the_split(task: SentenceEmbedding) -> None:
    model = task.load_model()
    whole = predict(lambda batch: task.outputs(model, batch), task, "test", batch_size=7)["embedding"]
    with torch.inference_mode():
        for row in (0, 13, 39):
            alone = task.outputs(model, task.samples.batch("test", [row]))["embedding"][0]
            assert whole[row] == pytest.approx(alone.numpy(), abs=1e-5)


def test_an_onnx_file_scores_as_its_model(task: SentenceEmbedding, tmp_path: Path) -> None:
    model = task.load_model()
    with torch.no_grad():
        model.encoder.layer[2].output.dense.weight.mul_(0.3)
    teacher = TeacherOutputs(task)
    graph = export_onnx(task.deployable(copy.deepcopy(model)), task.example_inputs(Workload(2, 8)), task.output_names)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    expected = evaluate_model(model, task, teacher, "test")
    for source in (graph.SerializeToString(), str(tmp_path / "model.onnx")):
        for batch_size in (1, 16):
            run = onnx_run(source, task)
            assert evaluate_run(run, task, teacher, "test", batch_size) == pytest.approx(expected, abs=1e-2)
    classifier = TextClassification(task.model, TextData("x.csv", label_column="label"))
    with pytest.raises(ValueError, match="must have the output 'logits', but has 'last_hidden_state', 'sentence_emb"):
        onnx_run(graph.SerializeToString(), classifier)


def test_outputs_that_are_no_numbers(task: SentenceEmbedding) -> None:
    model = task.load_model()
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="the model's embedding on 'validation' must be finite"):
        evaluate_model(model, task, TeacherOutputs(task))


def test_a_loss_that_the_task_cannot_feed(task: SentenceEmbedding, supernet: Supernet) -> None:
    with pytest.raises(ValueError, match="`logits` needs logits"):
        Evaluator(supernet, task, Distiller(logits=1.0))


def test_classification_defaults(tmp_path: Path) -> None:
    lines = texts(90)
    rows = "".join(f"{line},{index % 2}\n" for index, line in enumerate(lines))
    (tmp_path / "data.csv").write_text("text,label\n" + rows)
    data = TextData(str(tmp_path / "data.csv"), label_column="label", calibration=8, validation=20, test=20)
    task = TextClassification(tiny_model_folder(tmp_path / "model", labels=2), data, 32)
    model = task.load_model()
    space = tiny_space(model)
    supernet = Supernet(model, calibrate(model, list(task.batches("calibration", 8)), space), space)
    evaluator = Evaluator(supernet, task, precision="fp32")
    whole, small = evaluator.evaluate(space.teacher), evaluator.evaluate(SMALL, steps=2)
    assert whole["agreement"] == 1.0
    assert whole["kl"] == pytest.approx(0.0, abs=1e-6)
    assert set(small) == {"accuracy", "macro_f1", "mcc", "agreement", "kl"}
    labels = task.samples.labels("validation")
    assert labels is not None
    chosen = evaluator.teacher.main("validation")["logits"].argmax(axis=1)
    assert whole["accuracy"] == pytest.approx(np.mean(chosen == labels))
