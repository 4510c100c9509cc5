"""What classifiers keep of their accuracy at a measured speed: ours beside int8 alone and dropped layers.

MiniLM, fine-tuned on TREC's questions and on the sentiment of movie reviews. Every side runs in ONNX Runtime, in int8
where that makes the teacher faster on this machine, and gets the same teacher, texts and distillation steps. Sizes are
chosen by predicted latency, so that each meets a target's speed-up over the fp32 teacher; latencies are then measured,
interleaved with that teacher. Retention is of the teacher's accuracy on texts nobody searched on, its interval from a
bootstrap that draws both models' answers to the same texts; pooled rows draw from both tasks.

    python benchmarks/end_to_end_classifiers.py            # writes benchmarks/results/end_to_end_classifiers.json
    python benchmarks/end_to_end_classifiers.py --tasks trec
    python benchmarks/end_to_end_classifiers.py --quick    # TREC alone, fewer trials and steps
    python benchmarks/end_to_end_classifiers.py --seed 1   # another: rows are means over all seeds that were run

What is finished is kept below `--root`: a run that was broken off goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import Result
from end_to_end import chosen_precision, precision_argument, searched_by
from end_to_end_entries import Entry, Precision
from end_to_end_sides import AS_IS, DROPPED, INT8, OURS, Comparison, claim_of
from report_card import task_options
from teachers import teacher_of

from nas.evaluation.intervals import Resampling
from nas.evaluation.metrics import ratio_of
from nas.searching import SearchBench

NAMES = ("trec", "movie_sentiment")
TARGETS = ("2.5x", "4x")
REACH = {"2.5x": ">= .99, lower bound >= .98", "4x": ">= .97, lower bound >= .955"}
RETENTION = ratio_of("retention", "own", "teacher")
POOLED = "pooled"
Answers = Sequence[float]  # 1 where the class is right.


def main() -> int:
    arguments = common.study_parser(__doc__ or "", "end_to_end_classifiers", steps=600, trials=60)
    arguments.add_argument("--tasks", nargs="*", choices=NAMES, default=NAMES, help="which")
    precision_argument(arguments)
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    names = options.tasks[:1] if options.quick else options.tasks
    if common.skipped(data, "minilm", *(f"{name}.csv" for name in names)):
        return 0
    if options.quick:
        options.steps, options.trials, options.root = 20, 24, options.root / "quick"
    sides, teachers = {}, {}
    for name in names:
        sides[name], teachers[name] = compete(name, data, options)
    context = common.machine(threads=1, steps=options.steps, trials=options.trials, quick=options.quick)
    context |= {"precision of all sides": options.precision}
    rows = list(results(sides, teachers, context))
    common.show(rows)
    file = "end_to_end_classifiers_quick" if options.quick else "end_to_end_classifiers"
    print(common.write(file, rows, options.output))
    return 0


def compete(name: str, data: Path, options: Any) -> tuple[list[Entry], Answers]:
    """All sides on one task, ours first, and which test samples the fp32 teacher gets right."""
    teacher_of(name, data)
    task = [*task_options(name, data), f"model.path={data / f'minilm_{name}'}", "distiller=logits_hidden"]
    task.append("task.data.validation=500")  # Of 1,000 that the teacher was not trained on: half the time of a search.
    searched = partial(as_study, options.root, name, task)
    options.precision, _ = chosen_precision(options.precision, searched)
    folder, precision = options.root / f"{name}_{options.precision}", options.precision
    compare = Comparison(
        partial(searched, precision), options.trials, options.steps, options.seed, folder,
        precision=precision, reference="fp32",
    )  # fmt: skip
    makers: dict[str, Callable[[str], Entry]] = {OURS: compare.ours}
    makers[DROPPED] = compare.dropped_layers
    wanted = [(side, target, partial(make, target)) for side, make in makers.items() for target in TARGETS]
    entries = [compare.entry(*each) for each in wanted]
    entries.append(compare.entry(INT8, AS_IS, compare.quantised_teacher, steps=0))
    compare.measure(entries)
    return [compare.over_seeds(entry) for entry in entries], compare.teacher_rows()["correct"]


def as_study(
    root: Path, name: str, task: Sequence[str], precision: Precision, study: str, *overrides: str
) -> SearchBench:
    """A search of one of the tasks' studies."""
    return searched_by(root, precision, f"{name}_{study}", *task, *overrides)


def results(
    sides: Mapping[str, Sequence[Entry]], teachers: Mapping[str, Answers], context: Mapping[str, Any]
) -> Iterator[Result]:
    """Retention of each task, then of both, then speed-ups."""
    keys = [(entry.side, entry.target) for entry in next(iter(sides.values()))]
    for side, target in keys:
        of = {name: next(e for e in entries if (e.side, e.target) == (side, target)) for name, entries in sides.items()}
        own = {**context, "side": side, "target": target}
        for name, entry in of.items():
            beside = {"accuracy": round(float(np.mean(entry.rows["correct"])), 4), "measured ms": entry.latency_ms,
                      "teacher's accuracy": round(float(np.mean(teachers[name])), 4)}  # fmt: skip
            beside["accuracy of each seed"] = {seed: round(found["accuracy"], 4) for seed, found in entry.seeds.items()}
            yield retention(name, target, [entry.rows["correct"]], [teachers[name]], {**own, **beside})
        if len(of) > 1:
            hits = [entry.rows["correct"] for entry in of.values()]
            yield retention(POOLED, target, hits, [teachers[name] for name in of], own)
        for name, entry in of.items():
            ratio, low, high = entry.speedup
            claim = claim_of(f"speed-up over the fp32 teacher, {name}", side, target)
            yield Result(claim, ratio, "x", entry.samples, low, high, context=own)


def retention(
    name: str,
    target: str,
    own: Sequence[Sequence[float]],
    teacher: Sequence[Sequence[float]],
    context: Mapping[str, Any],
) -> Result:
    """The share of the teacher's accuracy that is kept, with its paired interval."""
    rows = {"own": np.concatenate(own).astype(float), "teacher": np.concatenate(teacher).astype(float)}
    resampling = Resampling()
    found = resampling.interval(resampling.values(RETENTION, rows))
    claim = f"accuracy retention {name}" + (f", {INT8}" if target == AS_IS else f" at {target}")
    anchor = REACH.get(target, "") if context["side"] == OURS else ""
    return Result(claim, found.value, "", len(rows["own"]), found.low, found.high, anchor, context)


if __name__ == "__main__":
    sys.exit(main())
