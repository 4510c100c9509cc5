"""Bundles: everything that a machine needs to measure subnets with Python, numpy and ONNX Runtime alone.

A bundle is a folder. ``graphs/`` holds one ONNX graph a subnet; their weights lie in one file beside them, each tensor
once, however many subnets share it, and large ones at half precision: the runner writes them out as fp32, which is what
runs. ``run.py`` measures by the same protocol, and by the same code, as at home: the
files of this package that it needs are copied into ``code/``. What comes back is ``results.jsonl``
(`latency_models.results`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latency_models.backends.graph_file import load_graph
from latency_models.device import Device
from latency_models.results import CODE, EXPECTED, FORMAT, INPUTS, MANIFEST, RUNNER, SUMS, VERSION
from search_spaces.cost import Workload
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from onnx import ModelProto

_WEIGHTS, _PACKED = "weights.bin", "weights.packed"
_GRAPHS = "graphs"
# Smaller tensors stay in the graph: shapes and axes are read while it is loaded.
_SMALLEST = 1024
# Tensors of so many bytes travel at half precision, which latency does not depend on, unless they would lose more than
# this share of their largest value.
_HALVED, _LOSS = 1 << 16, 1e-3
# Loading maps the file into memory, page by page.
_PAGE = 4096
_MODULES = (
    *("__init__.py", "device.py", "measurement.py", "session.py", "profiler.py", "results.py", "runner.py"),
    *("backends/__init__.py", "backends/base.py", "backends/graph_file.py", "backends/onnxruntime.py"),
    *(
        "backends/byte_products.py",
        "backends/quantize.py",
        "backends/quantize_static.py",
        "backends/quantize_weights.py",
    ),
    *("backends/openvino.py", "backends/openvino_graph.py"),
    *("backends/tensorrt.py", "backends/tensorrt_operators.py"),
)
# Of a whole manifest.
_KEYS = {"id", "format", "version", "device", "workload", "space", "shape", "teacher", "protocol", "seed", "subnets"}
_START = '''\
"""Measures the subnets of this bundle; see README.txt. Needs Python >= 3.10, numpy and onnxruntime."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))

if __name__ == "__main__":
    from latency_models.runner import main

    sys.exit(main(Path(__file__).resolve().parent, sys.argv[1:]))
