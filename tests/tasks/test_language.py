"""Causal language models: blocks of running text, what is kept of the next token, and the deployed graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from torch.nn import functional

from latency_models.backends.onnx import export_onnx
from latency_models.backends.onnx_cache import has_cache
from nas.distillation.losses import Distiller, next_token_divergence
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings, distil
from nas.evaluation.evaluate import evaluate_model, evaluate_run, onnx_run, predict
from nas.evaluation.intervals import Resampling, estimate
from nas.evaluation.language import LANGUAGE, language_rows
from nas.tasks.attention import ATTENTION
from nas.tasks.data import TextData
from nas.tasks.language import CausalLM
from nas.tasks.next_token import NEXT_TOKEN, asked_tokens, log_likelihoods, score_next_tokens
from nas.tasks.splits import SPLITS
from search_spaces.cost import Workload
from search_spaces.families import FAMILIES
from tests.models import tiny
from tests.texts import running_text, tiny_language_model_folder

SMALL: dict[str, Any] = {"calibration": 8, "validation": 10, "test": 12}
MEASURES = {measure.name: measure for measure in LANGUAGE}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    folder = tmp_path_factory.mktemp("language")
    text = running_text(folder / "text.txt")
    return CausalLM(tiny_language_model_folder(folder / "model"), TextData(text, **SMALL), block_size=16, top_k=8)


@pytest.fixture(scope="module")
def teacher(task: CausalLM) -> TeacherOutputs:
    return TeacherOutputs(task)


def scored(logits: np.ndarray, tokens: np.ndarray, asked: np.ndarray | None = None, top_k: int = 5) -> np.ndarray:
    wanted = None if asked is None else torch.from_numpy(asked.astype(np.int64))
    return score_next_tokens(
        torch.from_numpy(logits), lambda values: values, torch.from_numpy(tokens), wanted, top_k
    ).numpy()


class TestBlocks:
    def test_blocks_are_the_text_without_overlap(self, task: CausalLM) -> None:
        text = Path(str(task.data.path)).read_text()
        stream = task.tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = [tuple(stream[start : start + 16]) for start in range(0, len(stream) - 15, 16)]
        found = [tuple(row) for split in SPLITS for row in task.samples.tokens(split).tolist()]
        assert sorted(found) == sorted(set(whole))
        assert {split: task.samples.size(split) for split in SPLITS[1:]} == SMALL

    def test_splits_are_the_same_in_every_run_and_from_a_cache(self, task: CausalLM, tmp_path: Path) -> None:
        again = [CausalLM(task.model, task.data, 16, cache_dir=str(tmp_path)) for _ in range(2)]
        for split in SPLITS:
            expected = task.samples.tokens(split)
            assert all(np.array_equal(other.samples.tokens(split), expected) for other in again)
            assert len({other.samples.fingerprint(split) for other in (task, *again)}) == 1
        other = CausalLM(task.model, TextData(str(task.data.path), seed=1, **SMALL), 16)
        assert not np.array_equal(other.samples.tokens("test"), task.samples.tokens("test"))

    def test_a_token_that_begins_every_text_begins_every_block(self, task: CausalLM, tmp_path: Path) -> None:
        model = tiny_language_model_folder(tmp_path, begin=True)
        own = CausalLM(model, task.data, 16).samples
        assert own.max_length == 16
        assert all((own.tokens(split)[:, 0] == 2).all() for split in SPLITS)
        assert not any((own.tokens(split)[:, 1:] == 2).any() for split in SPLITS)

    def test_a_source_s_own_splits_are_kept(self, task: CausalLM, tmp_path: Path) -> None:
        for seed, split in enumerate(("train", "validation", "test")):
            running_text(tmp_path / f"{split}.txt", seed=seed)
        own = CausalLM(task.model, TextData(str(tmp_path), calibration=8, validation=10, test=12), 16).samples
        text = task.tokenizer((tmp_path / "test.txt").read_text())["input_ids"]
        assert {tuple(row) for row in own.tokens("test").tolist()} <= {
            tuple(text[start : start + 16]) for start in range(0, len(text), 16)
        }

    def test_texts_of_a_table(self, task: CausalLM, tmp_path: Path) -> None:
        lines = Path(str(task.data.path)).read_text().splitlines()
        pd.DataFrame({"story": lines}).to_json(tmp_path / "t.jsonl", orient="records", lines=True)
        data = TextData(str(tmp_path / "t.jsonl"), text_column="story", **SMALL)
        assert np.array_equal(CausalLM(task.model, data, 16).samples.tokens("test"), task.samples.tokens("test"))

    def test_batches_of_long_blocks_are_smaller(self, task: CausalLM) -> None:
        long = CausalLM(task.model, task.data, block_size=32).samples
        object.__setattr__(long, "blocks", {"train": np.zeros((9, 4096), dtype=np.int32)})
        assert [len(rows) for rows in long.order("train", 64)] == [2, 2, 2, 2, 1]


class TestNextToken:
    def test_columns_against_scipy(self) -> None:
        generator = np.random.default_rng(0)
        logits = generator.normal(size=(3, 7, 40)).astype(np.float32) * 3
        tokens = generator.integers(0, 40, (3, 7))
        found = scored(logits, tokens)
        expected = log_softmax(logits.astype(np.float64), axis=-1)[:, :-1]
        true = np.take_along_axis(expected, tokens[:, 1:, None], axis=-1)[..., 0]
        assert log_likelihoods(found) == pytest.approx(true, abs=1e-5)
        likeliest = np.argsort(-expected, axis=-1)[..., :5]
        assert np.array_equal(asked_tokens(found), likeliest)
        asked = generator.integers(0, 40, (3, 6, 4))
        named = scored(logits, tokens, asked)
        assert named[..., -4:] == pytest.approx(np.take_along_axis(expected, asked, axis=-1), abs=1e-5)

    def test_gradients_of_chunks_are_those_of_the_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        head, tokens = torch.nn.Linear(8, 30), torch.randint(0, 30, (2, 9))
        gradients = []
        for chunk in (512, 5):
            monkeypatch.setattr("nas.tasks.next_token._CHUNK", chunk)
            hidden = torch.linspace(-1, 1, 2 * 9 * 8).reshape(2, 9, 8).requires_grad_()
            head.zero_grad()
            score_next_tokens(hidden, head, tokens, None, 4)[..., 0].mean().backward()
            gradients.append((hidden.grad, head.weight.grad.clone()))
        whole = torch.linspace(-1, 1, 2 * 9 * 8).reshape(2, 9, 8).requires_grad_()
        head.zero_grad()
        (-functional.cross_entropy(head(whole[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())).backward()
        for own, weight in gradients:
            assert torch.allclose(own, whole.grad, atol=1e-6)
            assert torch.allclose(weight, head.weight.grad, atol=1e-6)

    @given(seed=st.integers(0, 1000), top_k=st.integers(1, 20))
    @settings(max_examples=30, deadline=None)
    def test_divergence_is_at_most_the_whole_one(self, seed: int, top_k: int) -> None:
        generator = np.random.default_rng(seed)
        student, teacher = (generator.normal(size=(2, 4, 20)).astype(np.float32) * 2 for _ in range(2))
        tokens = generator.integers(0, 20, (2, 4))
        reference = scored(teacher, tokens, top_k=top_k)
        own = scored(student, tokens, asked_tokens(reference), top_k)
        found = MEASURES["kl"].compute(language_rows(own, reference, tokens))
        full = rel_entr(softmax(teacher, axis=-1), softmax(student, axis=-1)).sum(axis=-1)[:, :-1].mean()
        assert -1e-6 <= found <= full + 1e-5
        if top_k >= 19:  # Of the last token nothing is left to say.
            assert found == pytest.approx(full, abs=1e-4)
        loss = next_token_divergence(torch.from_numpy(own), torch.from_numpy(reference))
        assert loss.item() == pytest.approx(found, abs=1e-4)

    def test_other_tokens_than_the_teacher_s_are_refused(self) -> None:
        generator = np.random.default_rng(0)
        tokens = generator.integers(0, 20, (2, 4))
        sides = [scored(generator.normal(size=(2, 4, 20)).astype(np.float32), tokens) for _ in range(2)]
        with pytest.raises(ValueError, match="must be asked about the tokens that its teacher names"):
            language_rows(*sides, tokens)


class TestQuality:
    def test_perplexity_is_that_of_cross_entropy(self, task: CausalLM, teacher: TeacherOutputs) -> None:
        model = task.load_model()
        found = evaluate_model(model, task, teacher, "test", batch_size=5)
        batch = task.samples.batch("test", np.arange(12))
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1].flatten(0, 1)
        loss = functional.cross_entropy(logits, batch["input_ids"][:, 1:].flatten()).item()
        assert found["log_perplexity"] == pytest.approx(loss, abs=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert (found["agreement"], found["kl"]) == (1.0, pytest.approx(0.0, abs=1e-6))

    @pytest.mark.parametrize("model_type", [t for f in FAMILIES if f.causal for t in f.model_types])
    def test_every_causal_family(self, task: CausalLM, teacher: TeacherOutputs, model_type: str) -> None:
        model = tiny(model_type, 3, language_model=True)
        found = evaluate_model(model, task, teacher, "validation")
        batch = task.samples.batch("validation", np.arange(10))
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1].flatten(0, 1)
        loss = functional.cross_entropy(logits, batch["input_ids"][:, 1:].flatten()).item()
        assert found["log_perplexity"] == pytest.approx(loss, abs=1e-5)

    def test_less_is_better(self, task: CausalLM) -> None:
        from nas.engine.limits import Objectives
        from nas.evaluation.aspects import lower_is_better

        names = [name for name in MEASURES if lower_is_better(name, task)]
        assert names == ["log_perplexity", "perplexity", "kl"]
        goals = Objectives({"quality": "maximize", "latency_ms": "minimize"})
        assert goals.with_quality("kl", lower_is_better=True).goals == {"kl": "minimize", "latency_ms": "minimize"}
        assert goals.with_quality("accuracy").goals["accuracy"] == "maximize"

    def test_intervals_are_paired_over_blocks(self, task: CausalLM, teacher: TeacherOutputs) -> None:
        student = tiny("llama", 5, language_model=True)
        outputs = predict(lambda batch: task.outputs(student, batch), task, "test", teacher=teacher)
        own, other = (task.tables("test", side, teacher.main("test")) for side in (outputs, teacher.main("test")))
        found = estimate(MEASURES["perplexity"], own, other, Resampling(200))
        assert found.samples == 12
        assert found.value.low < found.value.value < found.value.high
        assert found.retention is not None
        assert found.retention.value == pytest.approx(found.teacher.value / found.value.value)

    def test_only_few_numbers_a_token_are_stored(self, task: CausalLM, teacher: TeacherOutputs) -> None:
        assert teacher.arrays("train")[NEXT_TOKEN].shape == (task.samples.size("train"), 15, 2 + 2 * 8)
        assert teacher.inputs("train", np.array([3, 1]))["asked_tokens"].shape == (2, 15, 8)

    def test_a_student_learns_from_the_teacher_and_from_the_text(self, task: CausalLM, teacher: TeacherOutputs) -> None:
        training = TrainSettings(batch_size=8, learning_rate=3e-3, precision="fp32", freeze_embeddings=False)
        before = evaluate_model(tiny("llama", 5, language_model=True), task, teacher, "validation")
        cases = ((Distiller.default(task), "kl", 0.6), (Distiller(labels=1.0), "log_perplexity", 0.98))
        for distiller, measure, share in cases:
            student = tiny("llama", 5, language_model=True)
            distil(student, task, teacher, distiller, training, steps=30)
            assert evaluate_model(student, task, teacher, "validation")[measure] < share * before[measure]
        assert Distiller.default(task) == Distiller(next_token=1.0)

    def test_states_of_every_block(self, task: CausalLM) -> None:
        batch = task.samples.batch("test", [0, 1])
        found = task.outputs(task.load_model(), batch, ("hidden", "hidden_states", "inner_states"))
        assert found["hidden"].shape == (2, 16, 32)
        assert found["hidden_states"].shape == (3, 2, 16, 32)
        assert torch.equal(found["inner_states"], found["hidden_states"][:2])

    def test_stored_queries_keys_and_values_are_the_teachers(self, task: CausalLM) -> None:
        rows = np.array([4, 1])
        with torch.inference_mode():
            expected = task.outputs(task.load_model(), task.samples.batch("test", rows), ATTENTION)
        stored = TeacherOutputs(task, ATTENTION).batch("test", rows)
        assert [stored[name].shape for name in ATTENTION] == [(2, 16, 32), (2, 16, 16), (2, 16, 16)]
        assert all(torch.allclose(stored[name], expected[name], atol=5e-3) for name in ATTENTION)

    def test_a_student_learns_causal_relations(self, task: CausalLM) -> None:
        teacher, student = TeacherOutputs(task, ATTENTION), tiny("llama", 5, language_model=True)
        training = TrainSettings(batch_size=8, learning_rate=3e-3, precision="fp32")
        trained = distil(student, task, teacher, Distiller(relations=1.0), training, steps=20)
        assert sum(trained.losses[-3:]) < 0.7 * sum(trained.losses[:3])


class TestDeployed:
    def test_inputs_of_prompts_and_of_one_more_token(self, task: CausalLM) -> None:
        for phase in ("encode", "prefill"):
            inputs = task.example_inputs(Workload(2, 9, phase))  # type: ignore[arg-type]
            assert [tuple(value.shape) for value in inputs.values()] == [(2, 9), (2, 9)]
        inputs = task.example_inputs(Workload(2, 9, "decode"))
        assert [tuple(value.shape) for value in inputs.values()] == [(2, 1), (2, 10)]
        assert task.deployable(task.load_model())(**inputs)[0].shape == (2, 1, 97)

    def test_the_module_says_what_the_model_says(self, task: CausalLM) -> None:
        model, batch = task.load_model(), task.samples.batch("test", [0, 1, 2])
        with torch.inference_mode():
            assert torch.allclose(task.deployable(model)(**batch)[0], model(**batch).logits, atol=1e-5)

    def test_the_graph_scores_as_its_model(self, task: CausalLM, teacher: TeacherOutputs) -> None:
        student = tiny("llama", 5, language_model=True)
        graph = export_onnx(task.deployable(student), task.example_inputs(Workload()), task.output_names)
        assert has_cache(graph)
        expected = evaluate_model(student, task, teacher, "validation")
        found = evaluate_run(onnx_run(graph.SerializeToString(), task), task, teacher, "validation", 1)
        assert found == pytest.approx(expected, abs=1e-3)


class TestMistakes:
    def test_settings(self) -> None:
        data = TextData("x.txt")
        for changes, message in (
            ({"quality": "cosine"}, "`quality` must be one of log_perplexity, perplexity, accuracy, agreement, kl"),
            ({"block_size": 1}, "`block_size` must be a whole number >= 2, but got 1"),
            ({"top_k": 0}, "`top_k` must be a whole number >= 1, but got 0"),
        ):
            with pytest.raises(ValueError, match=message):
                CausalLM("m", data, **changes)
        with pytest.raises(ValueError, match="`label_column` must be empty for running text, but got 'label'"):
            CausalLM("m", TextData("x.txt", label_column="label"))

    def test_text_that_is_too_short(self, task: CausalLM, tmp_path: Path) -> None:
        running_text(tmp_path / "t.txt", lines=2)
        with pytest.raises(ValueError, match=r"`block_size` must be at most .* split 'train' has \d+ and a block 64"):
            _ = CausalLM(task.model, TextData(str(tmp_path / "t.txt")), 64).samples

    def test_too_few_blocks(self, task: CausalLM) -> None:
        data = TextData(str(task.data.path), calibration=8, validation=10, test=500)
        with pytest.raises(ValueError, match=r"in blocks of 16 tokens: the splits \(test 500.* there are 1\d\d"):
            _ = CausalLM(task.model, data, 16).samples

    def test_a_column_that_is_not_there(self, task: CausalLM) -> None:
        data = TextData(str(task.data.path), text_column="story")
        with pytest.raises(ValueError, match="column 'story' is not there; there are 'text'"):
            _ = CausalLM(task.model, data, 16).samples

    def test_blocks_longer_than_the_model_s_positions(self, task: CausalLM) -> None:
        with pytest.raises(ValueError, match="`block_size` must be at most the model's 32 positions, but got 33"):
            CausalLM(task.model, task.data, 33).load_model()
