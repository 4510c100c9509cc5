"""Profiles: measured subnets of one device and workload, in an append-only file of JSON lines.

The first line says what was measured where; every further line is one measured subnet with its raw samples. A profile
may be killed at any moment: at worst its last line is torn, and the next run goes on after the last whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_models.measurement import Measurement
from latency_models.profile_lines import Header, Problem, ProfileError, Row, decode, read_row, row_data
from search_spaces.canonical import canonical
from search_spaces.subnet import SubnetConfig

__all__ = ["DeviceProfile", "Header", "Problem", "ProfileError", "Row", "quantity_of", "training_data"]

DRIFTED = 0.03
"""Share by which the reference model is off its usual level when a row's median is no longer taken as it is."""
BROKEN = 1.0
"""The same, when the row says nothing any more: beside work that doubles every time, proportions do not hold."""
MAX_TRIES = 6
"""Rows of one subnet after which it is not measured again, broken or not."""


class DeviceProfile:
    """Rows of one device, workload and search space, in the order in which they were measured.

    Get one with `DeviceProfile.read` (to look) or `DeviceProfile.open` (to go on measuring).

    Args:
        path: The file.
        header: What all rows have in common.
        rows: The measured subnets; one that was measured again occurs again.
        problems: Lines that were left out.
    """

    def __init__(self, path: Path, header: Header, rows: Iterable[Row] = (), problems: Iterable[Problem] = ()) -> None:
        self.path = path
        self.header = header
        self.rows = list(rows)
        self.problems = list(problems)

    @classmethod
    def read(cls, path: str | Path) -> DeviceProfile:
        """Read a profile; lines that break a rule are left out and told in `problems`.

        Raises:
            ProfileError: The file cannot be read or has no valid header.
        """
        path = Path(path)
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise ProfileError(f"{path}: cannot be read: {error.strerror}.") from error
        try:
            header = Header.from_dict(decode(lines[0]))
        except ValueError as error:
            raise ProfileError(f"{path}, line 1: {_sentence(error)}") from error
        profile = cls(path, header)
        for number, line in enumerate(lines[1:], start=2):
            if not line.strip():
                continue
            try:
                profile.rows.append(read_row(decode(line), header))
            except ValueError as error:
                # The last line has no line feed behind it when its writer was killed.
                torn = number == len(lines)
                profile.problems.append(Problem(path, number, "the line is cut short." if torn else _sentence(error)))
        return profile

    @classmethod
    def open(cls, path: str | Path, header: Header) -> DeviceProfile:
        """Go on with a profile, or begin one where there is none yet.

        Raises:
            ProfileError: The file is of another device, workload, teacher or space, or cannot be read or written.
        """
        path = Path(path)
        if path.exists() and not _torn_header(path, header):
            profile = cls.read(path)
            profile.header.check_same(header, path)
            _mend_tail(path)
            return profile
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            _append(path, header.to_dict())
        except OSError as error:
            raise ProfileError(f"{path}: cannot be written: {error.strerror}.") from error
        return cls(path, header)

    def append(self, subnet: SubnetConfig, measurement: Measurement, meters: Mapping[str, float] | None = None) -> Row:
        """Write one row to the file, in one piece, and keep it.

        Raises:
            ProfileError: The row breaks a rule, or the file cannot be written.
        """
        try:
            data = row_data(subnet, measurement, meters or {}, self.header)
            row = read_row(decode(json.dumps(data).encode()), self.header)
            _append(self.path, data)
        except OSError as error:
            raise ProfileError(f"{self.path}: cannot be written: {error.strerror}.") from error
        except ValueError as error:
            raise ProfileError(f"{self.path}: a row cannot be written: {_sentence(error)}") from error
        self.rows.append(row)
        return row

    def latest(self) -> dict[SubnetConfig, Row]:
        """The rows that count, by subnet: of one measured several times, the one with the least drift; no broken one.

        Drift is taken against one level for the whole profile. What a session took for usual when it wrote a row was
        the median until then: rows of a busy first minute would count as steady, and later ones be put right to them.
        """
        level = self.reference_level
        best: dict[SubnetConfig, Row] = {}
        for row in self.rows:
            own = replace(row, measurement=row.measurement.at_level(level))
            if (own.measurement.drift or 0.0) > BROKEN:
                continue
            known = best.get(row.subnet)
            if known is None or abs(own.measurement.drift or 0.0) <= abs(known.measurement.drift or 0.0):
                best[row.subnet] = own
        return best

    def missing(self, subnets: Iterable[SubnetConfig]) -> list[SubnetConfig]:
        """Those subnets that are not yet measured, or whose rows are all broken; canonical and without repeats."""
        tried = Counter(row.subnet for row in self.rows)
        known = {*self.latest(), *(subnet for subnet, times in tried.items() if times >= MAX_TRIES)}
        wanted = dict.fromkeys(canonical(self.header.shape, subnet) for subnet in subnets)
        return [subnet for subnet in wanted if subnet not in known]

    def training_data(self, quantity: str = "latency_ms") -> tuple[list[SubnetConfig], NDArray[np.float64]]:
        """Subnets and values for a predictor, one row per subnet, in the order in which they were measured.

        Args:
            quantity: ``latency_ms`` (the median) or the name of a meter.

        Raises:
            ProfileError: No subnet is measured, or no row has that quantity.
        """
        rows = sorted(self.latest().values(), key=lambda row: row.measurement.times[:1])
        pairs = [(row.subnet, quantity_of(row, quantity)) for row in rows]
        known = [(subnet, value) for subnet, value in pairs if value is not None]
        if not rows:
            raise ProfileError(f"{self.path}: no subnet is measured yet; profile again, or raise a time budget.")
        if not known:
            raise ProfileError(
                f"{self.path}: no row has the quantity {quantity!r}; they have {', '.join(self.quantities)}."
            )
        return [subnet for subnet, _ in known], np.array([value for _, value in known], dtype=np.float64)

    @property
    def quantities(self) -> list[str]:
        """What was measured: ``latency_ms`` and the meters of any row."""
        return ["latency_ms", *sorted({name for row in self.rows for name in row.meters})]

    @property
    def reference_level(self) -> float | None:
        """What the reference model usually took (ms), over all rows; None where there was none."""
        values = [float(np.median(row.measurement.reference)) for row in self.rows if row.measurement.reference]
        return float(np.median(values)) if values else None

    @property
    def content_hash(self) -> str:
        """A short hash of header and rows: a predictor remembers the profile that it was fitted on by it."""
        digest = hashlib.sha256(json.dumps(self.header.to_dict(), sort_keys=True).encode())
        for row in self.rows:
            digest.update(row.subnet.to_json().encode())
            digest.update(json.dumps([row.measurement.samples, dict(row.meters)], sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.rows)


def quantity_of(row: Row, quantity: str) -> float | None:
    """One quantity of a row: ``latency_ms`` or a meter's; None where the row has no such meter.

    The latency is the median; of a row that was measured while the machine was off its usual level, and stayed so when
    it was measured again, the median in proportion to the reference.
    """
    if quantity != "latency_ms":
        return row.meters.get(quantity)
    drifted = abs(row.measurement.drift or 0.0) > DRIFTED
    return row.measurement.corrected if drifted else row.measurement.p50


def _append(path: Path, data: Mapping[str, Any]) -> None:
    """One line in one write that reaches the disk: a line is there as a whole or torn, never mixed with another."""
    line = _encode(data)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        while line:
            line = line[os.write(handle, line) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _encode(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, sort_keys=True, allow_nan=False) + "\n").encode()


def _torn_header(path: Path, header: Header) -> bool:
    """Whether the file is empty or holds a part of this very header: its writer was killed at once."""
    line = _encode(header.to_dict())
    with path.open("rb") as file:
        content = file.read(len(line))
    return content != line and line.startswith(content)


def _sentence(error: ValueError) -> str:
    return f"{str(error).rstrip('.')}."


def _mend_tail(path: Path) -> None:
    """Remove a last line that was cut short, so that the next one does not grow onto it."""
    content = path.read_bytes()
    if content.endswith(b"\n"):
        return
    head, _, tail = content.rpartition(b"\n")
    try:
        decode(tail)
        whole = True
    except ValueError:
        whole = False
    if whole:
        with path.open("ab") as file:
            file.write(b"\n")
    else:
        os.truncate(path, len(head) + 1)


def training_data(
    profiles: Sequence[DeviceProfile], quantity: str = "latency_ms"
) -> tuple[list[SubnetConfig], NDArray[np.float64]]:
    """The rows of several files of one device together.

    Raises:
        ProfileError: They are of different fingerprints, workloads or spaces.
    """
    for profile in profiles[1:]:
        profile.header.check_same(profiles[0].header, profile.path)
    pairs = [profile.training_data(quantity) for profile in profiles]
    return [subnet for subnets, _ in pairs for subnet in subnets], np.concatenate([values for _, values in pairs])
