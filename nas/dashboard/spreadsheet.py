"""All trials of studies as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from nas.dashboard.studies import Study
from nas.reports.raw import no_formula


def trials_csv(studies: Sequence[Study]) -> str:
    """All trials of the studies: one raw number per cell, bounds of predictions beside them, the subnet as JSON."""
    names = tuple(dict.fromkeys(name for study in studies for name in study.trials.quantities))
    bounded = tuple(dict.fromkeys(name for study in studies for name in study.trials.costs))
    head = ["study", "trial", "state", "outcome", "feasible", "on_front", "steps", "origin", *names]
    head += [f"{name}_{end}" for name in bounded for end in ("lower", "upper")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([no_formula(name) for name in (*head, "reason", "subnet")])
    for study in studies:
        front = set(study.trials.front.tolist())
        for index, row in enumerate(study.trials.rows):
            cells: list[Any] = [no_formula(study.facts.name), row.number, row.state, row.outcome, row.feasible]
            cells += [index in front, row.steps, no_formula(row.origin), *(row.numbers.get(name) for name in names)]
            cells += [bound for name in bounded for bound in row.bounds.get(name, (None, None))]
            writer.writerow([*cells, no_formula(row.reason), row.subnet])
    return stream.getvalue()
