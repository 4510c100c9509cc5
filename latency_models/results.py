"""What a bundle's runner brings back: JSON lines of which every one carries a checksum.

The first line says which bundle was measured on what; then one line a measured subnet; the last says that all is there.
Bundles carry this file: it needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT, VERSION = "hwnas-bundle", 1
MANIFEST, SUMS, RUNNER, CODE = "bundle.json", "checksums.sha256", "run.py", "code"
INPUTS, EXPECTED, RESULTS = "inputs.npz", "expected.npz", "results.jsonl"


class ResultsError(ValueError):
    """Results cannot be used; the message names the file, the line and what would help."""


@dataclass(frozen=True)
class Results:
    """The checked contents of a results file.

    Args:
        path: The file.
        bundle: The bundle's id.
        fingerprint: Of the device, taken there.
        rows: One mapping a measurement, in the order in which they were taken: ``name``, ``samples``, ``times``,
            ``order``, ``reference``, ``reference_level``.
        finished: Whether everything of the bundle was measured.
        torn: Whether the last line was cut short, which is left out.
    """

    path: Path
    bundle: str
    fingerprint: Mapping[str, str]
    rows: tuple[Mapping[str, Any], ...]
    finished: bool
    torn: bool = False


def encode(data: Mapping[str, Any], bundle: str) -> str:
    """One line with its checksum, line feed included."""
    return json.dumps({**data, "check": _checksum(data, bundle)}, sort_keys=True, allow_nan=False) + "\n"


def header_line(bundle: str, fingerprint: Mapping[str, str]) -> str:
    """The first line."""
    return encode({"format": f"{FORMAT}-results", "version": VERSION, "bundle": bundle, **_told(fingerprint)}, bundle)


def read_results(path: Path, bundle: str | None = None) -> Results:
    """Read and check a results file.

    Args:
        path: The file.
        bundle: The id that it must be of; any when None.

    Raises:
        ResultsError: It cannot be read, is of another bundle or version, or a line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: is not a text of UTF-8; copy it again from the device.") from error
    torn = bool(lines) and not lines[-1].endswith("\n")
    if torn:
        lines.pop()
    if not lines:
        raise ResultsError(f"{path}: is empty; run `python run.py` in the bundle on the device.")
    header = _decoded(lines[0], None, f"{path}, line 1")
    if header.get("format") != f"{FORMAT}-results" or header.get("version") != VERSION:
        raise ResultsError(f"{path}, line 1: must be of `format` {FORMAT}-results, version {VERSION}.")
    own = str(header["bundle"])
    if bundle is not None and own != bundle:
        raise ResultsError(f"{path}: is of bundle {own}, but must be of {bundle}; every bundle has its own results.")
    entries = [_decoded(line, own, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]
    rows = tuple(entry for entry in entries if "name" in entry)
    ends = [entry["end"] for entry in entries if "end" in entry]
    if ends and ends[-1] != len(rows):
        raise ResultsError(f"{path}: must hold {ends[-1]} rows, but holds {len(rows)}; copy it again from the device.")
    return Results(path, own, dict(header["fingerprint"]), rows, bool(ends), torn)


def _decoded(line: str, bundle: str | None, where: str) -> dict[str, Any]:
    """A line's data, its checksum compared and removed; a header is checked against the id in itself."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ResultsError(f"{where}: is damaged (not JSON); copy the file again from the device.") from error
    if not isinstance(data, dict) or not isinstance(data.get("check"), str):
        raise ResultsError(f"{where}: has no checksum; is it a file that `run.py` of a bundle wrote?")
    check = data.pop("check")
    if check != _checksum(data, str(data.get("bundle")) if bundle is None else bundle):
        raise ResultsError(f"{where}: the checksum does not fit; copy the file again, or measure again.")
    return data


def _checksum(data: Mapping[str, Any], bundle: str) -> str:
    text = bundle + json.dumps(data, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(fingerprint: Mapping[str, str]) -> dict[str, Any]:
    return {"fingerprint": dict(fingerprint)}
