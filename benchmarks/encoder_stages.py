"""How long the stages of a search for a sentence encoder take, finalists distilled for 120 steps: on two quiet cores.

    python benchmarks/encoder_stages.py            # from scratch, in a new folder; writes encoder_stages.json
    python benchmarks/encoder_stages.py --quick    # fewer trials and steps

Times are the report's own, in seconds of the wall clock.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
from common import Result
from spine import figures

# What is counted together, with the minutes that it may take.
ALLOWED = {
    "calibrate": (("calibrate",), 1),
    "profile": (("export template", "profile", "fit latency_ms"), 4),
    "sensitivity": (("sensitivity",), 4),
    "search": (("search",), 6),
    "finalists": (("teacher outputs for distillation", "finalists"), 8),
    "export and measure": (("export teacher", "measure finalists"), 2),
}


def main() -> int:
    arguments = common.parser(__doc__)
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if common.skipped(data, "minilm", "movie.csv"):
        return 0
    from nas.__main__ import run

    sizes = ["finalists.count=3", "finalists.distil=2", f"finalists.steps={10 if options.quick else 120}"]
    sizes += ["search.num_trials=12"] * options.quick
    paths = [f"model.path={data / 'minilm'}", f"task.data.path={data / 'movie.csv'}"]
    with tempfile.TemporaryDirectory() as root:
        if code := run(["search", "experiment=quickstart", f"root={root}", "study=stages", *paths, *sizes]):
            return code
        rows = list(stages([row for row in figures(Path(root) / "stages") if row.claim.startswith("stage: ")]))
    common.show(rows)
    print(common.write("encoder_stages_quick" if options.quick else "encoder_stages", rows, options.output))
    return 0


def stages(rows: Sequence[Result]) -> Iterator[Result]:
    """Sums of the stages, what each may take beside it; then what is left, and all together."""
    seconds = {row.claim.removeprefix("stage: "): row.value for row in rows}
    context, counted = rows[0].context, set[str]()
    for name, (parts, minutes) in ALLOWED.items():
        counted |= set(parts)
        own = {**context, "stages": parts}
        yield Result(
            f"seconds to {name}", sum(seconds[part] for part in parts), "s", 1, anchor=f"{60 * minutes}", context=own
        )
    left = sorted(set(seconds) - counted)
    yield Result(
        "seconds of what is left", sum(seconds[name] for name in left), "s", 1, context={**context, "stages": left}
    )
    yield Result("seconds of all stages", sum(seconds.values()), "s", 1, context=context)


if __name__ == "__main__":
    raise SystemExit(main())
