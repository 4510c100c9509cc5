"""What a bundle's results say at home: which subnet took how long, on which machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latency_models.measurement import Measurement
from latency_models.profile import Header
from latency_models.results import Results, ResultsError
from search_spaces.cost import Workload
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SubnetConfig


def header_of(manifest: Mapping[str, Any], fingerprint: Mapping[str, str]) -> Header:
    """The header of the profile that results of a bundle belong to.

    Args:
        manifest: The bundle's.
        fingerprint: Of the machine, taken there.
    """
    return Header(
        device=manifest["device"],
        fingerprint=fingerprint,
        workload=Workload(**manifest["workload"]),
        space=manifest["space"],
        shape=ModelShape(**manifest["shape"]),
        teacher=manifest["teacher"],
    )


def measurements_of(results: Results, manifest: Mapping[str, Any]) -> Iterator[tuple[SubnetConfig, Measurement]]:
    """The rows of results as subnets with their measurements.

    Raises:
        ResultsError: A row is of no subnet of the bundle, or breaks a rule.
    """
    subnets = {entry["name"]: entry["subnet"] for entry in manifest["subnets"]}
    for row in results.rows:
        if row["name"] not in subnets:
            raise ResultsError(f"{results.path}: row {row['name']!r} is of no subnet of the bundle.")
        yield SubnetConfig.from_dict(subnets[row["name"]]), measurement_of(row, results.path)


def measurement_of(row: Mapping[str, Any], path: Path) -> Measurement:
    """The measurement of a row of results.

    Raises:
        ResultsError: It breaks a rule; the message names the file and the row.
    """
    try:
        fields = {name: tuple(row[name]) for name in ("samples", "times", "order", "reference")}
        return Measurement(**fields, reference_level=row["reference_level"])
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path}: row {row.get('name')!r} breaks a rule: {error}.") from error
