"""The report card of a teacher, its int8 form and three found subnets, on two real classifiers, one with groups.

    python benchmarks/report_card.py            # searches where no earlier run has, then judges and measures
    python benchmarks/report_card.py --only reddit_bias
    python benchmarks/report_card.py --quick    # TREC alone, with fewer resamples and perturbations

Writes benchmarks/results/report_card.json; the cards themselves are below runs/report-card-*/cards.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
from common import Result
from teachers import data_of, teacher_of

from nas.evaluation.card import ReportCard
from nas.tasks.data import names_of

NAMES = ("trec", "reddit_bias")
SUBNETS = 3
SENSITIVITIES = 31
TARGET = "target: 600 s for both data sets on 2 cores"


def main() -> int:
    arguments = common.parser(__doc__)
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs", help="folder of the studies")
    arguments.add_argument("--only", choices=NAMES, help="this data set; rows of the other are kept as they are")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    names = [options.only] if options.only else ["trec"] if options.quick else NAMES
    if missing := [name for name in names if not (data / f"{name}.csv").is_file()]:
        print(f"skipped: {data} lacks {missing[0]}.csv; run `make assets`")
        return 0
    file = "report_card_quick" if options.quick else "report_card"
    results: list[Result] = []
    for name in names:
        teacher_of(name, data)
        searched = search(name, data, options.root)
        started = processor_seconds()
        cards, spent = judge(name, data, options.root, quick=options.quick)
        busy = processor_seconds() - started
        context = {**common.machine(), "data": name, "models": len(cards)}
        if searched:
            results.append(Result(f"{name}: search and export", searched, "s", 1, context=context))
        results.append(Result(f"{name}: five report cards", spent, "s", 1, anchor=TARGET, context=context))
        results.append(
            Result(f"{name}: five report cards, processor time", busy, "s", 1, anchor=TARGET, context=context)
        )
        for card in cards:
            results += figures(card, {**context, "model": card.name})
        # After each of the data sets: what was measured is kept when a later one fails.
        results = common.merged(file, results, options.output, (f"{name}, ", f"{name}: "))
        path = common.write(file, results, options.output)
    common.show(results)
    print(path)
    return 0


def task_options(name: str, data: Path) -> list[str]:
    """The command line's options for a task, with the splits that its teacher was trained with."""
    texts = data_of(name, data)
    groups = f"task.data.group_columns=[{','.join(names_of(texts.group_columns))}]"
    sizes = [f"task.data.{split}={getattr(texts, split)}" for split in ("calibration", "validation", "test")]
    return ["task=text_classification", f"task.data.path={texts.path}", "task.max_length=64", groups, *sizes]


def search(name: str, data: Path, root: Path) -> float:
    """Find and export subnets; the seconds that it took, 0 where an earlier run has left them."""
    from nas.__main__ import run

    if (root / f"report-card-{name}" / "report.json").is_file():
        return 0.0
    started = time.perf_counter()
    goals = ["quality", "macs", "worst_group_accuracy"] if name == "reddit_bias" else ["quality", "macs"]
    code = run(
        [
            "search", f"root={root}", f"study=report-card-{name}", f"model.path={data / f'minilm_{name}'}",
            *task_options(name, data), "distiller=logits", f"objectives=[{','.join(goals)}]",
            "+objectives.constraints.macs=0.6x", "search.num_trials=24",
            f"search.sensitivity_evaluations={SENSITIVITIES}", f"finalists.count={SUBNETS}",
            f"finalists.distil={SUBNETS}", "finalists.steps=60",
            "finalists.protocol.max_seconds=0.5",  # The cards measure them.
        ]
    )  # fmt: skip
    if code:
        raise SystemExit(code)
    return time.perf_counter() - started


def judge(name: str, data: Path, root: Path, *, quick: bool) -> tuple[list[ReportCard], float]:
    """Report cards of the teacher, its int8 form and the found subnets, and the seconds that they took."""
    from nas.__main__ import run

    study = root / f"report-card-{name}"
    found = sorted(path.parent for path in (study / "models").glob("*/subnet.json"))[:SUBNETS]
    teacher = data / f"minilm_{name}"
    models = [teacher, study / "models" / "teacher" / "model_int8.onnx", *found]
    small = ["evaluation.intervals.resamples=100", "evaluation.robustness.samples=100"] if quick else []
    started = time.perf_counter()
    code = run(
        [
            "compare", f"root={root}", f"models=[{','.join(map(str, models))}]", *task_options(name, data),
            f"output={study / 'cards'}", "workload.sequence_length=32", "device.threads=1", *small,
        ]
    )  # fmt: skip
    if code:
        raise SystemExit(code)
    cards = [ReportCard.load(path) for path in (study / "cards").glob("*/metrics.json")]
    return sorted(cards, key=lambda card: -(card.efficiency or {})["latency_ms"]["p50"]), time.perf_counter() - started


def processor_seconds() -> float:
    """What this process and those that it waited for have spent: on a busy machine, less than the clock says."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def figures(card: ReportCard, context: dict[str, Any]) -> list[Result]:
    """What a card says in a few numbers, each under the data's and the model's name."""
    return [replace(found, claim=f"{context['data']}, {card.name}: {found.claim}") for found in _told(card, context)]


def _told(card: ReportCard, context: dict[str, Any]) -> list[Result]:
    quality, robustness = card.quality["metrics"]["accuracy"], card.robustness or {}
    calibration, efficiency = (card.calibration or {})["metrics"]["ece"], card.efficiency or {}
    samples = int(card.task["samples"])
    found = [
        _interval("accuracy", quality["value"], "", samples, context),
        _interval("accuracy retention", quality["retention"], "", samples, context),
        _interval("ece", calibration["value"], "", samples, context),
        Result("worst drop under perturbations", robustness["worst_drop"], "", robustness["samples"], context=context),
        Result(
            "worst drop beyond the teacher's", robustness["worst_excess"], "", robustness["samples"], context=context
        ),
        _interval("speed-up over the fp32 teacher", efficiency["speedup"], "x", efficiency["latency_ms"]["n"], context),
        Result("latency p50", efficiency["latency_ms"]["p50"], "ms", efficiency["latency_ms"]["n"], context=context),
        Result("peak memory", efficiency["peak_memory_mb"], "MB", 1, context=context),
    ]
    for column in (card.fairness or {}).get("columns", ()):
        if column["measure"] == "accuracy":
            note = f"teacher: {column['teacher']['worst']['value']:.3f}"
            found.append(_interval("worst-group accuracy", column["worst"], "", samples, context, note))
            found.append(_interval("gap of accuracy between groups", column["gap"], "", samples, context))
    return found


def _interval(
    claim: str, value: dict[str, float], unit: str, n: int, context: dict[str, Any], anchor: str = ""
) -> Result:
    return Result(claim, value["value"], unit, n, value["low"], value["high"], anchor, context)


if __name__ == "__main__":
    sys.exit(main())
