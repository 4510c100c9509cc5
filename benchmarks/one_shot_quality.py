"""Quality without any training: what calibration, compensation, rank and allocation are worth at half the size.

MiniLM as a sentence encoder, calibrated on 512 movie sentences, judged on 1,000 others and, across domains, on 1,000
questions of TREC; three seeds, each with splits of its own. "50 % encoder parameters" counts the blocks' weights as
stored, factors included. Beside ours: Torch-Pruning, dropped layers and truncated SVD on the same sentences.

    python benchmarks/one_shot_quality.py            # writes benchmarks/results/one_shot_quality.json
    python benchmarks/one_shot_quality.py --quick    # one seed, fewer evaluations of the allocation

What a part found for a seed is kept under ``--root``; a run that was interrupted goes on behind it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import common
import numpy as np
import peers
from common import Result

from nas.distillation.teacher import TeacherOutputs
from nas.engine.allocate import allocate
from nas.engine.costs import SubnetCosts
from nas.engine.sensitivity import Sensitivity, measure_sensitivity
from nas.evaluation.evaluate import evaluate_model
from nas.tasks.task import Task
from nas.workbench import Workbench
from search_spaces.calibrate import calibrate
from search_spaces.cost import costs
from search_spaces.recalibrate import recalibrate
from search_spaces.subnet import BlockConfig, SubnetConfig

# Half of each projection's weights is the third choice, or nearly.
RANK_ONLY = {
    "rank_qkv": (32, 64, 96, 128),
    "rank_attention_out": (64, 96, 128, 160),
    "rank_ffn_in": (96, 128, 152, 192, 232),
    "rank_ffn_out": (96, 128, 152, 192, 232),
}
HALF_RANKS = {"rank_qkv": 96, "rank_attention_out": 96, "rank_ffn_in": 152, "rank_ffn_out": 152}
METRICS = ("cosine", "recall", "spearman")
# What each row is held against: cosine and Spearman of prototypes on other sentences.
REACH = {
    "uniform widths, activation x weight, refitted": ".86 / .87",
    "uniform widths, optimal brain surgeon": ".875 / .88",
    "widths allocated by one-block replacement": ".91 / .885",
    "rank only, whitened": ".81 / .83",
    "width and rank, uniform": ".88",
    "width and rank, allocated": "better than each alone",
}
PARTS = ("stages", "mixed", "importance", "ranks", "hidden", "peers")
Scores = dict[str, dict[str, float]]
Side = tuple[str, float, Scores]  # Name, share of the block weights, scores; ours first.


class Half:
    """All sides at half of one teacher's block weights, for one seed.

    Args:
        data: Folder with the model and the sentences.
        root: Where caches may be kept.
        seed: Of the splits.
    """

    def __init__(self, data: Path, root: Path, seed: int) -> None:
        self.data, self.root, self.seed = data, root, seed
        self.bench = self.workbench()
        self.seconds: dict[str, float] = {}

    def workbench(self, *overrides: str) -> Workbench:
        """The stages of `nas calibrate`, with other options."""
        from hydra import compose, initialize_config_dir

        from nas.commands import plain
        from nas.config import conf_dir

        options = [
            f"root={self.root}",
            f"model.path={self.data / 'minilm'}",
            f"task.data.path={self.data / 'movie.csv'}",
        ]
        options += [f"task.data.seed={self.seed}", "task.data.validation=400", "task.data.test=1000"]
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="search"):
            return Workbench(plain(compose("search", overrides=[*options, *overrides])))

    @cached_property
    def judges(self) -> dict[str, tuple[Task, TeacherOutputs]]:
        """The test splits, in domain and across."""
        task = self.bench.task
        trec = replace(task.data, path=str(self.data / "trec.csv"), calibration=64, validation=64)  # type: ignore[attr-defined]
        tasks = {"movie": task, "trec": replace(task, data=trec)}  # type: ignore[type-var]
        cache = str(self.root / "cache")
        return {name: (each, TeacherOutputs(each, (), cache, model=self.bench.teacher)) for name, each in tasks.items()}

    def judge(self, model: Any) -> Scores:
        """Agreement with the teacher on each test split."""
        return {name: evaluate_model(model, task, outputs, "test") for name, (task, outputs) in self.judges.items()}

    def same(self, heads: int, ffn: int, **ranks: int) -> SubnetConfig:
        """The same block everywhere."""
        shape = self.bench.space.shape
        return SubnetConfig((BlockConfig(heads, heads, ffn, **ranks),) * shape.num_blocks, shape.hidden_size)

    def encoder(self, subnets: Sequence[SubnetConfig]) -> Any:
        """Share of the teacher's block weights; what brings a narrower stream back to full width counts."""
        sizes = costs(self.bench.space.shape, [*subnets, self.bench.space.teacher]).block_parameters
        return sizes[:-1] / sizes[-1]

    def refitted(self, bench: Workbench, subnet: SubnetConfig) -> Any:
        """The extracted subnet, refitted block by block towards the teacher's residual stream."""
        model, batches = bench.supernet.extract(subnet), bench.task.batches("calibration", 32)
        recalibrate(model, bench.teacher, subnet.kept, batches, coordinates=bench.supernet.coordinates(subnet))
        return model

    def allocated(
        self, bench: Workbench, sensitivity: Sensitivity, *, ranks: bool = True, limit: float = 0.5
    ) -> SubnetConfig:
        """The exact knapsack's best at half the size; without ranks, whoever has one is unaffordable."""
        space = bench.space
        losses = [
            np.where(np.array([bool(c) for c in d.choices]), np.inf, table)
            if d.name.startswith("rank") and not ranks else table
            for d, table in zip(space.dimensions, sensitivity.losses, strict=True)
        ]  # fmt: skip
        priced = replace(sensitivity, losses=tuple(np.where(np.isinf(t), 1e3, t) for t in losses))
        rows = allocate(space, priced, SubnetCosts(space), "parameters")
        rows = rows[priced(rows) < 1e3]
        able = rows[self.encoder(space.decode(rows)) <= limit + 1e-9]
        return space.decode(able[np.argmin(priced(able))][None, :])[0]

    def mixed(self, evaluations: int) -> Iterator[Side]:
        """Widths and ranks as allocated by one-block replacement, and uniform ones."""
        bench, supernet = self.bench, self.bench.supernet
        sensitivity = measure_sensitivity(bench.space, bench.evaluator.evaluate, "cosine", max_evaluations=evaluations)
        chosen = self.allocated(bench, sensitivity)
        mixed = {
            "width and rank, allocated": chosen,
            "widths allocated by one-block replacement": self.allocated(bench, sensitivity, ranks=False),
            "width and rank, uniform": self.same(9, 768, rank_qkv=96),
            "uniform widths, optimal brain surgeon": self.same(6, 768),
        }
        for name in ("width and rank, allocated", "widths allocated by one-block replacement"):
            subnet = mixed[name]
            model = self.refitted(bench, subnet)
            yield f"{name}, refitted as a whole", float(self.encoder([subnet])[0]), self.judge(model)
        for name, subnet in mixed.items():
            model = supernet.extract(subnet)
            yield name, float(self.encoder([subnet])[0]), self.judge(model)

    def stages(self, _: int) -> Iterator[Side]:
        """Seconds alone: of calibration, whatever was kept, and of random subnets, the median of fifty."""
        bench = self.bench
        batches = list(bench.task.batches("calibration", 32))
        started = time.perf_counter()
        calibrate(bench.teacher, batches, bench.space)
        self.seconds["calibrate"] = time.perf_counter() - started
        supernet = bench.supernet
        subnets = bench.space.sample(np.random.default_rng(self.seed), 50)
        for name, act in (("activate", supernet.activate), ("extract", supernet.extract)):
            times = []
            for subnet in subnets:
                started = time.perf_counter()
                act(subnet)
                times.append(time.perf_counter() - started)
            self.seconds[name] = statistics.median(times)
        yield from ()

    def importance(self, _: int) -> Iterator[Side]:
        """Units ordered once, by other metrics, and one refit of what reads them."""
        halves = ("space=width", "space.choices.heads=[0.5,1.0]", "space.choices.ffn=[0.5,1.0]")
        uniform = self.same(6, 768)
        share = float(self.encoder([uniform])[0])
        for metric, name in (("activation_weight", "activation x weight"), ("fisher", "Fisher information")):
            bench = self.workbench(f"calibrate.importance={metric}", *halves)
            yield f"uniform widths, {name}, refitted", share, self.judge(bench.supernet.extract(uniform))

    def ranks(self, evaluations: int) -> Iterator[Side]:
        """Every width kept, every projection factorised: half of each, or as allocated."""
        ranks = [f"+space.choices.{name}={[0, *levels]}".replace(" ", "") for name, levels in RANK_ONLY.items()]
        full = ("space=width", "space.choices.heads=[1.0]", "space.choices.ffn=[1.0]")
        bench = self.workbench(*full, f"space.per_block=[{','.join(RANK_ONLY)}]", *ranks)
        same = self.same(12, 1536, **HALF_RANKS)
        share = float(self.encoder([same])[0])
        yield "rank only, whitened", share, self.judge(bench.supernet.extract(same))
        yield "rank only, whitened, refitted as a whole", share, self.judge(self.refitted(bench, same))
        sensitivity = measure_sensitivity(bench.space, bench.evaluator.evaluate, "cosine", max_evaluations=evaluations)
        chosen = self.allocated(bench, sensitivity)
        share = float(self.encoder([chosen])[0])
        yield "rank only, allocated", share, self.judge(bench.supernet.extract(chosen))
        yield "rank only, allocated, refitted as a whole", share, self.judge(self.refitted(bench, chosen))

    def hidden(self, _: int) -> Iterator[Side]:
        """Narrower residual streams, alone and with narrower blocks; and beside them the full stream, refitted, too."""
        widths = ("space=width", "space.choices.heads=[6,8,12]", "space.choices.ffn=[768,992,1536]")
        bench = self.workbench(*widths, "+space.choices.hidden_size=[192,288,384]")
        supernet = bench.supernet
        for name, subnet in {
            "hidden size, uniform": replace(self.same(12, 1536), hidden_size=192),
            "hidden size and width, uniform": replace(self.same(8, 992), hidden_size=288),
            "hidden size, three quarters": replace(self.same(12, 1536), hidden_size=288),
            "uniform widths, beside the hidden size": self.same(6, 768),
        }.items():
            share = float(self.encoder([subnet])[0])
            yield name, share, self.judge(supernet.extract(subnet))
            yield f"{name}, refitted as a whole", share, self.judge(self.refitted(bench, subnet))

    def peers(self, _: int) -> Iterator[Side]:
        """What people would use instead."""
        share = float(self.encoder([self.same(6, 768)])[0])
        teacher = self.bench.teacher
        batches = list(self.bench.task.batches("calibration", 32))
        whole = peers.encoder_parameters(teacher)
        for importance in ("taylor", "l2"):
            model = peers.torch_pruning(teacher, importance, 0.5, 0.5, batches)
            yield f"Torch-Pruning {importance}, uniform", share, self.judge(model)
        model, _ = peers.dropped_layers(teacher, 3)
        yield "layers dropped", peers.encoder_parameters(model) / whole, self.judge(model)
        model = peers.truncated_svd(teacher, 0.5)
        yield "truncated SVD", peers.encoder_parameters(model) / whole, self.judge(model)


