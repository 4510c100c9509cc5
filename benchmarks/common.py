"""What all benchmarks share: their arguments, the form of their results, and the table they print.

A result is one claim with its number: ``benchmarks/results/NAME.json`` holds a list of
``{claim, value, unit, n, low, high, anchor, context}``, and is what the README's figures are read from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / ".assets"
RESULTS = ROOT / "benchmarks" / "results"
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
_PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "transformers", "onnxruntime", "optuna")


@dataclass(frozen=True)
class Result:
    """One claim with its number.

    Args:
        claim: What was measured, under the name by which the documentation refers to it.
        value: The number.
        unit: Its unit (``%``, ``ms``, ``tau``).
        n: How many values it is a mean, a median or a share of.
        low: Smallest of them, or lower end of an interval; None where there is none.
        high: Largest of them, or upper end.
        anchor: What to hold it against: another method's number or a target, in words.
        context: The machine, the versions and the settings.
    """

    claim: str
    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    anchor: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--quick", action="store_true", help="fewer seeds and rows: a smoke test, not a result")
    arguments.add_argument("--data", type=Path, metavar="DIR", help="folder of the public data that it reads")
    arguments.add_argument("--output", type=Path, metavar="FILE", help="where to write the JSON instead")
    return arguments


def study_parser(description: str, name: str, *, steps: int, trials: int) -> argparse.ArgumentParser:
    """Arguments of a benchmark that searches and distils: those of `parser`, and where and how long it does.

    Args:
        description: Of the benchmark.
        name: Its studies' folder below `runs`.
        steps: Of distillation, by default.
        trials: Of each search, by default.
    """
    arguments = parser(description)
    arguments.add_argument("--root", type=Path, default=ROOT / "runs" / name, help="folder of the studies")
    arguments.add_argument("--steps", type=int, default=steps, help="distillation steps of every side")
    arguments.add_argument("--trials", type=int, default=trials, help="evaluations of each search")
    arguments.add_argument("--seed", type=int, default=0)
    return arguments


def skipped(data: Path, *names: str) -> bool:
    """Whether a benchmark cannot run because files are missing, which is said."""
    missing = [name for name in names if not (data / name).exists()]
    if missing:
        print(f"skipped: {data} lacks {missing[0]}; run `make assets`")
    return bool(missing)


def machine(**settings: Any) -> dict[str, Any]:
    """The context of a result: CPU and its flags, threads, versions, and a benchmark's own settings (seeds)."""
    info = _cpu_info()
    flags = set(info.get("flags", info.get("features", "")).split())
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        **settings,
    }


def write(name: str, results: Sequence[Result], output: Path | None = None) -> Path:
    """Write results as JSON to ``benchmarks/results/NAME.json``, or elsewhere."""
    path = output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    return path


def merged(
    name: str, results: Sequence[Result], output: Path | None = None, replaced: tuple[str, ...] = ()
) -> list[Result]:
    """Results of a run of some parts, and those that an earlier run wrote of the others.

    Args:
        name: Of the file.
        results: The new ones.
        output: Another file.
        replaced: How claims begin of which nothing earlier is kept.
    """
    path = output or RESULTS / f"{name}.json"
    earlier = [Result(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []
    fresh = {result.claim: result for result in results}
    kept = [
        fresh.pop(result.claim, result)
        for result in earlier
        if result.claim in fresh or not result.claim.startswith(replaced)
    ]
    return [*kept, *fresh.values()]


def show(results: Iterable[Result]) -> None:
    """Print results as a table."""
    rows = [("claim", "value", "low", "high", "n", "anchor")]
    rows += [(r.claim, f"{r.value:.4g} {r.unit}", _number(r.low), _number(r.high), str(r.n), r.anchor) for r in results]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_info() -> dict[str, str]:
    """The first processor of /proc/cpuinfo, where there is one."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {key.strip().lower(): value.strip() for key, value in pairs}
