"""Quality at equal measured latency: our subnets beside what people would use instead, in ONNX Runtime.

MiniLM as a sentence encoder, label-free, on movie sentences. Every side gets the same teacher, sentences, distillation
steps and runtime: in int8 where that makes the teacher faster on this machine, else in fp32. Ours is the better, once
both are refitted, of the best two of a search for each target that are measured to meet it; others are the largest of
their kind that do. What is told is measured in the end, interleaved with the int8 teacher, and judged on texts that
nobody searched on: other movie sentences and, across domains, TREC's questions.

    python benchmarks/end_to_end.py                  # one seed; writes benchmarks/results/end_to_end[_fp32].json
    python benchmarks/end_to_end.py --seed 1         # another: rows are means over all seeds that were run
    python benchmarks/end_to_end.py --quick          # fewer sentences, measurements, trials, steps and targets
    python benchmarks/end_to_end.py --precision int8 # of all sides, also where it is no faster

What is finished is kept below `--root`: a run that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import common
import numpy as np
import peers
from common import Result
from end_to_end_chart import draw, table
from end_to_end_entries import ACROSS, Entries, Entry, Precision, search_of
from end_to_end_sides import AS_IS, DROPPED, HALF, INT8, OURS, PRUNED, RANDOM, SPEED, SVD, UNIFORM, Comparison, claim_of

from nas.searching import SearchBench

DEVICES: dict[Precision, str] = {"fp32": "onnxruntime_cpu", "int8": "onnxruntime_cpu_int8"}
WORTH_IT = 1.05  # From this gain on int8 is worth what it loses.
SPEEDUPS = (1.15, 1.6, 2.0, 2.5)
# Less of everything, for `--quick`.
QUICK = (
    "task.data.calibration=128", "task.data.validation=128", "task.data.test=256", "search.sensitivity_evaluations=25",
    "profile.num_subnets=16", "profile.held_out=6", "profile.active.start=16",
)  # fmt: skip
REACH = {
    "untrained": ".91; Torch-Pruning Taylor .572 on other sentences",
    HALF: ".94; the same recipe's prototype .930",
    "1.15x": ".985",
    "1.6x": ".94",
    "2x": ".90",
    "2.5x": ".86",
}


def main() -> int:
    arguments = common.study_parser(__doc__ or "", "end_to_end", steps=120, trials=60)
    arguments.add_argument("--targets", nargs="*", default=[HALF, *(f"{s:g}x" for s in SPEEDUPS)], help="of ours")
    arguments.add_argument("--compared", nargs="*", default=[HALF, "1.6x"], help="targets at which all sides compete")
    precision_argument(arguments)
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if common.skipped(data, "minilm", "movie.csv", "trec.csv") or (options.compared and peers.skipped()):
        return 0
    if options.quick:
        options.steps, options.trials, options.root = 20, 24, options.root / "quick"
        options.targets, options.compared = [HALF, "1.6x"], [HALF]
    fresh, started = not options.root.exists(), time.monotonic()
    options.precision, gain = chosen_precision(options.precision, partial(workbench, data, options))
    entries, path = compete(data, options), options.output
    context = common.machine(threads=1, steps=options.steps, trials=options.trials, quick=options.quick)
    context |= {"precision of all sides": options.precision, "int8 teacher over the fp32 teacher": gain}
    rows = list(results(entries, options.precision, context))
    if fresh:  # Else an earlier run has done some of it.
        rows.append(Result("the whole comparison", (time.monotonic() - started) / 60, "min", 1, context=context))
    common.show(rows)
    name = "end_to_end" if options.precision == "int8" else "end_to_end_fp32"
    print(common.write("end_to_end_quick" if options.quick else name, rows, path))
    print("\n".join(table(rows)))
    if name == "end_to_end" and not options.quick and path is None:
        draw(rows, common.ROOT / "docs" / "img" / "end_to_end.png")
    return 0


def compete(data: Path, options: Any) -> list[dict[int, Entry]]:
    """Of each side at each target the entries by seed: this one's, and those that runs of others have left."""
    folder, searched = options.root / f"entries_{options.precision}", partial(workbench, data, options)
    compare = Sentences(
        partial(searched, options.precision), options.trials, options.steps, options.seed, folder,
        precision=options.precision, reference="int8",
    )  # fmt: skip
    sides: list[tuple[str, str, Callable[[], Entry]]]
    sides = [(OURS, target, partial(compare.ours, target)) for target in options.targets]
    for target in options.compared:
        sides += rivals(compare, target)
    entries = [compare.entry(*side) for side in sides]
    entries.append(compare.entry(INT8, AS_IS, compare.quantised_teacher, steps=0))
    compare.measure(entries)
    task: Any = compare.bench.task
    elsewhere = replace(task.data, path=str(data / "trec.csv"), calibration=64, validation=64)
    compare.judge_across(entries, replace(task, data=elsewhere))
    return [
        {seed: found for seed, found in compare.of_seeds(entry).items() if ACROSS in found.metrics} for entry in entries
    ]


class Sentences(Comparison):
    """The sides for a sentence encoder: ours, searched or drawn at random, is the better of two refitted subnets."""

    refits = 2


