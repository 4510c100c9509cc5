"""Causal language models as a user meets them: searched for the time of a token, exported, judged, and wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from latency_models.backends.onnx_cache import empty_cache, generate
from nas.__main__ import run
from tests.cli.conftest import FAST
from tests.texts import running_text, tiny_language_model_folder

SIZES = ["task.block_size=16", "task.top_k=8", "task.data.train=32", "task.data.calibration=16"]
SIZES += ["task.data.validation=12", "task.data.test=14"]
SPACE = ["space=width_rank", "space.choices.heads=[0.5,1.0]", "space.choices.ffn=[0.5,1.0]", "space.round_to.ffn=16"]
SPACE += ["space.choices.rank_qkv=[0]", "space.per_block=[skip,ffn]"]
QUICK = [
    "calibrate.batch_size=4",
    "profile.num_subnets=12",
    "profile.held_out=4",
    "profile.protocol.max_seconds=0.1",
    "search.num_trials=8",
]
QUICK += ["search.sensitivity_evaluations=12", "search.uniform_starts=2", "search.allocated_starts=3"]
QUICK += ["finalists.count=1", "finalists.distil=1", "finalists.steps=3", "finalists.protocol.max_seconds=0.1"]
LEARN = ["distiller=next_token", "training=language_model"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    tiny_language_model_folder(folder / "model")
    running_text(folder / "text.txt")
    return folder


def arguments(world: Path, command: str, *more: str) -> list[str]:
    data = f"task.data.path={world / 'text.txt'}"
    return [command, f"root={world}", "task=causal_lm", f"model.path={world / 'model'}", data, *SIZES, *FAST, *more]


@pytest.fixture(scope="module")
def searched(world: Path) -> Path:
    decode = ["workload=decode", "workload.sequence_length=8", "study=words"]
    assert run(arguments(world, "search", *decode, *SPACE, *QUICK, *LEARN)) == 0
    return world / "words"


def test_a_search_improves_perplexity(searched: Path) -> None:
    report = json.loads((searched / "report.json").read_text())
    assert (report["quality"], report["higher_is_better"]) == ("log_perplexity", False)
    assert report["workload"]["phase"] == "decode"
    for row in report["models"]:
        assert row["metrics"]["perplexity"] == pytest.approx(np.exp(row["metrics"]["log_perplexity"]))
        assert row["measured"]["p50_ms"] > 0
    config = json.loads((searched / "config.json").read_text())
    assert config["objectives"]["goals"]["quality"] == "maximize"


def test_what_it_exported_generates_with_its_cache(searched: Path) -> None:
    from search_spaces.checkpoint import load_subnet

    folder = next(path for path in (searched / "models").iterdir() if (path / "subnet.json").is_file())
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    prompt = np.array([[9, 8, 7]])
    found = generate(session, empty_cache(str(folder / "model.onnx")), prompt, 5)
    import torch

    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones(1, 3, dtype=torch.int64)
    expected = load_subnet(folder).generate(torch.from_numpy(prompt), attention_mask=mask, **options)
    assert np.array_equal(found, expected.numpy())


def test_the_documentation_s_example_runs(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "causal-language-models.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    folder = next(path for path in (searched / "models").iterdir() if (path / "subnet.json").is_file())
    monkeypatch.chdir(folder)
    exec(compile(example, "example", "exec"), {})
    assert len(capsys.readouterr().out.split()) == 20  # The prompt is unknown words, which are not said.


def test_export_and_evaluate(searched: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["pick=fastest", "precision=[int8]", "measure.enabled=false"]
    assert run(["export", f"root={world}", "study=words", *options, *FAST]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    quick = ["evaluation.intervals.resamples=20", "memory=false", "protocol.max_seconds=0.1", "show=json"]
    decode = ["workload=decode", "workload.sequence_length=8"]
    assert run(arguments(world, "evaluate", f"candidate={folder}/model_int8.onnx", *decode, *quick)) == 0
    card = json.loads(capsys.readouterr().out)
    metrics = card["quality"]["metrics"]
    assert set(metrics) == {"log_perplexity", "perplexity", "accuracy", "agreement", "kl"}
    assert metrics["perplexity"]["retention"]["low"] <= metrics["perplexity"]["retention"]["value"]
    assert metrics["perplexity"]["higher_is_better"] is False
    assert (card["calibration"], card["fairness"], card["robustness"]) == (None, None, None)
    assert card["efficiency"]["macs"] > 0
    assert card["efficiency"]["latency_ms"]["p50"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.data.test=5000", "in blocks of 16 tokens: the splits"),
        ("task.block_size=5000", "`task.block_size` must be at most the model's 32 positions, but got 5000"),
        ("task.data.text_column=story", "column 'story' is not there; there are 'text'"),
        ("task.quality=bleu", "`task.quality` must be one of log_perplexity, perplexity, accuracy, agreement, kl"),
    ],
)
def test_mistakes_get_one_line(world: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(world, "calibrate", change)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert len(said) == 1


def test_encoders_have_no_cache(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = ["task=sentence_embedding", "task.data.calibration=8", "task.data.validation=12", "task.data.test=12"]
    data = [f"model.path={world / 'model'}", f"task.data.path={world / 'text.txt'}", f"root={world}"]
    assert run(["profile", *data, *others, "workload=decode", "space=width", *FAST]) == 2
    assert "`workload.phase` must be encode for a sentence_embedding task, but got 'decode'" in capsys.readouterr().err
