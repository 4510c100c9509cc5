"""A search that is killed outright goes on when the same command is run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import optuna

from nas.engine.slots import abandoned
from nas.engine.storage import JournalStorage


def test_a_killed_search_goes_on(tmp_path):
    command = [sys.executable, "-m", "nas", "search", "experiment=smoke", f"root={tmp_path}"]
    command += ["progress=plain", "torch_threads=1", f"hydra.run.dir={tmp_path}/log", "search.only=true"]
    journal = tmp_path / "smoke" / "journal.log"
    # A session of its own: nothing that the search started may outlive it and go on for it.
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not (journal.is_file() and journal.read_bytes().count(b'"subnet"') >= 4):
            assert started.poll() is None, "the search ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Reusing the calibration" in ended.stderr
    assert "Reusing the profile" in ended.stderr
    study = optuna.load_study(study_name="smoke", storage=JournalStorage().open(tmp_path / "smoke").backend)
    finished = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and not abandoned(t)]
    assert len(finished) == 12
    subnets = [t.user_attrs["subnet"] for t in finished if t.state.name == "COMPLETE"]
    assert len(subnets) == len(set(subnets))
