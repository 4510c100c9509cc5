"""Quality at equal measured latency of a causal language model: ours beside uniform width, dropped layers and SVD.

SmolLM2-135M on the World English Bible, fp32 in ONNX Runtime. Every side gets the same teacher, text, distillation
steps and runtime, and is the largest of its kind that is measured to take a prompt in the time that a target permits;
in the end all are measured again, interleaved with the teacher, a prompt and one more token. Quality is the
log-perplexity of test text that nobody calibrated, trained or searched on. Differences to ours are drawn from both
models' losses of the same blocks; below zero is better.

    python benchmarks/end_to_end_causal.py                 # writes benchmarks/results/end_to_end_causal.json
    python benchmarks/end_to_end_causal.py --quick         # the first eight blocks, which know nothing of language
    python benchmarks/end_to_end_causal.py --targets 1.5x  # fewer latencies
    python benchmarks/end_to_end_causal.py --seed 1        # another: rows are means over all seeds that were run

What is finished is kept below `--root`: a run that was broken off goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import common
import numpy as np
from common import Result
from end_to_end_entries import Entry, interval_of, search_of
from end_to_end_sides import DROPPED, MARGIN, OURS, SVD, UNIFORM, Comparison, claim_of

from nas.evaluation.intervals import Interval, Resampling
from nas.evaluation.language import LANGUAGE
from nas.searching import SearchBench
from search_spaces.cost import Workload

TARGETS = ("1.5x", "1.2x", "2x", "1.35x", "1.1x")  # So that a run that is broken off has seen their range.
TOKENS = 64
HEADS = (6, 9)
FFN = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
OPTIONS = (
    "task=causal_lm", f"task.block_size={TOKENS}", "task.quality=kl", "task.data.train=256",
    "task.data.calibration=64", "task.data.validation=16", "task.data.test=192",
    "distiller=next_token", "training=language_model", "workload=prefill",
    f"workload.sequence_length={TOKENS}", "space.choices.rank_qkv=null",
    f"space.choices.heads=[{','.join(map(str, HEADS))}]", f"space.choices.ffn=[{','.join(map(str, FFN))}]",
    "space.per_block=[skip,heads,ffn]", "calibrate.batch_size=8",
    "profile.num_subnets=16", "profile.held_out=3", "profile.active.start=12", "profile.active.batch=4",
    "profile.active.target=0.02", "profile.transfer=false", "profile.protocol.burst=2", "profile.protocol.chunk_size=4",
    "+profile.protocol.retries=0",
    "search.sensitivity_evaluations=121", "search.uniform_starts=8", "search.allocated_starts=2",
)  # fmt: skip
QUICK = (
    "profile.num_subnets=8", "profile.active.start=8", "profile.held_out=2", "profile.protocol.burst=1",
    "task.data.train=16", "task.data.calibration=48", "task.data.validation=6", "task.data.test=32",
    "search.sensitivity_evaluations=33",
)  # fmt: skip
FP32: Mapping[str, Any] = {"precision": "fp32", "reference": "fp32"}
LOG_PERPLEXITY = LANGUAGE[0]
REACH = "target: the interval below 0"


class LanguageModels(Comparison):
    """The sides for a causal language model: each the largest of its kind that is measured to meet a target."""

    protocol: ClassVar[Mapping[str, Any]] = {
        "warmup_seconds": 0.1, "burst": 2, "min_visits": 8, "max_seconds": 4.0, "chunk_size": 4, "retries": 0,
    }  # fmt: skip
    batch_size = 8
    svd_step = 0.02
    searched_margin = MARGIN
    untrained_on = "validation"
    refits = len(HEADS)  # As many as uniform width has.

    def uniform(self, target: str) -> Entry:
        """Of the widest uniform subnets with each number of heads that meet the target, the best on validation."""
        found = []
        for heads in HEADS:
            same = [s for s in self.bench.space.uniform() if s.blocks[0].heads == heads]
            sizes = sorted(same, key=lambda s: -s.blocks[0].ffn)
            offers = [(subnet, partial(self.bench.supernet.extract, subnet)) for subnet in sizes]
            found.append(self.largest(target, offers)[0])
        return Entry(UNIFORM, target, *self.refitted(found), self.precision)

    def measure(self, entries: Sequence[Entry]) -> None:
        """A prompt, then one token behind a cache of as many."""
        super().measure(entries)
        files = [self.path(entry.side, entry.target) for entry in entries]
        inputs = self.bench.task.example_inputs(Workload(1, TOKENS, "decode"))
        for index, found in self._measured([str(file.with_suffix(".onnx")) for file in files], inputs):
            entries[index].decode = interval_of(found)
            entries[index].write(files[index])


def main() -> int:
    arguments = common.study_parser(__doc__ or "", "end_to_end_causal", steps=40, trials=40)
    arguments.add_argument("--targets", nargs="*", default=TARGETS, help="speed-ups over the teacher")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if common.skipped(data, "smollm2", "bible.txt"):
        return 0
    model = data / "smollm2"
    if options.quick:
        options.steps, options.trials, options.root, options.targets = 4, 5, options.root / "quick", ["1.2x"]
        model = first_blocks(model, options.root / "first_blocks")
    context = common.machine(threads=1, steps=options.steps, trials=options.trials, tokens=TOKENS, quick=options.quick)
    file = "end_to_end_causal_quick" if options.quick else "end_to_end_causal"
    rows: list[Result] = []
    # After each target: what was measured is kept where a later one is broken off.
    for entries, teacher in compete(model, data, options):
        rows = list(results(entries, teacher, context))
        path = common.write(file, rows, options.output)
    common.show(rows)
    print(path)
    return 0


def first_blocks(model: Path, folder: Path, blocks: int = 8) -> Path:
    """A model that was cut off after some blocks, for `--quick`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        AutoModelForCausalLM.from_pretrained(model, num_hidden_layers=blocks, dtype="float32").save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def compete(model: Path, data: Path, options: Any) -> Iterator[tuple[list[Entry], dict[str, list[float]]]]:
    """All sides, ours first, at the first target, the first two and so on, and the teacher's losses of test blocks."""
    searched = partial(as_study, options, model, data)
    compare = LanguageModels(searched, options.trials, options.steps, options.seed, options.root / "entries", **FP32)
    makers: dict[str, Callable[[str], Entry]] = {OURS: compare.ours, UNIFORM: compare.uniform}
    makers |= {DROPPED: compare.dropped_layers, SVD: compare.truncated_svd}
    entries: list[Entry] = []
    for target in options.targets:
        made = [compare.entry(side, target, partial(make, target)) for side, make in makers.items()]
        if not all(entry.decode[0] for entry in made):
            compare.measure(made)
        entries += [compare.over_seeds(entry) for entry in made]
        yield entries, compare.teacher_rows()


