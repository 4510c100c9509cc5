"""Perplexity at equal measured latency: a causal language model's subnets beside what people would use instead.

SmolLM2-135M on running text (the World English Bible), the time of a prompt in ONNX Runtime. Five latencies are fixed
beforehand, as shares of the teacher's. Every side gets the same teacher, text, distillation steps and runtime: ours;
uniform width, calibrated like ours; evenly spaced layers; truncated SVD. Each side's largest model that meets a latency
is distilled and judged on blocks that nobody searched on: the difference of ours to each other side in log-perplexity,
paired over blocks, with its bootstrap 95 % interval.

    python benchmarks/end_to_end_causal.py            # writes benchmarks/results/end_to_end_causal.json
    python benchmarks/end_to_end_causal.py --quick    # the first six blocks as the teacher, two latencies, few steps
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
import peers
from common import Result
from numpy.typing import NDArray

from latency_models.backends.base import make_backend
from latency_models.backends.graph_students import student_graph
from latency_models.device import Device
from latency_models.profiler import Profiler
from nas.evaluation.evaluate import predict
from nas.evaluation.intervals import Resampling
from nas.evaluation.metrics import SAMPLES, Rows
from nas.searching import SearchBench
from nas.workbench import Workbench, median_ratio
from search_spaces.families import blocks_of, family_of
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
OURS = "ours"


@dataclass
class Entry:
    """One model of one side, at one share of the teacher's latency."""

    side: str
    share: float
    subnet: SubnetConfig
    model: Any
    untrained: float = float("nan")
    rows: Rows = field(default_factory=dict)
    ratio: tuple[float, float, float] = (0.0, 0.0, 0.0)
    latency_ms: float = 0.0
    samples: int = 0

    @property
    def log_perplexity(self) -> float:
        """Of all blocks."""
        return float(self.rows["surprise"].sum() / self.rows["tokens"].sum())


