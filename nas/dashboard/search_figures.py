"""How a search goes, as figures and tables: what matters, its rungs, its failures, its pace."""

from __future__ import annotations

import html
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nas.dashboard.figures import round_for_page
from nas.dashboard.trials import Trials
from nas.reports.figure_parts import Figure, base_layout, heat_figure

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy

OUTCOMES = ("evaluated", "cached", "duplicate", "infeasible", "pruned", "failed", "abandoned")
COLOURS = ("--series-0", "--series-2", "--series-4", "--faint", "--series-5", "--bad", "--series-6")
# Importances of fewer feasible trials are noise.
MIN_TRIALS = 16
_BLOCK = re.compile(r"^block(\d+)\.(.+)$")


def outcomes(trials: Trials) -> list[tuple[str, int]]:
    """How trials ended and how many did so, where any did."""
    found = Counter(row.outcome for row in trials.rows)
    return [(name, found[name]) for name in OUTCOMES if found[name]]


def importances(study: OptunaStudy, column: int) -> dict[str, float]:
    """Parameter -> share of the importance for one objective.

    Source: PED-ANOVA, Watanabe et al. 2023, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces", arXiv 2304.10255; it takes a second for ten thousand trials.

    Args:
        study: Optuna's.
        column: Which of its objectives.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    sign = 1.0 if study.directions[column].name == "MINIMIZE" else -1.0
    with warnings.catch_warnings():
        # It is marked as experimental, and warns where a target stands for the objective.
        warnings.simplefilter("ignore")
        found = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target=lambda trial: sign * trial.values[column]
        )
    return {name: float(value) for name, value in found.items()}


@dataclass(frozen=True)
class Failure:
    """A reason for which trials failed, how many did, and the numbers of the first of them."""

    reason: str
    count: int
    examples: tuple[int, ...]


def failures(trials: Trials) -> list[Failure]:
    """Why trials failed, the commonest reason first."""
    found: dict[str, list[int]] = {}
    for row in trials.rows:
        if row.state == "FAIL":
            found.setdefault(row.reason or "its worker ended, or was killed; the subnet is tried again", []).append(
                row.number
            )
    rows = [Failure(reason, len(numbers), tuple(numbers[:5])) for reason, numbers in found.items()]
    return sorted(rows, key=lambda failure: -failure.count)


@dataclass(frozen=True)
class Rung:
    """Trials of one number of distillation steps: how many, how many of their subnets went on, and the best quality."""

    steps: int
    trials: int
    promoted: int
    best: float


def rungs(trials: Trials) -> list[Rung]:
    """The rungs from the lowest; one alone means that nothing was promoted."""
    by_steps: dict[int, dict[str, float]] = {}
    quality = trials.column(trials.quality)
    for index in np.flatnonzero(trials.feasible):
        row = trials.rows[index]
        by_steps.setdefault(row.steps, {})[row.subnet] = float(quality[index])
    levels = sorted(by_steps)
    sign = -1 if trials.objectives.goals.get(trials.quality) == "minimize" else 1
    return [
        Rung(
            steps,
            len(by_steps[steps]),
            len(set(by_steps[steps]).intersection(*[set().union(*(by_steps[s] for s in levels[i + 1 :]))])),
            sign * max(sign * value for value in by_steps[steps].values()),
        )
        for i, steps in enumerate(levels)
    ]


def promotions_figure(trials: Trials) -> Figure | None:
    """Quality at each rung, one line per promoted subnet: where lines cross, distillation changed the ranking."""
    quality = trials.column(trials.quality)
    by_subnet: dict[str, dict[int, float]] = {}
    for index in np.flatnonzero(trials.feasible):
        row = trials.rows[index]
        if row.subnet:
            by_subnet.setdefault(row.subnet, {})[row.steps] = float(quality[index])
    promoted = [sorted(values.items()) for values in by_subnet.values() if len(values) > 1]
    if not promoted:
        return None
    x: list[str | None] = []
    y: list[float | None] = []
    for line in promoted[-200:]:
        x += [*(f"{steps} steps" for steps, _ in line), None]
        y += [*(round_for_page(value) for _, value in line), None]
    layout = base_layout("", trials.quality, 320)
    layout["xaxis"] |= {"type": "category"}
    trace: Figure = {"type": "scatter", "mode": "lines+markers", "x": x, "y": y, "marker": {"size": 5}, "opacity": 0.6}
    trace |= {"line": {"color": "var(--series-0)", "width": 1}, "hovertemplate": "%{x}: %{y:.4g}<extra></extra>"}
    return {"data": [trace], "layout": layout}


def pace(trials: Trials) -> float | None:
    """Trials per minute over the last twenty that ended; None where fewer than two did."""
    ended = np.sort(trials.ended[trials.finished & np.isfinite(trials.ended)])[-20:]
    if len(ended) < 2 or ended[-1] <= ended[0]:
        return None
    return float(60.0 * (len(ended) - 1) / (ended[-1] - ended[0]))


def outcomes_figure(trials: Trials, bins: int = 40) -> Figure | None:
    """Trials per minute over the time of the search, by how they ended."""
    ended = trials.ended
    known = np.isfinite(ended)
    if known.sum() < 2:
        return None
    start = float(np.nanmin(ended))
    minutes = (ended - start) / 60.0
    width = max(float(minutes[known].max()) / bins, 1e-3)
    edges = np.arange(bins + 1) * width
    layout = base_layout("minutes since the first", "trials per minute", 320)
    layout |= {"barmode": "stack", "bargap": 0.06}
    names = np.array([row.outcome for row in trials.rows])
    traces = []
    for name, colour in zip(OUTCOMES, COLOURS, strict=True):
        counts, _ = np.histogram(minutes[known & (names == name)], edges)
        if counts.any():
            traces.append(
                {
                    "type": "bar",
                    "name": name,
                    "x": [round_for_page(v) for v in edges[:-1] + width / 2],
                    "y": [round_for_page(v) for v in counts / width],
                    "width": width * 0.94,
                    "marker": {"color": f"var({colour})"},
                    "hovertemplate": f"%{{y:.3g}} a minute<extra>{name}</extra>",
                }
            )
    return {"data": traces, "layout": layout}


def importance_figure(importances: Mapping[str, float]) -> Figure:
    """A heat map of block and dimension where parameters are named so, else bars."""
    matched = {name: _BLOCK.match(name) for name in importances}
    if all(matched.values()):
        blocks = sorted({int(found[1]) for found in matched.values() if found})
        kinds = list(dict.fromkeys(found[2] for found in sorted(matched.values(), key=_kind) if found))
        values: Sequence[Sequence[float | None]] = [
            [importances.get(f"block{block}.{kind}") for block in blocks] for kind in kinds
        ]
        return heat_figure(values, [str(block) for block in blocks], kinds, ("block", "importance"), ".0%")
    top = sorted(importances.items(), key=lambda item: item[1])[-20:]
    layout = base_layout("importance", "", 90 + 22 * len(top))
    layout["showlegend"] = False
    layout["xaxis"] |= {"tickformat": ".0%"}
    trace: Figure = {"type": "bar", "orientation": "h", "x": [round_for_page(value) for _, value in top]}
    trace |= {"y": [html.escape(name) for name, _ in top], "marker": {"color": "var(--series-0)"}}
    return {"data": [{**trace, "hovertemplate": "%{y}: %{x:.1%}<extra></extra>"}], "layout": layout}


def _kind(found: re.Match[str] | None) -> str:
    return found[2] if found else ""
