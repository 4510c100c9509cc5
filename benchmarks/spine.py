"""The demo's figures: the search `experiment=quickstart` on real input, and what it cost.

    python benchmarks/spine.py            # searches (minutes; reuses what an earlier run left), then writes the figures
    python benchmarks/spine.py --quick    # the same with fewer trials

Writes benchmarks/results/spine.json.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
from common import Result
from search_overhead import overhead


def main() -> int:
    arguments = common.parser(__doc__)
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs", help="folder of the study")
    arguments.add_argument(
        "--seconds", type=float, help="figures of a run that `make demo` did in so many seconds; nothing is searched"
    )
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if not (data / "minilm").is_dir() or not (data / "movie.csv").is_file():
        print(f"skipped: {data} lacks minilm/ or movie.csv; run `make assets`")
        return 0
    from nas.__main__ import run

    quick = ["search.num_trials=12", "study=quickstart-quick", "finalists.steps=10"] if options.quick else []
    paths = [f"model.path={data / 'minilm'}", f"task.data.path={data / 'movie.csv'}"]
    started = time.perf_counter()
    if options.seconds is None and (
        code := run(["search", "experiment=quickstart", "profile.held_out=30", f"root={options.root}", *paths, *quick])
    ):
        return code
    seconds = options.seconds or time.perf_counter() - started
    study = "quickstart-quick" if options.quick else "quickstart"
    name = "whole run" if options.seconds is None else "make demo, installation and download included"
    found = figures(options.root / study)
    rows = [Result(name, seconds, "s", 1, context=found[0].context), *found, *overhead(quick=options.quick)]
    common.show(rows)
    print(table(options.root / study))
    print(common.write("spine_quick" if options.quick else "spine", rows, options.output))
    return 0


def figures(directory: Path) -> list[Result]:
    """Rows of the study's report."""
    from nas.reports.data import Report

    report = Report.load(directory / "report.json")
    base = {**common.machine(threads=int(report.device.get("threads", "1"))), "study": report.study}
    # Figures of a whole run come from a folder in which nothing had been done before.
    base["continued"] = any(stage.reused for stage in report.stages)
    rows = [
        Result(f"stage: {stage.name}", stage.seconds, "s", 1, context={**base, "reused": stage.reused})
        for stage in report.stages
    ]
    for model in report.models:
        context = {**base, "model": model.name, "precision": model.precision}
        for name, value in model.metrics.items():
            rows.append(Result(name, value, "", 1000, context=context))
        if model.measured:
            rows.append(Result("latency", model.measured.p50_ms, "ms", model.measured.n, context=context))
        for name, speedup in (("fp32", model.speedup_fp32), ("int8", model.speedup_int8)):
            if speedup and model.measured:
                values = (speedup.value, "x", model.measured.n, speedup.low, speedup.high)
                rows.append(Result(f"speed-up over the {name} teacher", *values, context=context))
    for score in report.scorecard:
        for name, value in score.scores.items():
            rows.append(Result(f"predictor {name}", value, "", score.n, context={**base, "model": score.predictor}))
    search = [stage.seconds for stage in report.stages if stage.name == "search" and not stage.reused]
    if search and report.explored:
        rows.append(
            Result(
                "evaluations per minute",
                60 * len(report.explored) / search[0],
                "1/min",
                len(report.explored),
                context=base,
            )
        )
    return rows


def table(directory: Path) -> str:
    """The study's models as the README shows them."""
    from nas.reports.data import Report

    report = Report.load(directory / "report.json")
    names = ["model", "precision", "parameters", "predicted ms", "measured ms p50 [min, p90]", "vs fp32 teacher"]
    names += ["vs int8 teacher", "cosine", "recall@10", "Spearman"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in report.models:
        predicted, measured = row.predicted_ms, row.measured
        cells = [
            row.name.replace("-distilled", " (60 steps of distillation)"),
            row.precision,
            f"{row.parameters / 1e6:.1f} M",
            f"{predicted.value:.3g} [{predicted.low:.3g}, {predicted.high:.3g}]" if predicted else "-",
            f"{measured.p50_ms:.3g} [{measured.min_ms:.3g}, {measured.p90_ms:.3g}]" if measured else "-",
            *(f"{ratio.value:.2f}x" if ratio else "-" for ratio in (row.speedup_fp32, row.speedup_int8)),
            *(f"{row.metrics[name]:.3f}".removeprefix("0") for name in ("cosine", "recall", "spearman")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