class Comparison:
    """All sides on one search's workbench.

    Args:
        search: Ours.
        steps: Of distillation, for every side.
        seed: Of distillation.
    """

    def __init__(self, search: SearchBench, steps: int, seed: int) -> None:
        self.search, self.bench, self.steps, self.seed = search, search.bench, steps, seed
        shape = self.bench.space.shape
        self.full = BlockConfig(shape.heads, shape.kv_heads, shape.ffn)
        self.blocks, self.hidden = shape.num_blocks, shape.hidden_size

    # -- sides: each from its largest model to its smallest ---------------------------------------------------------

    def uniform(self) -> list[tuple[SubnetConfig, Any]]:
        """Heads and FFN in proportion, as everybody prunes uniformly."""
        subnets = self.bench.space.uniform()
        near = [s for s in subnets if abs(s.blocks[0].heads / self.full.heads - s.blocks[0].ffn / self.full.ffn) < 0.2]
        return [(subnet, lambda subnet=subnet: self.bench.finalist(subnet)) for subnet in near]

    def layers(self) -> list[tuple[SubnetConfig, Any]]:
        """Evenly spaced blocks."""
        found = []
        for keep in range(self.blocks - 1, 0, -max(1, self.blocks // 15)):
            kept = {round(i * (self.blocks - 1) / max(keep - 1, 1)) for i in range(keep)}
            subnet = SubnetConfig(tuple(self.full if i in kept else SKIPPED for i in range(self.blocks)), self.hidden)
            found.append((subnet, lambda keep=keep: peers.dropped_layers(self.bench.teacher, keep)[0]))
        return found

    def svd(self) -> list[tuple[SubnetConfig, Any]]:
        """Every projection in two factors of the same share of the rank that saves nothing."""
        family, block = family_of(self.bench.teacher), blocks_of(self.bench.teacher)[0]
        paths = (family.query, family.attention_out, family.ffn_in[0], family.ffn_out)
        sizes = [block.get_submodule(path).weight.shape for path in paths]
        found = []
        for share in np.arange(0.95, 0.1, -0.1):
            ranks = [max(1, int(share * out * inner / (out + inner))) for out, inner in sizes]
            config = BlockConfig(self.full.heads, self.full.kv_heads, self.full.ffn, *ranks)
            subnet = SubnetConfig((config,) * self.blocks, self.hidden)
            found.append((subnet, lambda share=share: peers.truncated_svd(self.bench.teacher, float(share))))
        return found

    def chosen(self, side: str, ladder: Sequence[tuple[SubnetConfig, Any]], shares: Iterable[float]) -> list[Entry]:
        """The slowest model of a side that is measured to meet each share."""
        measured = self._ratios([lambda s=subnet, make=make: self.graph(s, make()) for subnet, make in ladder])
        entries = []
        for share in shares:
            able = [index for index, (ratio, _, _) in measured.items() if 1 / ratio[0] <= share]
            best = max(able, key=lambda index: 1 / measured[index][0][0], default=None)
            if best is not None:
                # A model of its own: it will be trained.
                entries.append(Entry(side, share, ladder[best][0], ladder[best][1]()))
        return entries

    def ours(self, candidates: Sequence[Any], shares: Iterable[float]) -> list[Entry]:
        """The best evaluated subnet that is predicted to meet each share."""
        quality, teacher = self.bench.task.quality, self._predicted([self.bench.space.teacher])[0]
        times = self._predicted([candidate.subnet for candidate in candidates])
        entries = []
        for share in shares:
            able = [c for c, time in zip(candidates, times, strict=True) if time <= 0.98 * share * teacher]
            if able:
                best = min(able, key=lambda candidate: candidate.metrics[quality])
                entries.append(Entry(OURS, share, best.subnet, self.bench.finalist(best.subnet)))
        return entries

    def _predicted(self, subnets: Sequence[SubnetConfig]) -> NDArray[np.float64]:
        return self.search.device.fitted.predictor.predict(subnets).value

    # -- judging ----------------------------------------------------------------------------------------------------

    def train(self, entry: Entry) -> None:
        """Distil a model as every other, and judge it."""
        evaluator = self.bench.evaluator
        entry.untrained = evaluator.score(entry.model, "test")["log_perplexity"]
        evaluator.distil(entry.subnet, steps=self.steps, seed=self.seed, model=entry.model)
        entry.rows = self.rows(entry.model)
        print(entry.side, entry.share, entry.untrained, entry.log_perplexity, file=sys.stderr, flush=True)

    def rows(self, model: Any) -> Rows:
        """Figures of every test block, in fp32."""
        task, teacher = self.bench.task, self.bench.evaluator.teacher
        outputs = predict(lambda batch: task.outputs(model, batch), task, "test", teacher=teacher)
        return task.tables("test", outputs, teacher.main("test"))[SAMPLES]

    def graph(self, subnet: SubnetConfig, model: Any) -> Any:
        """The deployed graph."""
        template = self.search.device.compiler.template
        return student_graph(template, self.bench.task.deployable(model), subnet.kept)

    def measure(self, entries: Sequence[Entry]) -> None:
        """Final latencies, interleaved with the teacher."""
        graphs = [lambda entry=entry: self.graph(entry.subnet, entry.model) for entry in entries]
        for index, (ratio, latency, samples) in self._ratios(graphs).items():
            entries[index].ratio, entries[index].latency_ms, entries[index].samples = ratio, latency, samples

    def _ratios(self, graphs: Sequence[Any]) -> dict[int, tuple[tuple[float, float, float], float, int]]:
        """How many times faster than the teacher, with an interval, p50 in ms, and runs; a graph is made when due."""
        backend, inputs = make_backend(Device("cpu", "onnxruntime", threads=1)), self.search.device.inputs
        teacher = self.search.device.graph(self.bench.space.teacher)
        jobs = [(i, lambda make=make: backend.compile(make(), inputs)) for i, make in enumerate(graphs)]
        # Few at a time: each holds a whole model.
        profiler = Profiler(warmup_seconds=0.1, burst=2, min_visits=5, max_seconds=2.0, chunk_size=3, retries=0)
        found = {}
        for index, one in profiler.measure(jobs, lambda: backend.compile(teacher, inputs)):
            found[index] = (median_ratio(list(one.reference), list(one.samples)), one.p50, one.n)
        return found


def difference(own: Rows, other: Rows, resampling: Resampling) -> tuple[float, float, float]:
    """Log-perplexity of one model minus another's, with the interval paired over blocks: value, low, high."""
    from nas.evaluation.metrics import ratio_of

    rows = {"difference": own["surprise"] - other["surprise"], "tokens": own["tokens"]}
    found = resampling.interval(resampling.values(ratio_of("difference", "difference", "tokens"), rows))
    return found.value, found.low, found.high


def results(entries: Sequence[Entry], context: dict[str, Any]) -> Iterator[Result]:
    """Differences of ours to every other side, then perplexities, then latencies."""
    ours = {entry.share: entry for entry in entries if entry.side == OURS}
    for entry in entries:
        if entry.side == OURS or entry.share not in ours:
            continue
        value, low, high = difference(ours[entry.share].rows, entry.rows, Resampling())
        yield Result(
            f"difference in log-perplexity at {entry.share:g}x latency, ours - {entry.side}", value, "nats",
            len(entry.rows["tokens"]), low, high, "the interval lies below zero",
            {**context, "measured": [ours[entry.share].ratio, entry.ratio]},
        )  # fmt: skip
    for entry in entries:
        own = {**context, "side": entry.side, "untrained log-perplexity": round(entry.untrained, 4)}
        yield Result(f"perplexity at {entry.share:g}x latency", float(np.exp(entry.log_perplexity)), "",
                     len(entry.rows["tokens"]), context={**own, "measured ms": entry.latency_ms})  # fmt: skip
        value, low, high = entry.ratio
        yield Result(f"speed-up over the teacher at {entry.share:g}x latency", value, "x", entry.samples, low, high,
                     context=own)  # fmt: skip


def workbench(data: Path, root: Path, quick: bool, *overrides: str) -> SearchBench:
    """A search as the command line makes it."""
    from hydra import compose, initialize_config_dir

    from nas.commands import plain
    from nas.config import conf_dir
    from nas.measuring import DeviceBench

    model = truncated(data / "smollm2", root / "first6", 6) if quick else data / "smollm2"
    options = [f"root={root}", "study=causal", "task=causal_lm", f"model.path={model}", "task.block_size=128"]
    options += [f"task.data.path={data / 'bible.txt'}", "distiller=next_token", "training=language_model"]
    options += ["workload=prefill", "workload.sequence_length=64", "space=width_rank", "task.data.train=256"]
    options += ["space.choices.skip=[false,true]", "space.choices.heads=[0.34,0.67,1.0]", "space.choices.rank_qkv=[0]"]
    options += ["space.choices.ffn=[0.25,0.375,0.5,0.625,0.75,0.875,1.0]", "profile.protocol.max_seconds=1.0"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="search"):
        bench = Workbench(plain(compose("search", overrides=[*options, *overrides])))
    made = SearchBench(bench, DeviceBench(bench))
    made.directory.mkdir(parents=True, exist_ok=True)
    return made


def truncated(source: Path, target: Path, layers: int) -> Path:
    """A copy of a model with its first blocks only."""
    from nas.tasks.models import load_language_model, load_tokenizer
    from search_spaces.supernet import keep_blocks

    if not (target / "config.json").is_file():
        model = load_language_model(str(source))
        keep_blocks(model, list(blocks_of(model)), range(layers), None)
        model.config.num_hidden_layers = layers
        model.save_pretrained(target)
        load_tokenizer(str(source)).save_pretrained(target)
    return target


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs" / "end_to_end_causal")
    arguments.add_argument("--steps", type=int, default=100, help="distillation steps of every side")
    arguments.add_argument("--trials", type=int, default=60, help="evaluations of the search")
    arguments.add_argument("--blocks", type=int, default=128, help="test blocks")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if not (data / "smollm2").is_dir() or not (data / "bible.txt").is_file():
        print(f"skipped: {data} lacks smollm2/ or bible.txt; run `make assets`")
        return 0
    steps, trials, shares = (8, 16, (0.8, 0.6)) if options.quick else (options.steps, options.trials, SHARES)
    sizes = {"validation": 8, "calibration": 32, "test": 32} if options.quick else {"test": options.blocks}
    wanted = [f"task.data.{split}={size}" for split, size in sizes.items()]
    wanted += [f"search.num_trials={trials}", f"seed={options.seed}"]
    wanted += ["profile.num_subnets=16", "profile.held_out=4", "search.sensitivity_evaluations=40"] * options.quick
    search = workbench(data, options.root, options.quick, *wanted)
    candidates = search.run().candidates
    compare = Comparison(search, steps, options.seed)
    entries = compare.ours(candidates, shares)
    entries += compare.chosen("uniform width", compare.uniform(), shares)
    entries += compare.chosen("layers dropped", compare.layers(), shares)
    entries += compare.chosen("truncated SVD", compare.svd(), shares)
    for entry in entries:
        compare.train(entry)
    compare.measure(entries)
    context = common.machine(threads=1, steps=steps, trials=trials, seeds=[options.seed], quick=options.quick,
                             teacher="first 6 blocks of SmolLM2-135M" if options.quick else "SmolLM2-135M")  # fmt: skip
    rows = list(results(entries, context))
    common.show(rows)
    name = "end_to_end_causal_quick" if options.quick else "end_to_end_causal"
    print(common.write(name, rows, options.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
