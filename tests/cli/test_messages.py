"""Mistakes get one clear line, and help says what there is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nas.__main__ import COMMANDS, run, usage
from tests.cli.conftest import FAST

SEARCH = ("search", "experiment=smoke", "root={root}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search", "model.path=nowhere", "task.data.path=nowhere.csv"], "nowhere"),
        ([*SEARCH, "serach.num_trials=3"], "search.num_trials"),
        ([*SEARCH, "device=onnxruntime_gpu"], "unknown device"),
        ([*SEARCH, "device.backend=nothing", "study=a"], "`device.backend` must be one of"),
        ([*SEARCH, "task.data.text_column=nope", "study=b"], "nope"),
        ([*SEARCH, "task.data.calibration=99999", "study=c"], "99999"),
        ([*SEARCH, "workload.sequence_length=999", "study=f"], "`workload.sequence_length` must be at most"),
        ([*SEARCH, "search.num_trials=-3", "study=g"], "`search.num_trials` must be"),
        ([*SEARCH, "nonsense"], "options are written name=value, but got 'nonsense'"),
        ([*SEARCH, "--bogus"], "unknown flag '--bogus'"),
        (["search", "experiment=smoke", "root=/proc/nowhere"], "is the path right, and may it be written?"),
        ([*SEARCH, "study=a/b"], "`study` must be a plain name"),
        (
            [*SEARCH, "study=d", "+objectives.constraints.latency_ms=0.0001"],
            "no subnet of the space keeps to latency_ms",
        ),
        ([*SEARCH, "sampler.name=os.system", "study=e"], "`sampler.name` must be one"),
        (
            [*SEARCH, "study=f", "device=torch_cpu", "+space.choices.precision=int8"],
            "int8 blocks run on onnxruntime and tensorrt",
        ),
        ([*SEARCH, "study=g", "search.judge_in=int8"], "one of device, fp32"),
        ([*SEARCH, "study=g", "profile.num_subnets=6"], "`profile.num_subnets` must be at least 8, but got 6"),
        ([*SEARCH, "study=g", "device.threads=9999"], "`device.threads` must be at most this machine's"),
        ([*SEARCH, "study=g", "search.workers=a"], "`search.workers` must be a whole number >= 1, but got 'a'"),
        ([*SEARCH, "study=g", "search.uniform_starts=-1"], "`search.uniform_starts` must be a whole number >= 0"),
        ([*SEARCH, "seed=1.5"], "`seed` must be a whole number >= 0, but got 1.5"),
        ([*SEARCH, "study=g", "objectives.confidence=a"], "`objectives.confidence` must be a number"),
        ([*SEARCH, "study=g", "objectives.constraints.latncy_ms=5"], "Did you mean 'latency_ms'?"),
        (["search", "model.path=x"], "task.data.path"),
        (["report", "root={root}", "study=missing"], "`study` must be one of"),
        (["serach"], "Did you mean 'search'"),
    ],
)
def test_mistakes_get_one_clear_line_and_exit_code_2(searched, root, capsys, overrides, message):
    assert searched.is_dir()
    extra = FAST if len(overrides) > 1 else []
    assert run([text.format(root=root) for text in overrides] + extra) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nas: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_nothing_stands_beside_the_one_line(tmp_path):
    command = [sys.executable, "-m", "nas", "report", f"root={tmp_path}", "study=missing", "hydra.run.dir=run"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2
    assert [line[:5] for line in ended.stderr.splitlines()] == ["nas: "]


def test_a_sweep_goes_on_after_a_failed_job(searched, root, capsys):
    assert searched.is_dir()
    sweep = ["-m", "study=missing,smoke", f"hydra.sweep.dir={root}/sweep"]
    assert run(["report", f"root={root}", *sweep, *FAST]) == 2
    said = capsys.readouterr()
    assert "`study` must be one of" in said.err
    assert "report.html" in said.out


def test_constraints_need_no_plus_sign(capsys):
    data = ["model.path=DIR", "task.data.path=texts.csv"]
    for plus in ("", "+", "++"):
        assert run(["search", *data, f"{plus}objectives.constraints.latency_ms=0.5x", "--cfg", "job"]) == 0
        assert "latency_ms: 0.5x" in capsys.readouterr().out


def test_debug_shows_where():
    with pytest.raises(ValueError, match="study"):
        run(["--debug", "report", "root=/nonexistent", "study=a/b", *FAST])


def test_usage_names_every_command(capsys):
    assert run([]) == 0
    assert capsys.readouterr().out.strip() == usage()
    assert len(usage().splitlines()) <= 15
    assert run(["--version"]) == 0


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_lists_options_with_defaults(command, capsys):
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"nas {command}" in out
    assert "root: runs" in out


def test_help_does_not_import_torch():
    code = "import sys; from nas.__main__ import run; run(['search', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
