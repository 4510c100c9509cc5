"""Studies from the command line: fronts, several workers, sweeps."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from nas.__main__ import run
from nas.engine.storage import JournalStorage
from nas.sweeps import study_of_job, swept_keys
from nas.workers import share_cores, usable_cores
from tests.cli.conftest import FAST

SEARCH_ONLY = ["search.only=true", "search.num_trials=6"]


def trials_of(folder: Path, name: str = ""):
    backend = JournalStorage().open(folder).backend
    return optuna.load_study(study_name=name or folder.name, storage=backend).get_trials(deepcopy=False)


def search(root, *overrides):
    return run(["search", "experiment=smoke", f"root={root}", *FAST, *SEARCH_ONLY, *overrides])


def test_pareto_prints_the_front_with_what_was_measured(searched, root, capsys):
    assert searched.is_dir()
    assert run(["pareto", f"root={root}", "study=smoke"]) == 0
    out = capsys.readouterr().out
    assert "Pareto front of smoke" in out
    assert "latency_ms [low, high]" in out
    assert "measured int8 ms" in out
    assert all(name in out for name in ("knee", "fastest", "smallest"))
    assert sum(" M │" in line for line in out.splitlines()) <= 10


def test_pareto_shows_a_picked_member_block_by_block(searched, root, capsys):
    assert searched.is_dir()
    assert run(["pareto", f"root={root}", "study=smoke", "pick=fastest"]) == 0
    fastest = capsys.readouterr().out
    assert "blocks are left, hidden size" in fastest
    assert run(["pareto", f"root={root}", "study=smoke", "pick=best_under", "under.latency_ms=1000"]) == 0
    assert "1 of" in capsys.readouterr().out


def test_a_member_is_picked_by_its_trial(searched, root, capsys):
    assert searched.is_dir()
    assert run(["pareto", f"root={root}", "study=smoke", "pick=fastest"]) == 0
    number = next(line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("\u2502"))
    assert run(["pareto", f"root={root}", "study=smoke", f"pick={number}"]) == 0
    assert "blocks are left" in capsys.readouterr().out


def test_damaged_files_of_a_study_are_named(searched, root, tmp_path, capsys):
    copy = Path(shutil.copytree(searched, tmp_path / "smoke"))
    (copy / "report.json").write_text((searched / "report.json").read_text()[:999])
    assert run(["pareto", f"root={tmp_path}", "study=smoke"]) == 0
    said = capsys.readouterr()
    assert "knee" in said.out
    assert "nothing measured is shown" in said.err
    with (copy / "journal.log").open("a") as file:
        file.write("garbage{{\n")
    count = len((copy / "journal.log").read_text().splitlines())
    assert run(["pareto", f"root={tmp_path}", "study=smoke"]) == 2
    assert f"line {count} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study=nothing"], "`study` must be one of those below"),
        (["study=smoke", "count=0"], "`count` must be a whole number >= 1, but got 0"),
        (["study=smoke", "pick=best_under", "under.latency_ms=a"], "`under.latency_ms` must be a number, but got 'a'"),
        (["study=smoke", "pick=nicest"], "`pick` must be one of knee"),
        (["study=smoke", "pick=best_under"], "needs a bound, such as under.latency_ms=12"),
        (["study=smoke", "pick=99999"], "pick: trial 99999 is not on the front; those on it are"),
        (["study=smoke", "pick=best_under", "under.latency_ms=0.0001"], "no candidate keeps to"),
    ],
)
def test_mistakes_about_fronts(searched, root, capsys, overrides, message):
    assert searched.is_dir()
    assert run(["pareto", f"root={root}", *overrides]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(len(usable_cores()) < 2, reason="needs two cores")
def test_two_workers_share_the_trials_of_one_search(searched, root, capsys):
    assert searched.is_dir()
    assert search(root, "study=team", "search.workers=2", "search.num_trials=14") == 0
    assert "nas pareto study=team" in capsys.readouterr().out
    trials = trials_of(root / "team")
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 14
    assert len({trial.user_attrs["subnet"] for trial in trials}) == 14


def test_more_workers_than_cores_are_refused(searched, root, capsys):
    assert searched.is_dir()
    assert search(root, "study=crowd", "search.workers=500") == 2
    assert "`search.workers` must be from 1 to" in capsys.readouterr().err


def test_a_worker_that_cannot_work_says_why(searched, root, monkeypatch, capsys):
    assert searched.is_dir()
    monkeypatch.setattr("nas.workers.share_cores", lambda cores, workers: [[9999]] * workers)
    assert search(root, "study=broken", "search.workers=2") == 1
    assert "all 2 workers stopped early" in capsys.readouterr().err


def test_a_sweep_gives_every_job_a_study_of_its_own_in_one_storage(searched, root, capsys):
    assert searched.is_dir()
    assert search(root, "-m", "study=sweep", "+objectives.constraints.macs=0.8x,0.9x") == 0
    names = ["sweep-macs_0.8x", "sweep-macs_0.9x"]
    assert set(names) <= set(optuna.get_all_study_names(JournalStorage().open(root).backend))
    for name in names:
        assert len(trials_of(root / name)) == 6
    assert search(root, f"study={names[0]}", "+objectives.constraints.macs=0.8x") == 0
    assert len(trials_of(root / names[0])) == 6
    folders = list((root / "logs").glob("search-sweep-*"))
    assert len(folders) == 1
    assert {folder.name for folder in folders[0].iterdir() if folder.is_dir()} == {"0", "1"}


@pytest.mark.skipif(importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_in_parallel_processes(searched, root):
    assert searched.is_dir()
    sweep = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "+objectives.constraints.macs=0.8x,0.9x"]
    # A process of its own: the launcher pickles the command's function, which bears no probes of coverage.
    command = [sys.executable, "-m", "nas", "search", "experiment=smoke", f"root={root}", *FAST, *SEARCH_ONLY, *sweep]
    done = subprocess.run([*command, "study=parallel"], check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for name in ("parallel-macs_0.8x", "parallel-macs_0.9x"):
        assert len(trials_of(root / name)) == 6


def test_cores_are_shared_out_whole():
    assert share_cores([0, 1, 2, 3], 2) == [[0, 1], [2, 3]]
    assert share_cores([4, 5, 6, 7, 8], 3) == [[4, 5], [6], [7, 8]]
    with pytest.raises(ValueError, match="this machine's 2 cores"):
        share_cores([0, 1], 3)


def test_what_a_sweep_varies_names_its_studies():
    swept = ["device=a,b", "seed=range(3)", "space.min_blocks=2", "objectives.constraints.latency_ms=0.5x,0.7x"]
    keys = swept_keys(swept)
    assert keys == ["device", "seed", "objectives.constraints.latency_ms"]
    config = {"seed": 1, "objectives": {"constraints": {"latency_ms": "0.5x"}}, "device": {"name": "a"}}
    assert study_of_job("s", keys, config, {"device": "a"}) == "s-a-seed_1-latency_ms_0.5x"
    assert study_of_job("s", ["study", "seed"], config, {}) == "s"
