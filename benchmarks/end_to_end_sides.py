"""The sides of `end_to_end.py`: our subnets, and what people would use instead, made, distilled and judged alike."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import peers

from latency_models.backends.base import make_backend
from latency_models.backends.graph_students import student_graph
from latency_models.backends.quantize import quantize_int8
from latency_models.device import Device
from latency_models.measurement import Measurement, speedup
from latency_models.profiler import Profiler
from nas.evaluation.evaluate import evaluate_model, onnx_run, predict
from nas.evaluation.metrics import SAMPLES
from nas.searching import SearchBench
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig

HALF = "50% encoder parameters"
AS_IS = "as it is"  # No target: the teacher, quantised.
INT8 = "int8 alone"
OURS, RANDOM = "ours", "ours, random search"
UNIFORM, DROPPED, SVD = "uniform, calibrated like ours", "layers dropped", "truncated SVD"
PRUNED = {"taylor": "Torch-Pruning taylor", "l2": "Torch-Pruning l2"}
MARGIN = 1.01  # Sizes are chosen by predictions, which are off by a percent or two.


@dataclass
class Entry:
    """One model of one side, for one target; of a stored one only the graph is left.

    `hits` says of every test sample whether the int8 graph's class is right, for classifiers.
    """

    side: str
    target: str
    subnet: SubnetConfig
    model: Any = None
    untrained: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    hits: list[int] = field(default_factory=list)
    speedup: tuple[float, float, float] = (0.0, 0.0, 0.0)
    latency_ms: float = 0.0
    samples: int = 0

    @classmethod
    def read(cls, path: Path) -> Entry:
        """What an earlier run stored."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["subnet"] = SubnetConfig.from_dict(stored["subnet"])
        return cls(**{**stored, "speedup": tuple(stored["speedup"])})

    def write(self, path: Path) -> None:
        """Keep everything but the model."""
        kept = {**asdict(Entry(**{**self.__dict__, "model": None})), "subnet": self.subnet.to_dict()}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


