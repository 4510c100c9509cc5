"""The models that end-to-end comparisons judge: made once, distilled, judged and measured alike, and kept on disk."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from hydra import compose, initialize_config_dir

from latency_models.backends.base import make_backend
from latency_models.backends.graph_students import student_graph
from latency_models.backends.quantize import quantize_int8
from latency_models.device import Device
from latency_models.measurement import Measurement, Ratio, speedup
from latency_models.profiler import Profiler
from nas.commands import plain
from nas.config import conf_dir
from nas.evaluation.evaluate import evaluate_model, onnx_run, predict
from nas.evaluation.metrics import SAMPLES
from nas.measuring import DeviceBench
from nas.searching import SearchBench
from nas.workbench import Workbench
from search_spaces.subnet import SubnetConfig

# Columns of a task's table of samples that are kept, for paired intervals.
_KEPT = ("correct", "surprise", "tokens")


@dataclass
class Entry:
    """One model of one side, for one target; of a stored one only the graph is left.

    `rows` says of every test sample what the deployed graph makes of it: of classifiers ``correct``, of language
    models ``surprise`` and ``tokens`` (`nas.evaluation.language.language_rows`).
    """

    side: str
    target: str
    subnet: SubnetConfig
    model: Any = None
    untrained: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: dict[str, list[float]] = field(default_factory=dict)
    speedup: tuple[float, float, float] = (0.0, 0.0, 0.0)
    latency_ms: float = 0.0
    samples: int = 0
    decode: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def read(cls, path: Path) -> Entry:
        """What an earlier run stored."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["subnet"] = SubnetConfig.from_dict(stored["subnet"])
        return cls(**{**stored, **{name: tuple(stored[name]) for name in ("speedup", "decode") if name in stored}})

    def write(self, path: Path) -> None:
        """Keep everything but the model."""
        kept = {**asdict(Entry(**{**self.__dict__, "model": None})), "subnet": self.subnet.to_dict()}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


