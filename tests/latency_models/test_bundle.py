"""Bundles: small, whole, self-contained; and results that prove where they come from."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latency_models import bundle as bundle_module
from latency_models import runner
from latency_models.bundle import BundleError, Entry, Plan, write_bundle
from latency_models.device import Device
from latency_models.measurement import Measurement
from latency_models.results import ResultsError, encode, header_line, read_results
from latency_models.subnet_compiler import SubnetCompiler
from search_spaces.calibrate import calibrate
from search_spaces.cost import Workload
from search_spaces.supernet import Supernet
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs
from tests.models import tiny_batches, tiny_bert, tiny_space

PROTOCOL = {"warmup_seconds": 0.0, "burst": 1, "min_visits": 5, "max_seconds": 0.01, "chunk_size": 2, "retries": 0}
COUNT = 5
# Only what the standard library, numpy and ONNX Runtime bring: everything else of ours and theirs cannot be imported.
BARE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FORBIDDEN = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "scipy",
    "sklearn",
    "search_spaces",
    "nas",
    "pandas",
    "openvino",
}


@pytest.fixture(scope="module")
def compiler():
    teacher = tiny_bert()
    space = tiny_space(teacher)
    supernet = Supernet(teacher, calibrate(teacher, tiny_batches(), space), space)
    return SubnetCompiler(Device("home", "onnxruntime"), supernet, example_inputs(), POOLED_NAMES, deployable=Pooled)


@pytest.fixture(scope="module")
def subnets(compiler):
    space = compiler._supernet.space
    return [space.largest, space.smallest, *space.sample(np.random.default_rng(0), COUNT - 2)]


def make(directory: Path, compiler, subnets, **changes) -> dict:
    space = compiler._supernet.space
    plan = Plan(
        **{
            "device": Device("pi", "onnxruntime"),
            "workload": Workload(2, 7),
            "space": space.fingerprint,
            "shape": space.shape,
            "teacher": "abc",
            "protocol": PROTOCOL,
            **changes,
        }
    )
    inputs = {name: value.numpy() for name, value in example_inputs().items()}

    def entry(subnet):
        outputs = compiler.compile(subnet).outputs()
        return Entry(subnet, compiler.graph(subnet), {POOLED_NAMES[1]: outputs[POOLED_NAMES[1]]})

    return write_bundle(directory, plan, entry(space.teacher), (entry(subnet) for subnet in subnets), inputs)


@pytest.fixture
def bundle(compiler, subnets, tmp_path):
    directory = tmp_path / "bundle"
    make(directory, compiler, subnets)
    return directory


def start(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = BARE.replace("{forbidden}", repr(FORBIDDEN))
    command = [sys.executable, "-c", code, str(directory / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})


def test_a_bundle_is_measured_with_numpy_and_onnxruntime_alone(bundle, subnets):
    done = start(bundle)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT}/{COUNT}" in done.stderr
    found = read_results(bundle / "results.jsonl")
    assert found.finished
    assert not found.torn
    assert [row["name"] for row in found.rows].count("0000") == 1
    assert {row["name"] for row in found.rows} == {f"{index:04d}" for index in range(COUNT)}
    for row in found.rows:
        measurement = Measurement(*(tuple(row[name]) for name in ("samples", "times", "order", "reference")))
        assert measurement.n >= 5
        assert measurement.reference
    assert dict(found.fingerprint) == Device("pi", "onnxruntime").fingerprint()
    again = start(bundle)
    assert again.returncode == 0
    assert "5 of 5" in again.stderr
    assert read_results(bundle / "results.jsonl").rows == found.rows


def test_the_copied_code_is_ours_and_old_pythons_read_it(bundle):
    files = sorted((bundle / "code").rglob("*.py"))
    assert len(files) == len(bundle_module._MODULES)
    for file in files:
        original = Path(bundle_module.__file__).parents[1] / file.relative_to(bundle / "code")
        assert file.read_bytes() == original.read_bytes()
        ast.parse(file.read_text(), feature_version=(3, 10))


def test_weights_are_stored_once(bundle, compiler, subnets):
    graphs = [compiler.graph(subnet) for subnet in [compiler._supernet.space.teacher, *subnets]]
    tensors = [t.raw_data for graph in graphs for t in graph.graph.initializer if len(t.raw_data) >= 1024]
    distinct = sum(len(content) for content in set(tensors))
    # They travel one behind the other; unpacked, each begins where it can be mapped into memory.
    assert (bundle / "graphs" / "weights.packed").stat().st_size == distinct
    assert distinct < 0.5 * sum(len(content) for content in tensors)
    unpack(bundle)
    stored = (bundle / "graphs" / "weights.bin").stat().st_size
    assert distinct <= stored <= distinct + 4096 * len(set(tensors))
    import onnx

    graph = onnx.load(bundle / "graphs" / "0000.onnx")
    assert graph.graph.initializer[0].raw_data
    expected = {t.name: t.raw_data for t in compiler.graph(subnets[0]).graph.initializer}
    assert all(tensor.raw_data == expected[tensor.name] for tensor in graph.graph.initializer)


def unpack(directory: Path) -> None:
    runner.unpack(directory, json.loads((directory / "bundle.json").read_text())["weights"])


def test_large_weights_travel_at_half_precision(compiler, subnets, tmp_path, monkeypatch, capsys):
    make(tmp_path / "whole", compiler, subnets)
    monkeypatch.setattr(bundle_module, "_HALVED", 2048)
    make(tmp_path / "bundle", compiler, subnets)
    sizes = [(tmp_path / name / "graphs" / "weights.packed").stat().st_size for name in ("whole", "bundle")]
    assert sizes[1] < 0.7 * sizes[0]
    assert runner.main(tmp_path / "bundle", []) == 0, "it computes what it computes at home"
    import onnx

    graph = onnx.load(tmp_path / "bundle" / "graphs" / "0000.onnx")
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in compiler.graph(subnets[0]).graph.initializer}
    for tensor in graph.graph.initializer:
        own, whole = onnx.numpy_helper.to_array(tensor), expected[tensor.name]
        assert own.dtype == whole.dtype
        own, whole = own.astype(np.float64), whole.astype(np.float64)
        assert np.abs(own - whole).max() <= 1e-3 * np.abs(whole).max()
    # What is unpacked already stays; what was damaged since is unpacked again.
    weights = tmp_path / "bundle" / "graphs" / "weights.bin"
    good = weights.read_bytes()
    weights.write_bytes(b"x" * len(good))
    unpack(tmp_path / "bundle")
    assert weights.read_bytes() == good
    assert sorted(path.name for path in weights.parent.glob("weights.*")) == ["weights.bin", "weights.packed"]


def full(*args, **kwargs):
    raise OSError(28, os.strerror(28))


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(compiler, subnets, tmp_path, monkeypatch, capsys):
    make(tmp_path / "there", compiler, subnets)
    with monkeypatch.context() as patched:
        patched.setattr(bundle_module.np, "savez_compressed", full)
        with pytest.raises(BundleError, match=r"x cannot be written: No space left on device\.$"):
            make(tmp_path / "x", compiler, subnets)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    monkeypatch.setattr(runner.np, "frombuffer", full)
    monkeypatch.setattr(runner, "_append", full)
    assert runner.main(tmp_path / "there", []) == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path / 'there'}: No space left on device" in said
    assert not list((tmp_path / "there").rglob("*.unpacking"))


def test_what_half_precision_would_ruin_travels_whole():
    numbers = np.linspace(-1, 1, 1 << 15, dtype=np.float32)
    assert bundle_module._halved(numbers.tobytes()) is not None
    for ruined in (numbers * 1e6, numbers * 1e-7, np.where(numbers > 0.99, np.nan, numbers)):
        assert bundle_module._halved(ruined.astype(np.float32).tobytes()) is None
    assert bundle_module._halved(numbers[:64].tobytes()) is None


def test_checksums_are_those_of_sha256sum(bundle):
    command = ["sha256sum", "--quiet", "--check", "checksums.sha256"]
    assert subprocess.run(command, cwd=bundle, check=False, capture_output=True).returncode == 0


def test_the_same_contents_have_the_same_id(compiler, subnets, tmp_path):
    first, second = (make(tmp_path / name, compiler, subnets[:2]) for name in ("a", "b"))
    assert first == second
    assert make(tmp_path / "c", compiler, subnets[:2], seed=1)["id"] != first["id"]


def test_a_folder_that_is_no_bundle_is_left_alone(compiler, subnets, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(ValueError, match="must not exist, or be a bundle"):
        make(tmp_path / "mine", compiler, subnets[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failure_while_writing_leaves_nothing(compiler, subnets, tmp_path, monkeypatch):
    def broken(aside):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "_write_code", broken)
    with pytest.raises(BundleError, match="cannot be written: No space left on device"):
        make(tmp_path / "bundle", compiler, subnets[:1])
    assert not list(tmp_path.iterdir())


def test_a_stopped_run_goes_on_and_loses_at_most_a_torn_line(bundle, subnets):
    assert runner.run(bundle, minutes=1e-9) == 3
    path = bundle / "results.jsonl"
    assert runner.run(bundle) == 0
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert read_results(path).torn
    before = read_results(path).rows
    assert runner.run(bundle) == 0
    after = read_results(path)
    assert after.rows[:2] == before
    assert after.finished
    assert len({row["name"] for row in after.rows}) == COUNT


def test_results_can_be_streamed(bundle, capsys):
    assert runner.main(bundle, ["--stream"]) == 0
    said = capsys.readouterr()
    assert said.out == (bundle / "results.jsonl").read_text()
    assert "min left" in said.err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / "graphs" / "0001.onnx").write_bytes(b"x"), "0001.onnx was damaged or changed"),
        (lambda b: (b / "graphs" / "weights.packed").unlink(), "weights.packed is missing"),
        (lambda b: (b / "checksums.sha256").unlink(), "is it a whole bundle?"),
        (lambda b: (b / "results.jsonl").write_text("nonsense\n"), "line 1: is damaged"),
        (lambda b: (b / "results.jsonl").write_text(header_line("another", {})), "is of bundle another"),
    ],
)
def test_a_damaged_copy_is_not_measured(bundle, damage, message, capsys):
    damage(bundle)
    assert runner.main(bundle, []) == 1
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_results_of_another_machine_are_not_continued(bundle, capsys):
    identity = json.loads((bundle / "bundle.json").read_text())["id"]
    (bundle / "results.jsonl").write_text(header_line(identity, {"cpu": "another"}))
    assert runner.main(bundle, []) == 1
    assert "was begun on another machine" in capsys.readouterr().err


def test_a_runtime_that_computes_something_else_is_noticed(compiler, subnets, tmp_path, capsys):
    space = compiler._supernet.space
    inputs = {name: value.numpy() for name, value in example_inputs().items()}
    plan = Plan(Device("pi", "onnxruntime"), Workload(2, 7), space.fingerprint, space.shape, "abc", PROTOCOL)
    graph = compiler.graph(subnets[0])
    wrong = {POOLED_NAMES[1]: np.ones((2, 32), np.float32)}
    write_bundle(tmp_path / "b", plan, Entry(None, graph, {}), [Entry(subnets[0], graph, wrong)], inputs)
    assert runner.main(tmp_path / "b", []) == 1
    assert "comes out otherwise than at home" in capsys.readouterr().err


def lines(*rows: dict, bundle: str = "b") -> str:
    return header_line(bundle, {"cpu": "x"}) + "".join(encode(row, bundle) for row in rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("not json\n", "line 1: is damaged"),
        ('{"a": 1}\n', "line 1: has no checksum"),
        (encode({"format": "other", "bundle": "b"}, "b"), "line 1: must be of `format` hwnas-bundle-results"),
        (lines({"name": "0"}).replace('"name": "0"', '"name": "1"'), "line 2: the checksum does not fit"),
        (header_line("b", {}) + encode({"name": "0"}, "c"), "line 2: the checksum does not fit"),
        (lines({"name": "0"}, {"end": 2}), "must hold 2 rows, but holds 1"),
    ],
)
def test_results_are_checked_line_by_line(tmp_path, text, message):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_results(path)


def test_results_of_another_bundle_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(lines({"name": "0"}))
    assert read_results(path, "b").rows == ({"name": "0"},)
    with pytest.raises(ResultsError, match="is of bundle b, but must be of c"):
        read_results(path, "c")
    with pytest.raises(ResultsError, match="cannot be read: No such file"):
        read_results(tmp_path / "absent")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match="not a text of UTF-8"):
        read_results(path)
