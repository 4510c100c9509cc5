"""What is refused leaves nothing behind, and what is not asked about is no reason to refuse."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from nas.__main__ import run
from nas.engine.journal import JOURNAL
from nas.engine.storage import URL_VARIABLE, DatabaseStorage
from nas.records import passwords_aside
from tests.cli.conftest import FAST
from tests.cli.test_commands import QUICK, smoke


@pytest.mark.parametrize(
    "wrong",
    [
        "search.num_trials=0",
        "sampler.name=os.system",
        "objectives.constraints.latency_ms=0.0001",
        "task.data.path=missing.csv",
        "model.path=missing",
        "space.choices.heads=[9]",
        "distiller=logits",
    ],
)
def test_a_refused_search_leaves_no_folder(searched, root, wrong):
    before = {path.name for path in root.iterdir()}
    assert searched.is_dir()
    assert run(["search", "experiment=smoke", f"root={root}", "study=refused", wrong, *FAST]) == 2
    assert {path.name for path in root.iterdir()} == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["search.rungs=[a]"], "`search.rungs[0]` must be a whole number >= 0, but got 'a'"),
        (["torch_device=cuda:99"], "`torch_device` must be one that torch sees here (auto, cpu"),
        (["search.pruner=MedianPruner"], "must be a mapping such as {name: MedianPruner}"),
        (["sampler.name=TheSampler"], "must be one of GuidedSampler, any class of optuna.samplers, but"),
        (["storage=postgresql", "storage.url=postgresql+psycopg://me:s3cr3t@host:port/x"], "me:***@host:port/x"),
    ],
)
def test_settings_of_a_search_are_checked_before_anything_is_measured(tmp_path, capsys, wrong, said):
    assert run(["search", "experiment=smoke", f"root={tmp_path}", *wrong, *FAST]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "s3cr3t" not in err
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_storage_that_cannot_be_reached_is_told_before_anything_is_measured(tmp_path, capsys):
    url = f"storage.url=sqlite:///{tmp_path}/nowhere/study.db"
    assert run(["search", "experiment=smoke", f"root={tmp_path}", "storage=postgresql", url, *FAST]) == 1
    assert "storage: cannot open sqlite" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_refused_job_of_a_sweep_leaves_no_folder(searched, root):
    assert searched.is_dir()
    wrong = ["objectives.constraints.latency_ms=0.0001,0.0002", f"hydra.sweep.dir={root}/logs/sweep"]
    assert run(["search", "-m", "experiment=smoke", f"root={root}", "study=refused", *wrong, *FAST]) == 2
    assert not list(root.glob("refused*"))
    assert not (root / JOURNAL).exists()


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]])
def test_no_file_keeps_the_password_of_a_storage(tmp_path, capsys, sweep):
    url = "storage.url=postgresql+psycopg://me:s3cr3t@localhost:1/db"
    asked = ["search", *sweep, "storage=postgresql", url, f"root={tmp_path}", "model.path=m", "task.data.path=x"]
    assert run([*asked, "search.num_trials=0", *FAST]) == 2
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "overrides.yaml"} <= {path.name for path in written}
    assert bool(sweep) == ("multirun.yaml" in {path.name for path in written})
    assert not [path for path in written if "s3cr3t" in path.read_text(encoding="utf-8")]
    assert "s3cr3t" not in capsys.readouterr().err


def test_a_password_is_moved_into_the_environment_before_anything_is_recorded(monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, "before")
    url = "postgresql+psycopg://me:s3cr3t@localhost/db"
    with passwords_aside(["storage=postgresql", f"storage.url='{url}'", "seed=1"]) as recorded:
        assert recorded == ["storage=postgresql", "seed=1"]
        assert repr(DatabaseStorage()) == "DatabaseStorage(url='postgresql+psycopg://me:***@localhost/db')"
    assert os.environ[URL_VARIABLE] == "before"
    with passwords_aside([f"storage.url={url}", "storage.url_from=MINE"]) as recorded:
        assert os.environ["MINE"] == url
        assert recorded == ["storage.url_from=MINE"]
    assert "MINE" not in os.environ
    for plain in (["storage.url=postgresql+psycopg://me@localhost/db"], [f"storage.url={url},{url}2"], []):
        with passwords_aside(plain) as recorded:
            assert recorded == plain


def test_a_password_from_a_file_is_hidden_when_the_job_starts(tmp_path, capsys):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nstorage:\n  url: postgresql+psycopg://me:s3cr3t@localhost:1/db\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    asked = ["search", "--config-dir", str(tmp_path / "own"), "experiment=mine", "storage=postgresql"]
    places = [f"root={tmp_path}/runs", "model.path=m", "task.data.path=x"]
    assert run([*asked, *places, "search.num_trials=0", *FAST]) == 2
    assert "s3cr3t" not in capsys.readouterr().err
    written = [path.read_text(encoding="utf-8") for path in (tmp_path / "runs").rglob("*.yaml")]
    assert any("me:***@localhost" in text for text in written)
    assert not [text for text in written if "s3cr3t" in text]


def test_a_graph_is_judged_beside_damaged_weights(searched, root, tmp_path, capsys):
    folder = next(path for path in (searched / "models").iterdir() if (path / "subnet.json").is_file())
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "model.safetensors").write_bytes(b"no tensors at all")
    (damaged / "tokenizer.json").write_text("{", encoding="utf-8")
    fast = [text for text in QUICK if text != "measure=false"]
    costs = ["memory=false", "protocol.max_seconds=0.1", "show=json", "progress=plain"]
    arguments = smoke(root, "evaluate", f"candidate={damaged / 'model.onnx'}", *fast, f"output={tmp_path}", *costs)
    assert run(arguments) == 0
    said = capsys.readouterr()
    card = json.loads(said.out)
    assert card["model"]["kind"] == "onnx"
    assert (card["efficiency"]["parameters"], card["efficiency"]["macs"]) == (None, None)
    assert card["efficiency"]["latency_ms"]["p50"] > 0
    assert "not counted" in said.err
    # The folder itself is refused.
    assert run(smoke(root, "evaluate", f"candidate={damaged}", *QUICK)) == 2
