"""Measures a bundle's subnets where it lies; started by its ``run.py``.

Bundles carry this file: it needs nothing but the standard library, numpy, and the runtime.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from latency_models.backends.base import Backend, BackendError, Run, make_backend
from latency_models.device import Device, fingerprint_difference
from latency_models.measurement import Measurement
from latency_models.profiler import Profiler
from latency_models.results import (
    EXPECTED,
    INPUTS,
    MANIFEST,
    RESULTS,
    SUMS,
    Results,
    ResultsError,
    encode,
    header_line,
    read_results,
)

# Smallest cosine between an output here and at home: kernels round differently, and those of int8 more so.
_SAME = 0.98


class RunnerError(RuntimeError):
    """The bundle cannot be measured; the message says why in one line."""


def main(directory: Path, arguments: Sequence[str]) -> int:
    """Measure what is missing; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the subnets of this bundle; stop and continue as you like.")
    parser.add_argument("--stream", action="store_true", help="also print every result on standard output")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; the next run continues")
    options = parser.parse_args(arguments)
    try:
        return run(directory, sys.stdout if options.stream else None, options.minutes)
    except KeyboardInterrupt:
        _say("stopped; run it again to continue.")
        return 130
    except OSError as error:
        _say(f"error: {error.filename or directory}: {error.strerror or error}")
        return 1
    except (RunnerError, BackendError, ResultsError) as error:
        _say(f"error: {' '.join(str(error).split())}")
        return 1


def run(directory: Path, stream: TextIO | None = None, minutes: float | None = None) -> int:
    """Check the bundle, continue its results, and measure; returns the exit code.

    Raises:
        RunnerError: The copy is damaged, or its results are of another machine.
        BackendError: The device cannot run it.
    """
    check_files(directory)
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    unpack(directory, manifest["weights"])
    device = Device(**manifest["device"])
    fingerprint = device.fingerprint()
    known = _begun(directory / RESULTS, manifest, fingerprint)
    if stream is not None:
        stream.write((directory / RESULTS).read_text(encoding="utf-8"))
        stream.flush()
    done = {row["name"] for row in known.rows}
    missing = [subnet for subnet in manifest["subnets"] if subnet["name"] not in done]
    _say(f"{len(done)} of {len(manifest['subnets'])} subnets are measured on {device.name}.")
    if not missing:
        _finish(directory / RESULTS, known, manifest, stream)
        return 0
    _measure(directory, manifest, device, missing, known, stream, minutes)
    left = _begun(directory / RESULTS, manifest, fingerprint)
    if len({row["name"] for row in left.rows}) < len(manifest["subnets"]):
        _say("time is up; run it again to continue.")
        return 3
    _finish(directory / RESULTS, left, manifest, stream)
    _say(f"all done: {directory / RESULTS}")
    return 0


def check_files(directory: Path) -> None:
    """Compare every file with its checksum.

    Raises:
        RunnerError: One is missing or differs.
    """
    sums = directory / SUMS
    if not sums.is_file():
        raise RunnerError(f"{directory} has no {SUMS}: is it a whole bundle?")
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = directory / name
        if not path.is_file():
            raise RunnerError(f"{name} is missing; copy the bundle again.")
        if _digest(path) != digest:
            raise RunnerError(f"{name} was damaged or changed; copy the bundle again.")