class Entries:
    """All models of one search's workbench.

    Args:
        searched: Makes a search on the device, of a study's name and overrides.
        steps: Of distillation, for every side.
        seed: Of searches and distillation.
        folder: Where finished entries are kept: a run that was broken off goes on behind them.
        whole: Whether the teacher that latencies are held against is the fp32 one; else the deployed one.
    """

    # In which all sides run, and how they are measured beside the teacher.
    precision: ClassVar[Literal["fp32", "int8"]] = "int8"
    protocol: ClassVar[Mapping[str, Any]] = {
        "warmup_seconds": 0.2, "burst": 5, "min_visits": 10, "max_seconds": 2.0, "chunk_size": 8, "retries": 0,
    }  # fmt: skip
    # Where models are judged before they are distilled.
    untrained_on: ClassVar[str] = "test"
    # Samples of one run of a deployed graph that is judged: scales of int8 activations are taken over all of them.
    batch_size: ClassVar[int] = 1

    def __init__(
        self, searched: Callable[..., SearchBench], steps: int, seed: int, folder: Path, *, whole: bool = False
    ) -> None:
        self.searched, self.steps, self.seed, self.folder, self.whole = searched, steps, seed, folder, whole
        self.search = searched(f"device_{seed}", f"seed={seed}")
        self.bench = self.search.bench
        folder.mkdir(parents=True, exist_ok=True)

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
        path.with_suffix(".onnx").write_bytes(self.graph(entry.model, entry.subnet).SerializeToString())
        entry.write(path)
        return replace(entry, model=None)

    def path(self, side: str, target: str) -> Path:
        """Where an entry is kept; its deployed graph lies beside it."""
        return self.folder / f"{file_name(side, target)}_{self.seed}_{self.steps}.json"

    # -- judging ----------------------------------------------------------------------------------------------------

    def _train(self, entry: Entry, steps: int) -> None:
        """Judge as it is, distil, and judge again, in fp32 and as the deployed graph."""
        bench = self.bench
        evaluator, task = bench.evaluator, bench.task
        entry.untrained = evaluate_model(entry.model, task, evaluator.teacher, self.untrained_on)
        if steps:
            evaluator.distil(entry.subnet, steps=steps, seed=self.seed, model=entry.model)
        if self.precision != "fp32":
            entry.metrics["fp32"] = evaluate_model(entry.model, task, evaluator.teacher, "test")
        entry.metrics[self.precision], entry.rows = self._deployed(self.graph(entry.model, entry.subnet))
        print(entry.side, entry.target, entry.untrained, entry.metrics, file=sys.stderr, flush=True)

    def _deployed(self, graph: Any) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Metrics of a graph on the test split, and what of its samples is kept."""
        task, teacher = self.bench.task, self.bench.evaluator.teacher
        run = onnx_run(graph.SerializeToString(), task)
        outputs = predict(run, task, "test", batch_size=self.batch_size, teacher=teacher)
        return task.metrics("test", outputs, teacher.main("test")), self._rows(outputs)

    def teacher_rows(self) -> dict[str, list[float]]:
        """What of the test samples is kept of the fp32 teacher."""
        return self._rows(self.bench.evaluator.teacher.main("test"))

    def _rows(self, outputs: Any) -> dict[str, list[float]]:
        table = self.bench.task.tables("test", outputs, self.bench.evaluator.teacher.main("test"))[SAMPLES]
        return {name: [float(value) for value in table[name]] for name in _KEPT if name in table}

    # -- measuring --------------------------------------------------------------------------------------------------

    def deployed(self, graph: Any) -> Any:
        """A graph in the precision in which all sides run."""
        return quantize_int8(graph) if self.precision == "int8" else graph

    def graph(self, model: Any, subnet: SubnetConfig) -> Any:
        """A model's deployed graph."""
        template = self.search.device.compiler.template
        return self.deployed(student_graph(template, self.bench.task.deployable(model), subnet.kept))

    def measure(self, entries: Sequence[Entry]) -> None:
        """Interleaved with the teacher."""
        files = [self.path(entry.side, entry.target) for entry in entries]
        for index, found in self._measured([str(file.with_suffix(".onnx")) for file in files]):
            entries[index].latency_ms, entries[index].samples = found.p50, found.n
            entries[index].speedup = interval_of(found)
            entries[index].write(files[index])

    def measured(self, graph: Any) -> float:
        """How many times faster than the teacher a deployed graph is."""
        return interval_of(next(iter(self._measured([graph])))[1])[0]

    @cached_property
    def slower(self) -> float:
        """How many times slower than the deployed teacher the one is that latencies are held against, measured."""
        return self.measured(self.deployed(self.search.device.graph(self.bench.space.teacher))) if self.whole else 1.0

    def _measured(self, graphs: Sequence[Any], inputs: Any = None) -> Iterator[tuple[int, Measurement]]:
        """Graphs, each beside the teacher, on the workload's inputs or others."""
        backend = make_backend(Device("cpu", "onnxruntime", threads=1))
        inputs = self.search.device.inputs if inputs is None else inputs

        def compiled(graph: Any) -> Callable[[], Any]:
            return lambda: backend.compile(graph, inputs)

        teacher = self.search.device.graph(self.bench.space.teacher)
        reference = compiled(teacher if self.whole else self.deployed(teacher))
        jobs = [(index, compiled(graph)) for index, graph in enumerate(graphs)]
        yield from Profiler(**self.protocol).measure(jobs, reference)


def file_name(*parts: str) -> str:
    """Words as part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "_", " ".join(parts).lower())


def interval_of(measured: Measurement) -> tuple[float, float, float]:
    """How many times faster than the reference beside it something was, with its interval."""
    ratio: Ratio | None = speedup(measured)
    assert ratio is not None
    return ratio.value, ratio.low, ratio.high


def search_of(root: Path, study: str, *overrides: str) -> SearchBench:
    """A search, as the command line makes it."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="search"):
        config = plain(compose("search", overrides=[f"root={root}", f"study={study}", *overrides]))
    bench = Workbench(config)
    made = SearchBench(bench, DeviceBench(bench))
    made.directory.mkdir(parents=True, exist_ok=True)
    return made
