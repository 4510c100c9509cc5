"""Other machines: a bundle there and back, and a real sshd on this machine's loopback."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latency_models import runner
from latency_models.backends.base import BackendError, make_backend
from latency_models.device import Device
from nas.__main__ import run
from nas.smoke import make_smoke_assets
from tests.cli.test_commands import FAST, smoke

SMALL = [
    "profile.num_subnets=10", "profile.held_out=3", "space=width", "profile.protocol.max_seconds=0.02",
    "profile.protocol.warmup_seconds=0.0",
    "+profile.protocol.retries=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("runs")
    make_smoke_assets(made / "smoke")
    return made


@pytest.fixture(scope="module")
def measured(root, tmp_path_factory):
    """A bundle that was carried to another machine, measured, and whose results came back."""
    directory = tmp_path_factory.mktemp("carried") / "bundle"
    assert run(smoke(root, "bundle", "device=pi4", *SMALL, f"directory={directory}")) == 0
    assert runner.main(directory, []) == 0
    return directory


def test_a_device_elsewhere_needs_a_bundle_first(root, capsys):
    assert run(smoke(root, "profile", "device=another", *SMALL)) == 2
    assert "write a bundle with `nas bundle`" in capsys.readouterr().err


def test_results_that_come_back_make_a_predictor(root, measured, capsys, monkeypatch):
    # On a busy machine rows are measured at another pace than the others, which do not count: not what is tried here.
    monkeypatch.setattr("latency_models.profile.BROKEN", float("inf"))
    results = measured / "results.jsonl"
    assert run(smoke(root, "profile", "device=pi4", *SMALL, f"profile.import={results}", "progress=plain")) == 0
    said = capsys.readouterr()
    assert "Imported 13 measurements" in said.err
    assert "judged on" in said.out
    # Once they are home, nothing has to be named again, and importing them twice adds nothing.
    assert run(smoke(root, "profile", "device=pi4", *SMALL, "progress=plain")) == 0
    assert "13 subnets" in capsys.readouterr().err
    assert run(smoke(root, "profile", "device=pi4", *SMALL, f"profile.import={results}", "progress=plain")) == 0
    assert "Imported 0 measurements" in capsys.readouterr().err


def test_results_are_known_by_their_bundle_where_it_was_made(root, measured, tmp_path, capsys):
    copy = Path(shutil.copy(measured / "results.jsonl", tmp_path))
    assert run(smoke(root, "profile", "device=pi4", *SMALL, f"profile.import={copy}")) == 0
    other = tmp_path / "other"
    make_smoke_assets(other / "smoke")
    capsys.readouterr()
    assert run(smoke(other, "profile", "device=pi4", *SMALL, f"profile.import={copy}")) == 2
    assert "was not made under" in capsys.readouterr().err


def test_the_same_bundle_is_not_written_again(root, measured, capsys):
    assert run(smoke(root, "bundle", "device=pi4", *SMALL, f"directory={measured}", "progress=plain")) == 0
    said = capsys.readouterr()
    assert "Reusing the bundle" in said.err
    assert "13 subnets" in said.out


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda text: text.replace('"samples": [', '"samples": [9.0, ', 1), [], "the checksum does not fit"),
        (lambda text: text[: len(text) // 2], [], "its last line is cut short"),
        (lambda text: "".join(text.splitlines(keepends=True)[:5]), [], "holds 4 of 13 subnets"),
        (lambda text: text, ["workload.sequence_length=64"], "was measured for another workload"),
        (lambda text: text, ["device=another"], "was measured for another device"),
    ],
    ids=["checksum", "torn", "unfinished", "workload", "device"],
)
def test_results_that_do_not_fit_are_refused_in_one_line(root, measured, tmp_path, capsys, change, options, message):
    shutil.copy(measured / "bundle.json", tmp_path)
    path = tmp_path / "results.jsonl"
    path.write_text(change((measured / "results.jsonl").read_text()))
    assert run(smoke(root, "profile", "device=pi4", *SMALL, *options, f"profile.import={path}")) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nas: ")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    "damage",
    [lambda data: {"id": data["id"]}, lambda data: [data], lambda data: {**data, "id": "another"}],
    ids=["torn", "a list", "another bundle"],
)
def test_a_damaged_manifest_beside_results_is_as_none(root, measured, tmp_path, capsys, damage):
    """At home it is kept from when the bundle was made; elsewhere the results are of an unknown bundle."""
    shutil.copy(measured / "results.jsonl", tmp_path)
    data = json.loads((measured / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps(damage(data)))
    asked = [*SMALL, f"profile.import={tmp_path / 'results.jsonl'}"]
    assert run(smoke(root, "profile", "device=pi4", *asked)) == 0
    other = tmp_path / "other"
    make_smoke_assets(other / "smoke")
    capsys.readouterr()
    assert run(smoke(other, "profile", "device=pi4", *asked)) == 2
    assert "was not made under" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bundle", "profile"])
def test_a_device_of_this_machine_has_no_bundle_and_imports_nothing(root, measured, tmp_path, capsys, command):
    option = {"bundle": f"directory={tmp_path / 'b'}", "profile": f"profile.import={measured / 'results.jsonl'}"}
    assert run(smoke(root, command, *SMALL, option[command])) == 2
    assert "another machine, but onnxruntime_cpu is this one; name the other" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_unfinished_results_are_taken_where_that_is_asked_for(root, measured, tmp_path, capsys):
    shutil.copy(measured / "bundle.json", tmp_path)
    path = tmp_path / "results.jsonl"
    path.write_text("".join((measured / "results.jsonl").read_text().splitlines(keepends=True)[:12]))
    options = [f"profile.import={path}", "profile.partial=true", "progress=plain"]
    assert run(smoke(root, "profile", "device=pi4", *SMALL, *options)) == 0
    assert "Imported 0 measurements" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"transport": "pigeon"}, "`transport` must be one of local, ssh, bundle, but got 'pigeon'"),
        ({"transport": "ssh"}, "`host` must name the host where `transport` is ssh, but got ''"),
        ({"transport": "ssh", "host": "-oProxyCommand=x"}, "`host` must name the host"),
    ],
)
def test_how_a_device_is_reached_is_checked(fields, rule):
    with pytest.raises(ValueError, match=rule):
        Device("x", "onnxruntime", **fields)
    assert Device("x", "onnxruntime", transport="ssh", host="pi") == Device("x", "onnxruntime")


# -- ssh --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A real sshd on the loopback that knows one key; `ssh` finds it by a configuration of its own."""
    daemon = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if daemon is None or shutil.which("ssh") is None or os.name != "posix":
        pytest.skip("needs OpenSSH's sshd and ssh")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = folder / "home"
    home.mkdir()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile none\nStrictModes no\nPermitRootLogin yes\nUsePAM no\nPasswordAuthentication no\nSetEnv HOME={home}\n"
        f'ForceCommand cd {home} && eval "$SSH_ORIGINAL_COMMAND"\n'
    )
    (folder / "config").write_text(
        f"Host device\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile {folder}/known\n  LogLevel ERROR\n"
    )
    programs = folder / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    (programs / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    process = subprocess.Popen([daemon, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            pytest.skip("sshd does not start here")
        yield home, programs
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def reachable(host, monkeypatch):
    home, programs = host
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return home


SSH = ["device=another", "device.transport=ssh", "device.host=device", f"device.python={sys.executable}"]


def test_a_device_is_measured_over_ssh_and_continued(root, reachable, capsys):
    assert run(smoke(root, "profile", *SSH, *SMALL, "progress=plain")) == 0
    said = capsys.readouterr()
    assert "Copying" in said.err
    assert "13/13" in said.err
    assert "Imported 13 measurements" in said.err
    assert "judged on" in said.out
    (place,) = (reachable / ".cache" / "hwnas").iterdir()
    assert (place / "results.jsonl").is_file()
    # A profile that is lost here is brought home again; nothing is copied or measured twice.
    for profile in (root / "cache" / "profiles").glob("another-*.jsonl"):
        profile.unlink()
    assert run(smoke(root, "profile", *SSH, *SMALL, "progress=plain")) == 0
    said = capsys.readouterr().err
    assert "is on device already" in said
    assert "13 of 13 subnets are measured" in said
    assert "Imported 13 measurements" in said


def search(root: Path, *options: str) -> list[str]:
    few = ["search.num_trials=4", "search.sensitivity_evaluations=0", "finalists.count=1", "finalists.distil=0"]
    few.append("sampler=random")
    return ["search", "experiment=smoke", f"root={root}", *SMALL[:2], *SMALL[-1:], *few, *FAST, *options]


def test_a_search_measures_its_finalists_over_ssh(tmp_path, reachable):
    assert run(search(tmp_path, *SSH, "device.name=afar")) == 0
    report = json.loads((tmp_path / "smoke" / "report.json").read_text())
    assert len(report["models"]) == 4
    for row in report["models"]:
        assert row["measured"]["p50_ms"] > 0
        assert row["speedup_fp32"]["value"] > 0
    assert (tmp_path / "smoke" / "finalists" / "results.jsonl").is_file()


def test_finalists_of_a_carried_device_wait_for_their_results(root, tmp_path, capsys):
    """The first search writes a bundle of them; once its results lie in it, the next one reads them."""
    from hydra import compose, initialize_config_dir

    from nas.commands import plain
    from nas.config import conf_dir
    from nas.elsewhere import Elsewhere
    from nas.measuring import DeviceBench
    from nas.workbench import Workbench

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = plain(compose("profile", overrides=smoke(root, "profile", "device=another", *SMALL)[1:]))
    bench = Workbench(config)
    device = DeviceBench(bench)
    graphs = []
    for name, subnet in (("teacher", bench.space.teacher), ("small", bench.space.smallest)):
        graphs.append((subnet, tmp_path / f"{name}.onnx"))
        graphs[-1][1].write_bytes(device.graph(subnet).SerializeToString())
    arguments = (graphs, graphs[0][1], {**config["profile"]["protocol"], "retries": 0}, tmp_path / "finalists")
    assert Elsewhere(device).measure_graphs(*arguments) == [None, None]
    assert "The finalists were not measured: another is another machine" in bench.notes[0]
    assert runner.main(tmp_path / "finalists", []) == 0
    found = Elsewhere(device).measure_graphs(*arguments)
    assert all(measurement.p50 > 0 and measurement.reference for measurement in found)
    with pytest.raises(BackendError, match="is another machine"):
        make_backend(bench.device)


def test_a_host_that_does_not_answer_is_one_clear_line(root, reachable, capsys):
    options = ["device=another", "device.name=gone", "device.transport=ssh", "device.host=127.0.0.9"]
    assert run(smoke(root, "profile", *options, *SMALL)) == 1
    assert "device 'gone' at 127.0.0.9: cannot be reached" in capsys.readouterr().err


def test_a_host_without_what_it_needs_says_so(root, reachable, capsys):
    options = ["device=another", "device.name=bare", "device.transport=ssh", "device.host=device"]
    assert run(smoke(root, "profile", *options, *SMALL, "device.python=/bin/false")) == 1
    assert "must be Python >= 3.10 with numpy and onnxruntime" in capsys.readouterr().err


def test_a_device_that_disappears_keeps_what_was_measured(root, reachable, tmp_path, capsys):
    """Its python ends the connection in the middle; the next run goes on."""
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nif [ "$1" = run.py ] && [ ! -e {tmp_path}/once ]; then touch {tmp_path}/once; '
        f'{sys.executable} "$@" --minutes 0.000001; kill -9 $PPID; fi\nexec {sys.executable} "$@"\n'
    )
    (tmp_path / "python").chmod(0o755)
    options = [*SSH[:3], f"device.python={tmp_path}/python", "device.name=flaky"]
    assert run(smoke(root, "profile", *options, *SMALL)) == 1
    assert "device 'flaky' at device: " in capsys.readouterr().err
    assert run(smoke(root, "profile", *options, *SMALL, "progress=plain")) == 0
    assert "Imported 13 measurements" in capsys.readouterr().err


def test_what_is_sent_cannot_run_commands_of_its_own(root, reachable, tmp_path, capsys):
    marker = tmp_path / "marker"
    options = ["device=another", "device.name=sly", "device.transport=ssh", "device.host=device"]
    assert run(smoke(root, "profile", *options, *SMALL, f"'device.python=python3; touch {marker};'")) in (1, 2)
    assert not marker.exists()
