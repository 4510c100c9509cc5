"""The README's table and chart of `end_to_end.py`'s rows: quality against measured speed, side by side.

python benchmarks/end_to_end_chart.py    # prints the table and draws the chart of the stored results again
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
from common import Result
from end_to_end_sides import AS_IS, INT8, OURS, SPEED

CHART = common.ROOT / "docs" / "img" / "end_to_end.png"


@dataclass(frozen=True)
class Point:
    """One side at one target, as it is deployed."""

    side: str
    target: str
    speed: float
    cosine: float
    recall: float
    spearman: float
    n: int


def points(rows: Sequence[Result]) -> list[Point]:
    """What was judged as it is deployed, with its measured speed."""
    speeds = {(r.context["side"], r.context["target"]): r.value for r in rows if r.claim.startswith(SPEED)}
    found = []
    for row in rows:
        if row.claim.startswith("cosine") and row.context.get("deployed"):
            side, target = row.context["side"], row.context.get("target", "")
            beside = (float(row.context["recall"]), float(row.context["spearman"]))
            found.append(Point(side, target, speeds[side, target], row.value, *beside, row.n))
    return found


def table(rows: Sequence[Result]) -> Iterator[str]:
    """Markdown: targets one after the other, ours first in each."""
    yield "| to reach | side | measured, over the int8 teacher | cosine | recall@10 | Spearman | seeds |"
    yield "|---|---|---|---|---|---|---|"
    found = points(rows)
    for target in sorted({point.target for point in found}, key=_order):
        for point in (p for p in found if p.target == target):
            bold = "**" if point.side == OURS else ""
            figures = (f"{value:.3f}".removeprefix("0") for value in (point.cosine, point.recall, point.spearman))
            cells = (target, f"{bold}{point.side}{bold}", f"{point.speed:.2f}x", *figures, str(point.n))
            yield f"| {' | '.join(cells)} |"


def _order(target: str) -> tuple[int, float]:
    """Half of the parameters, then speeds, the slowest first, then what has no target."""
    speed = target.removesuffix("x")
    return (1, float(speed)) if speed.replace(".", "", 1).isdigit() else (2 * (target == AS_IS), 0.0)


def draw(rows: Sequence[Result], file: Path = CHART) -> None:
    """The chart as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sides: dict[str, list[Point]] = {}
    for point in points(rows):
        sides.setdefault(point.side, []).append(point)
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for (side, found), marker in zip(sides.items(), "osD^vPX*h", strict=False):
        members = sorted(found, key=lambda point: point.speed)
        own = side in (OURS, INT8)
        axes.plot(
            [p.speed for p in members], [p.cosine for p in members], marker=marker, label=side,
            linewidth=2.5 if own else 1.0, markersize=8 if own else 6, zorder=3 if own else 2,
        )  # fmt: skip
    axes.set_xlabel("times as fast as the int8 teacher, measured (ONNX Runtime, 1 thread)")
    axes.set_ylabel("cosine to the teacher's embeddings")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> int:
    stored = common.RESULTS / "end_to_end.json"
    if not stored.is_file():
        print("skipped: there are no results yet; run benchmarks/end_to_end.py")
        return 0
    rows = [Result(**row) for row in json.loads(stored.read_text(encoding="utf-8"))]
    print("\n".join(table(rows)))
    draw(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