'''
_README = """\
A bundle of hwnas: {count} subnets, to be measured on the device {device!r}.

1. Copy this folder to the device. Install what it runs on: pip install numpy onnxruntime
2. There:  python3 run.py      Stop it and start it again as you like: it goes on where it was.
3. Bring results.jsonl back:  nas profile profile.import=results.jsonl  with the options that the bundle was made with.

Beside results.jsonl, only graphs/{weights} is written, once: {megabytes:.0f} MB. Nothing is sent anywhere.
`sha256sum -c checksums.sha256` checks the copy; run.py does so itself.
"""


class BundleError(RuntimeError):
    """A bundle cannot be written; the message says why in one line."""


@dataclass(frozen=True)
class Plan:
    """What a bundle is to measure.

    Args:
        device: Where it will run.
        workload: What one run processes.
        space: Fingerprint of the search space.
        shape: The teacher's sizes.
        teacher: Which teacher: a hash.
        protocol: Arguments of `latency_models.profiler.Profiler`.
        seed: Of the order.
        converted: Whether graphs already have the device's precision, or the device converts them.
    """

    device: Device
    workload: Workload
    space: str
    shape: ModelShape
    teacher: str
    protocol: Mapping[str, Any]
    seed: int = 0
    converted: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """One subnet of a bundle.

    Args:
        subnet: Its architecture; None for the reference model.
        graph: As the device will run it.
        expected: Its outputs on the bundle's inputs, computed here; empty where they are not to be compared.
    """

    subnet: SubnetConfig | None
    graph: ModelProto
    expected: Mapping[str, NDArray[Any]]


def write_bundle(
    directory: Path, plan: Plan, reference: Entry, entries: Iterable[Entry], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """Write a bundle; the folder appears when it is whole.

    Args:
        directory: Where to; an older bundle there is replaced, anything else is not.
        plan: What it is to measure.
        reference: The model that is measured throughout.
        entries: The subnets; read lazily, one graph in memory at a time.
        inputs: Of every run.

    Returns:
        The manifest, whose ``id`` results refer to.

    Raises:
        ValueError: The directory holds something else.
        BundleError: It cannot be written; nothing is left of it.
    """
    if directory.exists() and not (directory / MANIFEST).is_file():
        raise ValueError(f"bundle: {directory} must not exist, or be a bundle, but is something else.")
    aside = directory.with_name(directory.name + ".bundling")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        (aside / _GRAPHS).mkdir(parents=True)
        manifest = _write_graphs(aside, plan, reference, entries)
        np.savez(aside / INPUTS, **inputs)  # type: ignore[arg-type]
        _write_code(aside)
        readme = _README.format(
            count=len(manifest["subnets"]),
            device=plan.device.name,
            weights=_WEIGHTS,
            megabytes=manifest["weights"]["size"] / 1e6,
        )
        (aside / "README.txt").write_text(readme, encoding="utf-8")
        sums = "".join(f"{_digest(path)}  {path.relative_to(aside).as_posix()}\n" for path in _files(aside))
        manifest["id"] = hashlib.sha256((sums + json.dumps(manifest, sort_keys=True)).encode()).hexdigest()[:16]
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (aside / SUMS).write_text(f"{sums}{_digest(aside / MANIFEST)}  {MANIFEST}\n", encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        aside.rename(directory)
    except OSError as error:
        raise BundleError(f"bundle: {directory} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def read_manifest(file: Path) -> dict[str, Any] | None:
    """A bundle's manifest, or None where there is no whole one."""
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and set(manifest) >= _KEYS else None


def _write_graphs(aside: Path, plan: Plan, reference: Entry, entries: Iterable[Entry]) -> dict[str, Any]:
    expected: dict[str, NDArray[Any]] = {}
    subnets = []
    with (aside / _GRAPHS / _PACKED).open("wb") as file:
        store = _WeightStore(file)
        reference_file = f"{_GRAPHS}/reference.onnx"
        (aside / reference_file).write_bytes(store.without_weights(reference.graph))
        for index, entry in enumerate(entries):
            assert entry.subnet is not None
            name = f"{index:04d}"
            graph = f"{_GRAPHS}/{name}.onnx"
            (aside / graph).write_bytes(store.without_weights(entry.graph))
            expected |= {f"{name}/{key}": np.asarray(value) for key, value in entry.expected.items()}
            subnets.append({"name": name, "graph": graph, "subnet": entry.subnet.to_dict()})
    np.savez_compressed(aside / EXPECTED, **expected)  # type: ignore[arg-type]
    return {
        "format": FORMAT,
        "version": VERSION,
        "device": plan.device.to_dict(),
        "workload": plan.workload.to_dict(),
        "space": plan.space,
        "shape": asdict(plan.shape),
        "teacher": plan.teacher,
        "protocol": dict(plan.protocol),
        "seed": plan.seed,
        "converted": plan.converted,
        "reference": reference_file,
        "weights": {"file": f"{_GRAPHS}/{_WEIGHTS}", "packed": f"{_GRAPHS}/{_PACKED}", **store.told()},
        "subnets": subnets,
    }


class _WeightStore:
    """One file of tensors, each written once, that many graphs refer to, at the places that they have when unpacked.

    Args:
        file: Open for writing: takes them as they travel.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._places: dict[bytes, tuple[int, int]] = {}
        self._parts: list[tuple[int, int, bool]] = []
        self._size = 0
        self._unpacked = hashlib.sha256()

    def without_weights(self, graph: ModelProto) -> bytes:
        """The graph with its large tensors in the file; the graph that is given stays as it is."""
        from onnx import TensorProto

        copy = load_graph(graph.SerializeToString())
        for tensor in copy.graph.initializer:
            if not tensor.HasField("raw_data") or len(tensor.raw_data) < _SMALLEST:
                continue
            offset, length = self._place(tensor.raw_data, floats=tensor.data_type == TensorProto.FLOAT)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", _WEIGHTS), ("offset", str(offset)), ("length", str(length))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
        content: bytes = copy.SerializeToString()
        return content

    def told(self) -> dict[str, Any]:
        """What unpacks the file: per tensor its offset, its bytes, and whether it travels at half precision."""
        return {"size": self._size, "sha256": self._unpacked.hexdigest(), "parts": self._parts}

    def _place(self, content: bytes, *, floats: bool) -> tuple[int, int]:
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            half = _halved(content) if floats else None
            padding = -self._size % (_PAGE if len(content) >= _PAGE else 64)
            self._places[key] = (self._size + padding, len(content))
            self._parts.append((*self._places[key], half is not None))
            self._size += padding + len(content)
            self._file.write(content if half is None else half.tobytes())
            self._unpacked.update(b"\0" * padding)
            self._unpacked.update(content if half is None else half.astype("<f4").tobytes())
        return self._places[key]


def _halved(content: bytes) -> NDArray[np.float16] | None:
    """A large tensor at half precision; None where that would lose too much of it, or it is small."""
    if len(content) < _HALVED:
        return None
    values = np.frombuffer(content, "<f4")
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    largest = float(np.abs(values).max())
    return half if np.abs(half.astype("<f4") - values).max() <= _LOSS * largest else None


def _write_code(aside: Path) -> None:
    """The files of this package that measure, and what starts them."""
    package = Path(__file__).parent
    for name in _MODULES:
        target = aside / CODE / package.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / name, target)
    (aside / RUNNER).write_text(_START, encoding="utf-8")


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