def as_study(options: Any, model: Path, data: Path, study: str, *overrides: str) -> SearchBench:
    """A search on a prompt's latency."""
    texts = [f"model.path={model}", f"task.data.path={data / 'bible.txt'}"]
    return search_of(options.root, study, *OPTIONS, *(QUICK if options.quick else ()), *texts, *overrides)


def results(
    entries: Sequence[Entry], teacher: Mapping[str, Sequence[float]], context: Mapping[str, Any]
) -> Iterator[Result]:
    """Differences of ours to each other side, then every side's own log-perplexity and speed-ups."""
    by = {(entry.side, entry.target): entry for entry in entries}
    targets = sorted({entry.target for entry in entries}, key=lambda target: float(target.removesuffix("x")))
    for target in targets:
        for side in (UNIFORM, DROPPED, SVD):
            if (own := by.get((OURS, target))) and (other := by.get((side, target))):
                found, blocks = difference(own.rows, other.rows), len(own.rows["surprise"])
                beside = {**context, "side": side, "target": target, "speed-ups": [own.speedup[0], other.speedup[0]]}
                beside["seeds"] = {OURS: list(own.seeds), side: list(other.seeds)}
                claim = f"log-perplexity difference at {target}, {side}"
                yield Result(claim, found.value, "nats", blocks, found.low, found.high, REACH, beside)
    whole = log_perplexity(teacher)
    yield Result(
        "log-perplexity, teacher", whole.value, "nats", len(teacher["surprise"]), whole.low, whole.high, context=context
    )
    for target in targets:
        for entry in (entry for entry in entries if entry.target == target):
            yield from of_side(entry, {**context, "side": entry.side, "target": target, "ms": entry.latency_ms})


def of_side(entry: Entry, context: Mapping[str, Any]) -> Iterator[Result]:
    """One side's rows at one target."""
    found, blocks = log_perplexity(entry.rows), len(entry.rows["surprise"])
    of = (entry.side, entry.target)
    beside = {**context, **{name: round(value, 4) for name, value in entry.metrics["fp32"].items()}}
    beside["log-perplexity of each seed"] = {
        seed: round(of_one["log_perplexity"], 4) for seed, of_one in entry.seeds.items()
    }
    beside |= {"validation log-perplexity before distillation": entry.untrained["log_perplexity"]}
    yield Result(claim_of("log-perplexity", *of), found.value, "nats", blocks, found.low, found.high, context=beside)
    for phase, (value, low, high) in (("prefill", entry.speedup), ("decode", entry.decode)):
        claim = claim_of(f"{phase} speed-up over the teacher", *of)
        yield Result(claim, value, "x", entry.samples, low, high, context=context)


def log_perplexity(rows: Mapping[str, Sequence[float]]) -> Interval:
    """Of a model on the test blocks."""
    return Resampling().interval(_drawn(rows))


def difference(own: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> Interval:
    """Of two models' log-perplexities on the same blocks, which are drawn for both together."""
    return Resampling().interval(_drawn(own) - _drawn(other))


def _drawn(rows: Mapping[str, Sequence[float]]) -> Any:
    return Resampling().values(LOG_PERPLEXITY, {name: np.asarray(values) for name, values in rows.items()})


if __name__ == "__main__":
    sys.exit(main())