def results(found: Mapping[str, list[tuple[float, Scores]]], context: Mapping[str, Any]) -> Iterator[Result]:
    """One row per metric, domain and side: the mean over seeds, and their range."""
    for side, runs in found.items():
        share = statistics.mean(share for share, _ in runs)
        for domain in runs[0][1]:
            for metric in METRICS:
                values = [scores[domain][metric] for _, scores in runs]
                yield Result(
                    f"{metric} at {share:.0%} encoder parameters, untrained, {domain}: {side}",
                    statistics.mean(values), "", len(values), min(values), max(values),
                    REACH.get(side, "") if domain == "movie" else "",
                    {**context, "side": side, "domain": domain, "share of block weights": round(share, 4)},
                )  # fmt: skip


def times_of(seconds: Mapping[str, list[float]], context: Mapping[str, Any]) -> Iterator[Result]:
    """One row per stage: the median over seeds, and their range."""
    for name, values in seconds.items():
        yield Result(f"stage: {name}", statistics.median(values), "s", len(values), min(values), max(values), "",
                     dict(context))  # fmt: skip


def part_of(name: str, seed: int, evaluations: int, data: Path, root: Path) -> tuple[list[Side], dict[str, float]]:
    """Sides and seconds of one part for one seed, as an earlier run left them or made now."""
    file = root / "parts" / f"{name}_{seed}_{evaluations}.json"
    if not file.is_file():
        half = Half(data, root, seed)
        sides: list[Side] = []
        for side, share, scores in getattr(half, name)(evaluations):
            sides.append((side, share, scores))
            told = {name: [round(value[m], 3) for m in METRICS] for name, value in scores.items()}
            print(seed, side, round(share, 4), told, file=sys.stderr, flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([sides, half.seconds]), encoding="utf-8")
    kept, seconds = json.loads(file.read_text(encoding="utf-8"))
    return kept, seconds


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="which")
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs" / "one_shot", help="folder of the caches")
    arguments.add_argument("--seeds", type=int, default=3, help="how many")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if common.skipped(data, "minilm", "movie.csv", "trec.csv") or ("peers" in options.parts and peers.skipped()):
        return 0
    found: dict[str, list[tuple[float, Scores]]] = {}
    seconds: dict[str, list[float]] = {}
    seeds, evaluations = (1, 40) if options.quick else (options.seeds, 100)
    file = "one_shot_quality_quick" if options.quick else "one_shot_quality"
    context = common.machine(seeds=list(range(seeds)), quick=options.quick, calibration=512)
    for part, seed in product(options.parts, range(seeds)):
        sides, times = part_of(part, seed, evaluations, data, options.root)
        for side, share, scores in sides:
            found.setdefault(side, []).append((share, scores))
        for name, value in times.items():
            seconds.setdefault(name, []).append(value)
        # At once: a part may take ten minutes.
        rows = [*results(found, context), *times_of(seconds, context)]
        path = common.write(file, rows, options.output)
    common.show(rows)
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