class Comparison:
    """All sides on one search's workbench.

    Args:
        searched: Makes a search on the int8 device, of a study's name and overrides.
        trials: Evaluations of every search.
        steps: Of distillation, for every side.
        seed: Of searches and distillation.
        folder: Where finished entries are kept: a run that was broken off goes on behind them.
        whole: Whether the teacher that latencies are held against is the fp32 one; else the int8 one.
    """

    def __init__(
        self, searched: Callable[..., SearchBench], trials: int, steps: int, seed: int, folder: Path, *,
        whole: bool = False,
    ) -> None:  # fmt: skip
        self.searched, self.trials, self.steps, self.seed = searched, trials, steps, seed
        self.search = searched(f"device_{seed}", f"seed={seed}")
        self.bench, self.folder, self.whole = self.search.bench, folder, whole
        folder.mkdir(parents=True, exist_ok=True)
        self.calibration = list(self.bench.task.batches("calibration", 32))
        shape = self.bench.space.shape
        self.full = BlockConfig(shape.heads, shape.kv_heads, shape.ffn)

    def latency(self, subnets: Sequence[SubnetConfig]) -> Any:
        """Predicted int8 latencies, in ms."""
        return self.search.device.fitted.predictor.predict(subnets).value

    def fits(self, target: str, margin: float = MARGIN) -> Callable[[Sequence[SubnetConfig]], Any]:
        """Which subnets are expected to meet a target, as an array of bool."""

        def able(subnets: Sequence[SubnetConfig]) -> Any:
            if target == HALF:
                return self._parameters(subnets) <= self.half
            limit = float(self.latency([self.bench.space.teacher])[0]) * self.share(target) / margin
            return self.latency(subnets) <= limit * (1 + 1e-9)

        return able

    def share(self, target: str) -> float:
        """Of the int8 teacher's latency that a target permits."""
        return self.slower / float(target.removesuffix("x"))

    @property
    def half(self) -> int:
        """Parameters of the whole model with half of the blocks': half of all heads and neurons leave some biases."""
        other = int(self.bench.space.shape.other_parameters)
        return other + int(0.502 * (int(self._parameters([self.bench.space.teacher])[0]) - other))

    def _parameters(self, subnets: Sequence[SubnetConfig]) -> Any:
        from search_spaces.cost import costs

        return costs(self.bench.space.shape, subnets, self.bench.workload).parameters

    def meets(self, target: str, subnet: SubnetConfig) -> bool:
        """Whether a subnet of the supernet is measured to meet a target."""
        if target == HALF:
            return True
        measured = speedup(next(iter(self._measured([quantize_int8(self.search.device.graph(subnet))])))[1])
        return measured is not None and measured.value >= float(target.removesuffix("x"))

    @cached_property
    def slower(self) -> float:
        """How many times slower than the int8 teacher the one is that latencies are held against, measured."""
        if not self.whole:
            return 1.0
        int8 = quantize_int8(self.search.device.graph(self.bench.space.teacher))
        ratio = speedup(next(iter(self._measured([int8])))[1])
        assert ratio is not None
        return ratio.value

    # -- sides ------------------------------------------------------------------------------------------------------

    def ours(self, target: str, side: str = OURS, *overrides: str) -> Entry:
        """The best of a search for this target that is measured to meet it, refitted as a whole."""
        latency = 0.95 if target == HALF else self.share(target)
        wanted = ["objectives=quality_under_latency", f"objectives.constraints.latency_ms={latency}x"]
        # The limit is where half of all subnets meet it; which of them do is measured.
        wanted += ["objectives.confidence=0.01", f"search.num_trials={self.trials}", f"seed={self.seed}"]
        wanted += [f"+objectives.constraints.parameters={self.half}"] * (target == HALF)
        name = re.sub(r"[^a-z0-9.]+", "_", f"{side} {target}".lower())
        found = self.searched(f"{name}_{self.seed}", *wanted, *overrides).run().candidates
        able, quality = self.fits(target, 1.0), self.bench.task.quality
        ranked = sorted((c for c in found if able([c.subnet])[0]), key=lambda c: -c.metrics[quality])
        best = next(candidate for candidate in ranked if self.meets(target, candidate.subnet))
        return Entry(side, target, best.subnet, self.bench.finalist(best.subnet))

    def at_random(self, target: str) -> Entry:
        """The same search without our sampler and starts."""
        plain = ("sampler=random", "search.sensitivity_evaluations=0", "search.uniform_starts=0")
        return self.ours(target, RANDOM, *plain)

    def uniform(self, target: str) -> Entry:
        """The largest of the uniform subnets that meet the target: no search."""
        subnets = self.bench.space.uniform()
        dense = [s for s in subnets if not any(b.rank_qkv for b in s.blocks)]
        able = [s for s, ok in zip(dense, self.fits(target)(dense), strict=True) if ok]
        # Heads and FFN in proportion, as everybody prunes uniformly.
        near = min(able, key=lambda s: (abs(self._share(s, "heads") - self._share(s, "ffn")) > 0.09, -self._size(s)))
        return Entry(UNIFORM, target, near, self.bench.finalist(near))

    def torch_pruning(self, target: str, importance: Any) -> Entry:
        """The least pruning of Torch-Pruning that meets the target."""
        able, full = self.fits(target), self.full
        for heads in range(full.heads, 0, -1):
            width = max(8, round(full.ffn * heads / full.heads / 8) * 8)
            subnet = SubnetConfig((BlockConfig(heads, heads, width),) * self._blocks, self._hidden)
            if able([subnet])[0]:
                break
        shares = (1 - heads / full.heads, 1 - width / full.ffn)
        model = peers.torch_pruning(self.bench.teacher, importance, *shares, self.calibration)
        return Entry(PRUNED[importance], target, subnet, model)

    def dropped_layers(self, target: str) -> Entry:
        """The most evenly spaced layers that meet the target."""
        able = self.fits(target)
        for keep in range(self._blocks, 0, -1):
            model, kept = peers.dropped_layers(self.bench.teacher, keep)
            blocks = tuple(self.full if i in kept else SKIPPED for i in range(self._blocks))
            subnet = SubnetConfig(blocks, self._hidden)
            if able([subnet])[0]:
                break
        return Entry(DROPPED, target, subnet, model)

    def truncated_svd(self, target: str) -> Entry:
        """The largest rank of plain SVD, the same share everywhere, that meets the target."""
        able, full = self.fits(target), self.full
        for share in np.arange(0.95, 0.04, -0.05):
            model = peers.truncated_svd(self.bench.teacher, float(share))
            block = model.encoder.layer[0]
            ranks = [
                block.get_submodule(path)[0].out_features
                for path in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
            ]
            subnet = SubnetConfig(
                (BlockConfig(full.heads, full.kv_heads, full.ffn, *ranks),) * self._blocks, self._hidden
            )
            if able([subnet])[0]:
                break
        return Entry(SVD, target, subnet, model)

    def quantised_teacher(self) -> Entry:
        """What int8 does without us."""
        return Entry(INT8, AS_IS, self.bench.space.teacher, self.bench.teacher)

    # -- judging ----------------------------------------------------------------------------------------------------

    def entry(self, side: str, target: str, make: Callable[[], Entry], steps: int | None = None) -> Entry:
        """One that an earlier run finished, or one that is made, distilled and judged now.

        Args:
            side: Whose.
            target: What it meets.
            make: Makes it.
            steps: Of distillation; those of all sides by default.
        """
        path = self.path(side, target)
        if path.is_file() and path.with_suffix(".onnx").is_file():
            return Entry.read(path)
        entry = make()
        self._train(entry, self.steps if steps is None else steps)
        path.with_suffix(".onnx").write_bytes(self._graph(entry).SerializeToString())
        entry.write(path)
        return replace(entry, model=None)

    def path(self, side: str, target: str) -> Path:
        """Where an entry is kept; its int8 graph lies beside it."""
        name = re.sub(r"[^a-z0-9.]+", "_", f"{side} {target}".lower())
        return self.folder / f"{name}_{self.seed}_{self.steps}.json"

    def _train(self, entry: Entry, steps: int) -> None:
        """Judge as it is, distil, and judge again, in fp32 and as the int8 graph."""
        bench = self.bench
        evaluator, task = bench.evaluator, bench.task
        entry.untrained = evaluate_model(entry.model, task, evaluator.teacher, "test")
        if steps:
            evaluator.distil(entry.subnet, steps=steps, seed=self.seed, model=entry.model)
        entry.metrics["fp32"] = evaluate_model(entry.model, task, evaluator.teacher, "test")
        entry.metrics["int8"], entry.hits = self._deployed(self._graph(entry))
        print(entry.side, entry.target, entry.untrained, entry.metrics, file=sys.stderr, flush=True)

    def _deployed(self, graph: Any) -> tuple[dict[str, float], list[int]]:
        """Metrics of a graph on the test split, at the batch size of its deployment, and of a classifier its hits."""
        task, teacher = self.bench.task, self.bench.evaluator.teacher
        outputs = predict(onnx_run(graph.SerializeToString(), task), task, "test", batch_size=1, teacher=teacher)
        rows = task.tables("test", outputs, teacher.main("test"))[SAMPLES]
        return task.metrics("test", outputs, teacher.main("test")), [int(hit) for hit in rows.get("correct", ())]

    def teacher_hits(self) -> list[int]:
        """Which test samples a classifier's fp32 teacher gets right."""
        task, main = self.bench.task, self.bench.evaluator.teacher.main("test")
        return [int(hit) for hit in task.tables("test", main, main)[SAMPLES]["correct"]]

    def _graph(self, entry: Entry) -> Any:
        """The deployed int8 graph."""
        template = self.search.device.compiler.template
        return quantize_int8(student_graph(template, self.bench.task.deployable(entry.model), entry.subnet.kept))

    def measure(self, entries: Sequence[Entry]) -> None:
        """Interleaved with the teacher."""
        files = [self.path(entry.side, entry.target) for entry in entries]
        for index, found in self._measured([str(file.with_suffix(".onnx")) for file in files]):
            entries[index].latency_ms, entries[index].samples = found.p50, found.n
            ratio = speedup(found)
            assert ratio is not None
            entries[index].speedup = (ratio.value, ratio.low, ratio.high)
            entries[index].write(files[index])

    def _measured(self, graphs: Sequence[Any]) -> Iterator[tuple[int, Measurement]]:
        """Graphs, each beside the teacher."""
        backend, inputs = make_backend(Device("cpu", "onnxruntime", threads=1)), self.search.device.inputs

        def compiled(graph: Any) -> Callable[[], Any]:
            return lambda: backend.compile(graph, inputs)

        teacher = self.search.device.graph(self.bench.space.teacher)
        reference = compiled(teacher if self.whole else quantize_int8(teacher))
        profiler = Profiler(warmup_seconds=0.2, burst=5, min_visits=10, max_seconds=2.0, chunk_size=8, retries=0)
        yield from profiler.measure([(index, compiled(graph)) for index, graph in enumerate(graphs)], reference)

    @property
    def _blocks(self) -> int:
        return self.bench.space.shape.num_blocks

    @property
    def _hidden(self) -> int:
        return self.bench.space.shape.hidden_size

    def _share(self, subnet: SubnetConfig, name: str) -> float:
        return float(getattr(subnet.blocks[0], name)) / float(getattr(self.full, name))

    def _size(self, subnet: SubnetConfig) -> int:
        return sum(block.heads * self.bench.space.shape.head_dim * 4 + 2 * block.ffn for block in subnet.blocks)
