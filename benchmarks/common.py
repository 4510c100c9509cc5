"""What all benchmarks share: their arguments, the form of their results, and where these go."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ASSETS = ROOT / ".assets"
_PACKAGES = ("torch", "transformers", "onnxruntime", "scikit-learn", "optuna", "numpy")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        claim: What the figure is of; comparisons share it and differ in ``context["side"]``.
        value: The figure.
        unit: Its unit; ``""`` for a ratio or a score.
        n: Of how many samples, repetitions or models.
        low, high: Ends of its 95 % interval, where there is one.
        anchor: What it is to be held against: a figure of another method, or of the issue.
        context: What it depends on: side, seed, settings.
    """

    claim: str
    value: float
    unit: str = ""
    n: int = 1
    low: float | None = None
    high: float | None = None
    anchor: str = ""
    context: dict[str, Any] = field(default_factory=dict)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that every benchmark takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="minutes instead of the whole study")
    made.add_argument("--data", type=Path, default=ASSETS, help="folder with the models and data that it reads")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder that the JSON goes to")
    return made


def machine(threads: int) -> dict[str, Any]:
    """What a reader must know of the machine: processor, its instructions, threads, versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"cpu": _processor(), "threads": threads, "python": platform.python_version(), "versions": versions}


def write(name: str, rows: Sequence[Row], folder: Path = RESULTS) -> Path:
    """Write ``folder/name.json``, a list of figures, aside first and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    aside = file.with_suffix(".partial")
    aside.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    aside.replace(file)
    return file


def read(name: str, folder: Path = RESULTS) -> list[Row]:
    """The figures that an earlier run wrote; none where there was no run."""
    file = folder / f"{name}.json"
    return [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []


def show(rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """Print a table of figures, with these keys of their context as columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("claim", *columns, "value", "n", "anchor"):
        table.add_column(name, justify="right" if name in ("value", "n") else "left")
    for row in rows:
        interval = "" if row.low is None or row.high is None else f" [{row.low:.4g}, {row.high:.4g}]"
        value = f"{row.value:.4g}{f' {row.unit}' if row.unit else ''}{interval}"
        table.add_row(row.claim, *(str(row.context.get(c, "")) for c in columns), value, str(row.n), row.anchor)
    Console(width=160).print(table)


def _processor() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = values.get("flags", "").split()
    return {"model": values.get("model name", platform.processor()), "flags": [f for f in _FLAGS if f in flags]}