def precision_argument(arguments: argparse.ArgumentParser) -> None:
    """In which precision all sides of a comparison run."""
    told = f"of all sides' graphs; auto: int8 where the teacher is {WORTH_IT}x as fast with it or more, else fp32"
    arguments.add_argument("--precision", choices=("auto", "int8", "fp32"), default="auto", help=told)


def chosen_precision(asked: str, searched: Callable[..., SearchBench]) -> tuple[Precision, float]:
    """In which precision all sides run, and how many times faster than the fp32 teacher the int8 one is, measured.

    Args:
        asked: ``int8``, ``fp32`` or ``auto``.
        searched: Makes a search, of a precision and a study's name.
    """
    search = searched("int8", "precision")
    path = search.directory / "gain.json"
    if not path.is_file():
        sides = Entries(partial(searched, "int8"), 0, 0, search.directory, precision="int8", reference="fp32")
        path.write_text(json.dumps(sides.measured(search.device.graph(search.bench.space.teacher))), encoding="utf-8")
    gain = float(json.loads(path.read_text(encoding="utf-8")))
    if asked == "auto":
        asked = "int8" if gain >= WORTH_IT else "fp32"
    return cast("Precision", asked), round(gain, 3)


def rivals(compare: Comparison, target: str) -> Iterator[tuple[str, str, Callable[[], Entry]]]:
    """What ours competes with at one target."""
    yield UNIFORM, target, partial(compare.uniform, target)
    for importance, side in PRUNED.items():
        yield side, target, partial(compare.torch_pruning, target, importance)
    yield DROPPED, target, partial(compare.dropped_layers, target)
    yield SVD, target, partial(compare.truncated_svd, target)
    yield RANDOM, target, partial(compare.at_random, target)


def results(found: Sequence[dict[int, Entry]], precision: Precision, context: dict[str, Any]) -> Iterator[Result]:
    """Rows of the comparison, ours first: means over seeds."""
    groups = {(entry.side, entry.target): by_seed for by_seed in found for entry in by_seed.values()}
    for (side, target), by_seed in groups.items():
        entries, own = list(by_seed.values()), {**context, "seeds": sorted(by_seed), "side": side, "target": target}
        own["measured ms"] = mean(entry.latency_ms for entry in entries)
        if target == HALF:
            yield row(f"cosine at {HALF}, untrained", [e.untrained for e in entries], "untrained", "fp32", own)
            for kind, suffix in (("fp32", ""), ("int8", ", int8")):
                told = {**own, "deployed": kind == precision}
                judged = [e.metrics[kind] for e in entries]
                yield row(f"cosine at {HALF}, distilled{suffix}", judged, HALF * (not suffix), kind, told)
            yield row(
                f"cosine at {HALF}, distilled, {ACROSS}", [e.metrics[ACROSS] for e in entries], "", precision, own
            )
            continue
        kind = "int8" if target == AS_IS else precision
        claim = INT8 if target == AS_IS else f"{target} int8 teacher"
        yield row(f"cosine at {claim}", [e.metrics[kind] for e in entries], target, kind, {**own, "deployed": True})
        yield row(f"cosine at {claim}, {ACROSS}", [e.metrics[ACROSS] for e in entries], "", kind, own)
    for (side, target), by_seed in groups.items():
        own = {**context, "seeds": sorted(by_seed), "side": side, "target": target}
        ratios = [entry.speedup for entry in by_seed.values()]
        low, high = min(ratio[1] for ratio in ratios), max(ratio[2] for ratio in ratios)
        claim = claim_of(SPEED, side, target)
        yield Result(claim, mean(r[0] for r in ratios), "x", len(ratios), low, high, context=own)


def row(
    claim: str, metrics: Sequence[dict[str, float]], target: str, precision: str, context: dict[str, Any]
) -> Result:
    """Cosine over seeds, with the recall and the rank correlation beside it."""
    cosines = [each["cosine"] for each in metrics]
    beside = {name: round(mean(each[name] for each in metrics), 4) for name in ("recall", "spearman")}
    own = {**context, "precision": precision, **beside}
    reach = REACH.get(target, "") if context["side"] == OURS else ""
    return Result(claim, mean(cosines), "", len(cosines), min(cosines), max(cosines), reach, own)


def mean(values: Any) -> float:
    """Of an iterable."""
    return float(np.mean(list(values)))


def workbench(data: Path, options: Any, precision: Precision, study: str, *overrides: str) -> SearchBench:
    """A search for a sentence encoder on movie sentences."""
    texts = [f"model.path={data / 'minilm'}", f"task.data.path={data / 'movie.csv'}"]
    return searched_by(options.root, precision, study, *texts, *(QUICK if options.quick else ()), *overrides)


def searched_by(root: Path, precision: Precision, study: str, *overrides: str) -> SearchBench:
    """A search in a precision, as the command line makes it."""
    options = ["experiment=quickstart", f"device={DEVICES[precision]}"]
    options += ["objectives.constraints.latency_ms=0.95x", "objectives.constraints.quality='>= 0.6'"]
    return search_of(root, f"{study}_{precision}", *options, *overrides)


if __name__ == "__main__":
    raise SystemExit(main())
