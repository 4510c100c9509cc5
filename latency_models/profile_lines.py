"""The lines of a profile: the header and the rows, written as JSON and read back with every rule checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from latency_models.device import fingerprint_difference, fingerprint_id
from latency_models.measurement import Measurement
from search_spaces.canonical import canonical
from search_spaces.cost import Workload
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SubnetConfig

SCHEMA = 1
_KIND = "hwnas device profile"
_ROW_KEYS = {"subnet", "samples", "times", "order", "reference", "reference_level", "unit", "meters", "fingerprint"}


class ProfileError(ValueError):
    """A profile cannot be used; the message names the file, the line and the rule."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a profile's rows have in common.

    Args:
        device: The device's fields, `Device.to_dict`.
        fingerprint: What must be equal for two latencies to be comparable, `Device.fingerprint`.
        workload: What one run processes.
        space: Fingerprint of the search space that the subnets come from.
        shape: The teacher's sizes.
        teacher: Which teacher: a hash or a name.
        unit: Of the samples.
    """

    device: Mapping[str, Any]
    fingerprint: Mapping[str, str]
    workload: Workload
    space: str
    shape: ModelShape
    teacher: str = ""
    unit: str = "ms"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the profile's first line."""
        return {
            "kind": _KIND,
            "schema": SCHEMA,
            "device": dict(self.device),
            "fingerprint": dict(self.fingerprint),
            "workload": self.workload.to_dict(),
            "unit": self.unit,
            "space": self.space,
            "shape": asdict(self.shape),
            "teacher": self.teacher,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Header:
        """Rebuild from the first line.

        Raises:
            ValueError: A key is missing or a value breaks its rule.
        """
        if not isinstance(data, Mapping) or data.get("kind") != _KIND:
            raise ValueError(f"the first line must be a header with `kind` {_KIND!r}")
        if data.get("schema") != SCHEMA:
            raise ValueError(f"`schema` must be {SCHEMA}, but got {data.get('schema')!r}")
        if data.get("unit") != "ms":
            raise ValueError(f"`unit` must be 'ms', but got {data.get('unit')!r}")
        for key, kind in (("device", Mapping), ("fingerprint", Mapping), ("workload", Mapping), ("shape", Mapping)):
            if not isinstance(data.get(key), kind):
                raise ValueError(f"`{key}` must be an object, but got {data.get(key)!r}")
        for key in ("space", "teacher"):
            if not isinstance(data.get(key), str):
                raise ValueError(f"`{key}` must be a text, but got {data.get(key)!r}")
        return cls(
            device=dict(data["device"]),
            fingerprint={str(key): str(value) for key, value in data["fingerprint"].items()},
            workload=_workload(data["workload"]),
            space=data["space"],
            shape=_shape(data["shape"]),
            teacher=data["teacher"],
        )

    def check_same(self, other: Header, path: Path) -> None:
        """Refuse to continue a profile with what does not belong into it.

        Raises:
            ProfileError: Something of the header differs.
        """
        if self.fingerprint != other.fingerprint:
            difference = fingerprint_difference(self.fingerprint, other.fingerprint)
            raise ProfileError(
                f"{path}, line 1: measured under another fingerprint ({difference}); never mix them: use another file."
            )
        for name in ("workload", "space", "shape", "teacher", "unit"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ProfileError(
                    f"{path}, line 1: `{name}` must be {_short(theirs)}, but is {_short(mine)}: use another file."
                )


@dataclass(frozen=True, slots=True)
class Row:
    """One measured subnet; ``meters`` holds further quantities by name, units in the name (``peak_memory_mb``)."""

    subnet: SubnetConfig
    measurement: Measurement
    meters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that was left out, and why."""

    path: Path
    line: int
    rule: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.rule}"


def decode(line: bytes) -> Any:
    """A line's JSON.

    Raises:
        ValueError: It is not JSON, or holds NaN or infinities, which JSON does not have.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"numbers must be finite, but got {constant}")

    try:
        return json.loads(line.decode(), parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise ValueError("not valid UTF-8") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: nested too deeply") from error


def row_data(
    subnet: SubnetConfig, measurement: Measurement, meters: Mapping[str, float], header: Header
) -> dict[str, Any]:
    """A row as plain data, which `read_row` reads back."""
    return {
        "subnet": canonical(header.shape, subnet).to_dict(),
        "unit": header.unit,
        "samples": [round(value, 6) for value in measurement.samples],
        "times": [round(value, 3) for value in measurement.times],
        "order": list(measurement.order),
        "reference": [round(value, 6) for value in measurement.reference],
        "reference_level": measurement.reference_level,
        "meters": dict(meters),
        "fingerprint": fingerprint_id(header.fingerprint),
    }


def read_row(data: Any, header: Header) -> Row:
    """A row from its line's JSON.

    Raises:
        ValueError: It breaks a rule.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"a row must be a JSON object, but got {type(data).__name__}")
    if unknown := sorted(set(data) - _ROW_KEYS):
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_ROW_KEYS))}")
    if data.get("unit") != header.unit:
        raise ValueError(f"`unit` must be {header.unit!r} as in the header, but got {data.get('unit')!r}")
    own = fingerprint_id(header.fingerprint)
    if data.get("fingerprint") != own:
        raise ValueError(f"`fingerprint` must be {own!r} as in the header, but got {data.get('fingerprint')!r}")
    if not isinstance(data.get("subnet"), Mapping):
        raise ValueError(f"`subnet` must be an object, but got {_short(data.get('subnet'))}")
    subnet = SubnetConfig.from_dict(data["subnet"])
    if len(subnet.blocks) != header.shape.num_blocks:
        raise ValueError(f"`subnet` must have {header.shape.num_blocks} blocks, but has {len(subnet.blocks)}")
    level = data.get("reference_level")
    measurement = Measurement(
        samples=_numbers(data, "samples"),
        times=_numbers(data, "times"),
        order=tuple(int(value) for value in _numbers(data, "order")),
        reference=_numbers(data, "reference"),
        reference_level=None if level is None else _number(level, "reference_level"),
    )
    meters = data.get("meters", {})
    if not isinstance(meters, Mapping):
        raise ValueError(f"`meters` must be an object, but got {_short(meters)}")
    values = {str(name): _number(value, f"meters.{name}") for name, value in meters.items()}
    if bad := [name for name, value in values.items() if value < 0]:
        raise ValueError(f"`meters.{bad[0]}` must not be negative, but got {values[bad[0]]!r}")
    return Row(canonical(header.shape, subnet), measurement, values)


def _numbers(data: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = data.get(name, [])
    if not isinstance(values, list):
        raise ValueError(f"`{name}` must be a list, but got {_short(values)}")
    return tuple(_number(value, name) for value in values)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{name}` must be numbers, but got {_short(value)}")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"`{name}` must be finite numbers, but got one of {len(str(value))} digits") from error
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be finite numbers, but got {number}")
    return number


def _workload(data: Mapping[str, Any]) -> Workload:
    try:
        return Workload(**data)
    except TypeError as error:
        raise ValueError(
            f"`workload` has other keys than batch_size, sequence_length, phase: {sorted(data)}"
        ) from error


def _shape(data: Mapping[str, Any]) -> ModelShape:
    """The teacher's sizes with every field of its declared kind."""
    kinds: dict[str, type] = {"int": int, "str": str, "bool": bool}
    for entry in fields(ModelShape):
        kind = kinds[str(entry.type)]
        # Older profiles lack what has a default.
        value = data.get(entry.name, None if entry.default is MISSING else entry.default)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise ValueError(
                f"`shape.{entry.name}` must be of type {entry.type} and not negative, but got {_short(value)}"
            )
    if unknown := sorted(set(data) - {entry.name for entry in fields(ModelShape)}):
        raise ValueError(f"`shape` has the unknown key {unknown[0]!r}")
    return ModelShape(**data)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
