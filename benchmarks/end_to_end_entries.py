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

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from latency_models.backends.base import make_backend
from latency_models.backends.graph_students import student_graph
from latency_models.backends.quantize import quantize_int8
from latency_models.device import Device
from latency_models.measurement import Measurement, Ratio, speedup
from latency_models.profiler import Profiler
from nas.commands import plain
from nas.config import conf_dir
from nas.distillation.teacher import TeacherOutputs
from nas.evaluation.evaluate import evaluate_model, onnx_run, predict
from nas.evaluation.metrics import SAMPLES
from nas.measuring import DeviceBench
from nas.searching import SearchBench
from nas.workbench import Workbench
from search_spaces.subnet import SubnetConfig

Precision = Literal["fp32", "int8"]
ACROSS = "across domains"  # Among an entry's metrics: as deployed, on texts of another domain.
# Columns of a task's table of samples that are kept, for paired intervals.
_KEPT = ("correct", "surprise", "tokens")


@dataclass
class Entry:
    """One model of one side, for one target; of a stored one only the graph is left, in the precision that it has.

    `rows` says of every test sample what the deployed graph makes of it: of classifiers ``correct``, of language
    models ``surprise`` and ``tokens`` (`nas.evaluation.language.language_rows`). `seeds` is empty but in means of
    several seeds: what each of them had as deployed.
    """

    side: str
    target: str
    subnet: SubnetConfig
    model: Any = None
    precision: Precision = "int8"
    untrained: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: dict[str, list[float]] = field(default_factory=dict)
    speedup: tuple[float, float, float] = (0.0, 0.0, 0.0)
    latency_ms: float = 0.0
    samples: int = 0
    decode: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seeds: dict[int, dict[str, float]] = field(default_factory=dict)

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
        precision: In which all sides run.
        reference: Precision of the teacher that latencies are held against.
    """

    # How sides are measured beside the teacher.
    protocol: ClassVar[Mapping[str, Any]] = {
        "warmup_seconds": 0.2, "burst": 5, "min_visits": 10, "max_seconds": 2.0, "chunk_size": 8, "retries": 0,
    }  # fmt: skip
    # Where models are judged before they are distilled.
    untrained_on: ClassVar[str] = "test"
    # Samples of one run of a deployed graph that is judged: scales of int8 activations are taken over all of them.
    batch_size: ClassVar[int] = 1

    def __init__(
        self, searched: Callable[..., SearchBench], steps: int, seed: int, folder: Path, *,
        precision: Precision, reference: Precision,
    ) -> None:  # fmt: skip
        self.searched, self.steps, self.seed, self.folder = searched, steps, seed, folder
        self.precision, self.reference = precision, reference
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
        graph = deployed(self.graph(entry.model, entry.subnet), entry.precision)
        path.with_suffix(".onnx").write_bytes(graph.SerializeToString())
        entry.write(path)
        return replace(entry, model=None)

    def path(self, side: str, target: str) -> Path:
        """Where an entry is kept; its deployed graph lies beside it."""
        return self.folder / f"{file_name(side, target)}_{self.seed}_{self.steps}.json"

    def of_seeds(self, entry: Entry) -> dict[int, Entry]:
        """All seeds' entries of the same side and target that were finished and measured so far."""
        name = file_name(entry.side, entry.target)
        files = {int(path.stem.split("_")[-2]): path for path in self.folder.glob(f"{name}_[0-9]*_{self.steps}.json")}
        found = {seed: Entry.read(path) for seed, path in sorted(files.items())}
        return {seed: each for seed, each in found.items() if each.speedup[0]}

    def over_seeds(self, entry: Entry) -> Entry:
        """Their mean."""
        return averaged(self.of_seeds(entry))

    # -- judging ----------------------------------------------------------------------------------------------------

    def _train(self, entry: Entry, steps: int) -> None:
        """Judge as it is, distil, and judge again, in fp32 and as the deployed graph."""
        bench = self.bench
        evaluator, task = bench.evaluator, bench.task
        entry.untrained = evaluate_model(entry.model, task, evaluator.teacher, self.untrained_on, place=bench.place)
        if steps:
            evaluator.distil(entry.subnet, steps=steps, seed=self.seed, model=entry.model)
        if entry.precision != "fp32":
            entry.metrics["fp32"] = evaluate_model(entry.model, task, evaluator.teacher, "test", place=bench.place)
        graph = self.graph(entry.model, entry.subnet)
        entry.metrics[entry.precision], entry.rows = self._deployed(deployed(graph, entry.precision))
        if self.judged_in_int8(entry) and "int8" not in entry.metrics:
            entry.metrics["int8"], _ = self._deployed(deployed(graph, "int8"))
        print(entry.side, entry.target, entry.untrained, entry.metrics, file=sys.stderr, flush=True)

    def judged_in_int8(self, entry: Entry) -> bool:
        """Whether an entry that is deployed in fp32 is judged in int8, too."""
        return entry.precision == "int8"

    def judge_across(self, entries: Sequence[Entry], task: Any) -> None:
        """Judge stored graphs on the test split of another domain.

        Args:
            entries: Finished ones.
            task: The same teacher's, with other data.
        """
        teacher = TeacherOutputs(task, directory=self.folder)
        for entry in (each for each in entries if ACROSS not in each.metrics):
            path = self.path(entry.side, entry.target)
            run = onnx_run(str(path.with_suffix(".onnx")), task)
            outputs = predict(run, task, "test", batch_size=self.batch_size, teacher=teacher)
            entry.metrics[ACROSS] = task.metrics("test", outputs, teacher.main("test"))
            entry.write(path)

    def _deployed(self, graph: Any) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Metrics of a graph on the test split, and what of its samples is kept."""
        task, teacher = self.bench.task, self.bench.evaluator.teacher
        run = onnx_run(graph.SerializeToString(), task, torch.get_num_threads())
        outputs = predict(run, task, "test", batch_size=self.batch_size, teacher=teacher)
        return task.metrics("test", outputs, teacher.main("test")), self._rows(outputs)

    def teacher_rows(self) -> dict[str, list[float]]:
        """What of the test samples is kept of the fp32 teacher."""
        return self._rows(self.bench.evaluator.teacher.main("test"))

    def _rows(self, outputs: Any) -> dict[str, list[float]]:
        table = self.bench.task.tables("test", outputs, self.bench.evaluator.teacher.main("test"))[SAMPLES]
        return {name: [float(value) for value in table[name]] for name in _KEPT if name in table}

    # -- measuring --------------------------------------------------------------------------------------------------

    def graph(self, model: Any, subnet: SubnetConfig) -> Any:
        """A model's graph, in fp32."""
        template = self.search.device.compiler.template
        return student_graph(template, self.bench.task.deployable(model), subnet.kept)

    def measure(self, entries: Sequence[Entry]) -> None:
        """Interleaved with the teacher."""
        files = [self.path(entry.side, entry.target) for entry in entries]
        for index, found in self._measured([str(file.with_suffix(".onnx")) for file in files]):
            entries[index].latency_ms, entries[index].samples = found.p50, found.n
            entries[index].speedup = interval_of(found)
            entries[index].write(files[index])

    def measured(self, graph: Any) -> float:
        """How many times faster than the teacher a graph is in the precision in which all sides run."""
        return interval_of(next(iter(self._measured([deployed(graph, self.precision)])))[1])[0]

    @cached_property
    def slower(self) -> float:
        """How many times slower than the deployed teacher the one is that latencies are held against, measured once."""
        if self.precision == self.reference:
            return 1.0
        path = self.folder / "teacher_speedup.json"  # A search that was broken off goes on with the same limit only.
        if not path.is_file():
            found = self.measured(self.search.device.graph(self.bench.space.teacher))
            path.write_text(json.dumps(found), encoding="utf-8")
        return float(json.loads(path.read_text(encoding="utf-8")))

    def _measured(self, graphs: Sequence[Any], inputs: Any = None) -> Iterator[tuple[int, Measurement]]:
        """Graphs, each beside the teacher, on the workload's inputs or others."""
        backend = make_backend(Device("cpu", "onnxruntime", threads=1))
        inputs = self.search.device.inputs if inputs is None else inputs

        def compiled(graph: Any) -> Callable[[], Any]:
            return lambda: backend.compile(graph, inputs)

        reference = compiled(deployed(self.search.device.graph(self.bench.space.teacher), self.reference))
        jobs = [(index, compiled(graph)) for index, graph in enumerate(graphs)]
        yield from Profiler(**self.protocol).measure(jobs, reference)


def deployed(graph: Any, precision: Precision) -> Any:
    """A graph in a precision."""
    return quantize_int8(graph) if precision == "int8" else graph


def averaged(entries: Mapping[int, Entry]) -> Entry:
    """One entry of several seeds': of every test sample the mean, so that intervals are drawn of samples, not of seeds.

    Args:
        entries: By seed, of one side and target, judged on the same samples and measured.
    """
    found = list(entries.values())
    first, judged = found[0], [entry.metrics[entry.precision] for entry in found]

    def ratio(values: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
        middle, low, high = zip(*values, strict=True)
        return float(np.mean(middle)), min(low), max(high)

    return replace(
        first,
        untrained=_means([entry.untrained for entry in found]),
        metrics={**first.metrics, first.precision: _means(judged)},
        rows={name: np.mean([entry.rows[name] for entry in found], axis=0).tolist() for name in first.rows},
        speedup=ratio([entry.speedup for entry in found]),
        decode=ratio([entry.decode for entry in found]),
        latency_ms=float(np.mean([entry.latency_ms for entry in found])),
        samples=sum(entry.samples for entry in found),
        seeds=dict(zip(entries, judged, strict=True)),
    )


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}


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