def unpack(directory: Path, weights: Mapping[str, Any]) -> None:
    """Write the weights out as fp32, from the half precision in which they travel; nothing where that is done.

    Raises:
        RunnerError: What comes out is not what it should be.
        OSError: There is no room for them.
    """
    target = directory / weights["file"]
    if target.is_file() and target.stat().st_size == weights["size"] and _digest(target) == weights["sha256"]:
        return
    aside = target.with_suffix(".unpacking")
    try:
        with (directory / weights["packed"]).open("rb") as source, aside.open("wb") as file:
            for offset, length, halved in weights["parts"]:
                file.write(b"\0" * (offset - file.tell()))
                content = source.read(length // 2 if halved else length)
                file.write(np.frombuffer(content, "<f2").astype("<f4").tobytes() if halved else content)
        if _digest(aside) != weights["sha256"]:
            raise RunnerError(f"{weights['packed']} does not unpack to what it should; copy the bundle again.")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _begun(path: Path, manifest: Mapping[str, Any], fingerprint: Mapping[str, str]) -> Results:
    """The results so far; begun where there are none. A line that was cut short is removed."""
    if not path.is_file() or not path.stat().st_size or b"\n" not in path.read_bytes():
        path.write_text(header_line(manifest["id"], fingerprint), encoding="utf-8")
    found = read_results(path, manifest["id"])
    if found.torn:
        content = path.read_bytes()
        path.write_bytes(content[: content.rindex(b"\n") + 1])
    if dict(found.fingerprint) != dict(fingerprint):
        difference = fingerprint_difference(found.fingerprint, fingerprint)
        raise RunnerError(f"{path.name} was begun on another machine ({difference}); move it away to begin anew.")
    return found


def _finish(path: Path, known: Results, manifest: Mapping[str, Any], stream: TextIO | None) -> None:
    if not known.finished:
        _append(path, encode({"end": len(known.rows)}, manifest["id"]), stream)


def _measure(
    directory: Path,
    manifest: Mapping[str, Any],
    device: Device,
    missing: Sequence[Mapping[str, Any]],
    known: Results,
    stream: TextIO | None,
    minutes: float | None,
) -> None:
    inputs = _arrays(directory / INPUTS)
    expected = _arrays(directory / EXPECTED)
    if manifest["converted"]:
        options = {name: value for name, value in device.options.items() if name != "quantization"}
        backend = make_backend(replace(device, precision="fp32", options=options))
    else:
        backend = make_backend(device)

    def job(subnet: Mapping[str, Any]) -> Callable[[], Run]:
        return lambda: _checked(backend, directory, subnet, inputs, expected)

    level = [float(np.median(row["reference"])) for row in known.rows if row["reference"]]
    profiler = Profiler(**manifest["protocol"], seed=manifest["seed"])
    measured = profiler.measure(
        [(subnet["name"], job(subnet)) for subnet in missing],
        lambda: backend.compile(str(directory / manifest["reference"]), inputs),
        reference_level=float(np.median(level)) if level else None,
        budget_seconds=None if minutes is None else 60 * minutes,
    )
    for row, text in _told(measured, len(missing)):
        _append(directory / RESULTS, encode(row, manifest["id"]), stream)
        _say(text)


def _told(measured: Iterator[tuple[str, Measurement]], total: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows with what is said of each: how many are done, and how long the rest will take."""
    started, done = time.monotonic(), set()
    for name, measurement in measured:
        again = "  again, because the machine was off its usual level" if name in done else ""
        done.add(name)
        left = (time.monotonic() - started) / len(done) * (total - len(done))
        row = {
            "name": name,
            "samples": [round(value, 6) for value in measurement.samples],
            "times": [round(value, 3) for value in measurement.times],
            "order": list(measurement.order),
            "reference": [round(value, 6) for value in measurement.reference],
            "reference_level": measurement.reference_level,
        }
        yield row, f"{len(done)}/{total}  {measurement.p50:.3g} ms{again or f'  about {left / 60:.0f} min left'}"


def _checked(
    backend: Backend,
    directory: Path,
    subnet: Mapping[str, Any],
    inputs: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
) -> Run:
    """A subnet, ready to run, once it is sure to compute here what it computes at home."""
    compiled = backend.compile(str(directory / subnet["graph"]), inputs)
    outputs = compiled.outputs()
    for name, value in outputs.items():
        key = f"{subnet['name']}/{name}"
        if key in expected and not (cosine := _cosine(value, expected[key])) >= _SAME:
            raise RunnerError(
                f"subnet {subnet['name']}: {name} comes out otherwise than at home (cosine {cosine:.3f}): "
                "the runtime of this device is broken for it, and its latency would mean nothing."
            )
    return compiled


def _cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.shape != expected.shape:
        return float("nan")
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def _append(path: Path, line: str, stream: TextIO | None) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
    if stream is not None:
        stream.write(line)
        stream.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
