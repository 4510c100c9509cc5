"""Finalists: extract, distil, export, verify, measure beside the teacher, and report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.engine.candidates import Candidate, shown
from nas.engine.costs import THROUGHPUT
from nas.export.artefacts import MIXED
from nas.export.verify import ExportError
from nas.failures import one_line
from nas.finalists import Budget, distil_finalist, measure_each
from nas.finished import OWN_COLUMN, FinalMetrics, Member, finished_costs, latency_of, speedup_of, write_model_metrics
from nas.reporting import make_report
from nas.reports.data import Interval, ModelRow, Report
from nas.searching import Found, SearchBench
from search_spaces.cost import cost
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from latency_models.deployed import Deployed
    from latency_models.measurement import Measurement

PRECISIONS = ("fp32", "int8")
_SAME_PACE = 0.03


class Finish:
    """Turns a front into exported, measured models and a report.

    Args:
        search: The finished search's stages.
    """

    def __init__(self, search: SearchBench) -> None:
        self.search = search
        self.bench = search.bench
        self.device = search.device
        self.settings = self.bench.config["finalists"]
        self.budget = Budget.of(self.settings)
        self.models = search.directory / "models"

    def run(self, found: Found) -> Report:
        """Export and measure the front's members, then write the report."""
        chosen = shown(found.front, self.search.objectives, int(self.settings["count"]))
        distilled = self._distilled(chosen)
        members = [self._teacher()]
        with self.bench.stage("finalists"), self.bench.progress("Exporting and verifying", len(chosen)) as bar:
            for index, candidate in enumerate(chosen):
                name = f"{self.bench.config['study']}-{index + 1}"
                try:
                    members.append(self._member(name, candidate, distilled=candidate.number in distilled))
                except Exception as error:  # noqa: BLE001 - runtimes' own errors have no base class
                    self._left_out((name,), error)
                bar.advance(text=name)
        if len(members) == 1:
            raise ExportError(
                f"finalists: none could be exported. {self.bench.notes[-1]} The study is kept: mend that and run the "
                f"same command again, or look at it with `nas report study={self.bench.config['study']}`."
            )
        rows = self._measure(members)
        self._write_metrics(members, rows)
        return make_report(self.search, found, rows)

    def _write_metrics(self, members: Sequence[Member], rows: Sequence[ModelRow]) -> None:
        """Tell of every exported model, in its own folder, what is known of it."""
        bench = self.bench
        for member in (member for member in members if member.role == "front"):
            told = {"study": bench.config["study"], "trial": member.trial, "device": self.device.fingerprint}
            told["workload"], own = bench.workload.to_dict(), [row for row in rows if row.name == member.name]
            write_model_metrics(member.directory, own, member.intervals, bench.task.quality, told)

    def _left_out(self, key: Sequence[str], error: BaseException) -> None:
        """Tell, here and in the report, that a finalist, or a precision of one, failed: the others are not lost."""
        self.bench.notes.append(f"{' '.join(key)} is left out, because it failed: {one_line(error).rstrip('.')}.")
        self.bench.say(self.bench.notes[-1])

    def _distilled(self, chosen: Sequence[Candidate]) -> set[int]:
        """Numbers of the members that are distilled: the fastest ones but the very fastest where there are more."""
        count = int(self.settings["distil"])
        if not count or not self.budget:
            return set()
        samples, teacher = self.bench.task.samples, self.bench.evaluator.teacher
        with (
            self.bench.stage("teacher outputs for distillation"),
            self.bench.progress("Teacher outputs", len(samples.order("train", teacher.batch_size))) as bar,
        ):
            teacher.prepare(["train"], bar)
        first = min(1, max(len(chosen) - count, 0))
        return {candidate.number for candidate in chosen[first : first + count]}

    # -- models -----------------------------------------------------------------------------------------------------

    def _teacher(self) -> Member:
        """The teacher's own graphs, for the comparison."""
        from nas.export.export import write_graphs

        directory = self.models / "teacher"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        with self.bench.stage("export teacher"):
            graph = self.device.graph(self.bench.space.teacher)
            for precision in PRECISIONS:
                try:
                    write_graphs(self.bench.teacher, self.bench.task, directory, [precision], graph)
                except Exception as error:
                    if precision == "fp32":
                        raise
                    self._left_out(("teacher", precision), error)
        subnet = self.bench.space.teacher
        member = self._described("teacher", "teacher", subnet, directory, None, self.bench.teacher)
        return replace(member, costs={name: values[0] for name, values in self.search.costs.of(subnet).items()})

    def _member(self, name: str, candidate: Candidate, *, distilled: bool) -> Member:
        bench, subnet = self.bench, candidate.subnet
        model = bench.finalist(subnet)
        if distilled and distil_finalist(bench, subnet, model, name, self.budget):
            name = f"{name}-distilled"
        directory = self.models / name
        self._export(model, subnet, name, directory)
        predicted = candidate.predicted.get("latency_ms")
        interval = Interval(*predicted) if predicted else None
        member = self._described(name, "front", subnet, directory, interval, model)
        costs = {name: values[0] for name, values in candidate.predicted.items()}
        return replace(member, trial=candidate.number, costs=costs)

    def _export(self, model: Any, subnet: SubnetConfig, name: str, directory: Path) -> None:
        """Write a folder, in fp32 alone where the model does not bear quantisation: the other members are not lost."""
        from nas.export.export import export_candidate

        bench, graph = self.bench, self.device.student_graph(model, subnet)
        written = partial(
            export_candidate,
            model,
            subnet,
            bench.space.shape,
            bench.task,
            directory,
            name=name,
            teacher=str(bench.config["model"]["path"]),
            graph=graph,
        )
        try:
            written(precisions=PRECISIONS)
        except Exception as error:  # noqa: BLE001 - as above
            bench.say(f"{one_line(error)} So {name} is exported in fp32 alone.")
            written(precisions=("fp32",))

    def _described(
        self, name: str, role: str, subnet: SubnetConfig, directory: Path, predicted: Interval | None, model: Any
    ) -> Member:
        """Quality on texts that neither calibration nor search saw, of the model and of its quantised graphs."""
        from nas.evaluation.evaluate import evaluate_model, evaluate_run, onnx_run
        from nas.export.verify import GRAPHS

        bench = self.bench
        mixed = subnet != subnet.plain and bench.device.backend == "onnxruntime"
        names = (*PRECISIONS, *([MIXED] if mixed else []))
        graphs = {name: file for name in names if (file := directory / GRAPHS[name]).is_file()}
        teacher, threads = bench.evaluator.teacher, bench.device.threads
        # In fp32, as exported: a search may compare candidates in whatever precision is fastest.
        more = FinalMetrics.of(bench)
        metrics = {"fp32": evaluate_model(model, bench.task, teacher, "test", extras=more, place=bench.place)}
        known = {"fp32": more.interval}
        for precision in (name for name in graphs if name != "fp32"):
            # Dynamic quantisation scales activations over the whole batch, so it is judged text by text, as deployed.
            try:
                run = onnx_run(str(graphs[precision]), bench.task, threads)
                metrics[precision] = evaluate_run(run, bench.task, teacher, "test", batch_size=1, extras=more)
                known[precision] = more.interval
            except Exception as error:  # noqa: BLE001 - as above
                self._left_out((name, precision), error)
        graphs = {precision: file for precision, file in graphs.items() if precision in metrics}
        intervals = {precision: interval for precision, interval in known.items() if interval is not None}
        return Member(name, role, subnet, directory, graphs, predicted, metrics, intervals)

    # -- latency ----------------------------------------------------------------------------------------------------

    def _measure(self, members: Sequence[Member]) -> list[ModelRow]:
        """Every graph on the device, interleaved with the fp32 teacher, and the int8 ones with the int8 teacher."""
        from latency_models.profiler import Profiler

        bench, teacher = self.bench, members[0]
        keys = [(member, precision) for member in members for precision in member.graphs]
        if bench.device.transport != "local":
            return self._measured_elsewhere(keys, teacher)
        profiler = Profiler(**self.settings["protocol"], seed=bench.seed)
        found: dict[tuple[str, str], Measurement] = {}
        against_int8: dict[tuple[str, str], Measurement] = {}
        total = len(keys) + sum(precision != "fp32" for _, precision in keys)
        with bench.stage("measure finalists"), bench.progress("Measuring", total) as bar:

            def measured(some: Sequence[tuple[Member, str]], against: str, into: dict[tuple[str, str], Any]) -> None:
                def keep(key: tuple[str, str], measurement: Measurement) -> None:
                    if key not in into:
                        bar.advance(text=f"{' '.join(key)} against the {against} teacher")
                    into[key] = measurement

                jobs = {(m.name, p): self._job(m, p) for m, p in some}
                measure_each(profiler, jobs, (teacher.name, against), keep, self._left_out)

            measured(keys, "fp32", found)
            keys = [(member, precision) for member, precision in keys if (member.name, precision) in found]
            if (teacher.name, "int8") in found:
                measured([(m, p) for m, p in keys if p != "fp32"], "int8", against_int8)
        if (own := (teacher.name, bench.device.precision)) in found and not self.device.takes_module:
            self._note_pace(found[own].p50)
        return [self._row(m, p, found[m.name, p], against_int8.get((m.name, p))) for m, p in keys]

    def _note_pace(self, teacher_ms: float) -> None:
        """Tell where the machine runs at another pace than when it was profiled: predictions are of that time."""
        if "latency_ms" not in self.search.costs.names or not (level := self.device.profile.reference_level):
            return
        ratio = teacher_ms / level
        if abs(ratio - 1) > _SAME_PACE:
            self.bench.notes.append(
                f"While the finalists were measured, the machine ran {abs(ratio - 1):.0%} "
                f"{'slower' if ratio > 1 else 'faster'} than while it was profiled (the teacher took {teacher_ms:.3g} "
                f"ms, not {level:.3g}). Predicted latencies are of that time; speed-ups hold, as they are paired."
            )
            self.bench.say(self.bench.notes[-1])

    def _job(self, member: Member, precision: str) -> Callable[[], Any]:
        """What compiles a member's graph for the device in a precision.

        ONNX Runtime, which also stands in for a runtime that takes modules, runs the exported graph of that precision;
        others have kinds of int8 of their own, and bring the fp32 graph to it.
        """
        return self._deployed(member, precision).job(self.device.inputs)

    def _deployed(self, member: Member, precision: str) -> Deployed:
        from latency_models.deployed import Deployed, device_of_graphs

        device = device_of_graphs(self.bench.device)
        whole = device.backend == "onnxruntime"
        device = replace(device, precision="fp32" if whole else precision)  # type: ignore[arg-type]
        return Deployed(f"{member.name} {precision}", device, str(member.graphs[precision if whole else "fp32"]))

    def _measured_elsewhere(self, keys: Sequence[tuple[Member, str]], teacher: Member) -> list[ModelRow]:
        """Rows of a device that is another machine: measured there where it answers, else without measurements."""
        from nas.elsewhere import Elsewhere

        graphs = [(member.subnet, member.graphs[precision]) for member, precision in keys]
        protocol, folder = self.settings["protocol"], self.search.directory / "finalists"
        with self.bench.stage("measure finalists"):
            found = Elsewhere(self.device).measure_graphs(graphs, teacher.graphs["fp32"], protocol, folder)
        return [self._row(m, p, measured, None) for (m, p), measured in zip(keys, found, strict=True)]

    def _row(self, member: Member, precision: str, measured: Measurement | None, int8: Measurement | None) -> ModelRow:
        costs = cost(self.bench.space.shape, member.subnet, self.bench.workload)
        # The prediction is of what was searched: blocks in their own precisions, or the device's.
        searched = MIXED if MIXED in member.graphs else self.bench.device.precision
        predicted = member.predicted if precision == searched else None
        return ModelRow(
            name=member.name,
            role=member.role,
            subnet=member.subnet,
            parameters=int(costs.parameters),
            macs=int(costs.macs),
            metrics=member.metrics[precision],
            precision=precision,
            predicted_ms=predicted,
            measured=None if measured is None else latency_of(measured),
            speedup_fp32=None if measured is None else speedup_of(measured, self.bench.seed),
            speedup_int8=None if int8 is None else speedup_of(int8, self.bench.seed),
            size_mb=member.graphs[precision].stat().st_size / 1e6,
            directory=str(member.directory),
            costs=self._costs(member, precision, measured, searched),
        )

    def _costs(self, member: Member, precision: str, measured: Measurement | None, searched: str) -> dict[str, float]:
        """Costs beside latency that goals and constraints name: of what was searched as it was known there."""
        from latency_models.backends.base import as_arrays

        objectives, bench = self.search.objectives, self.bench
        names = {*objectives.goals, *objectives.constraints} & {*OWN_COLUMN}
        found = {name: value for name, value in member.costs.items() if name in names and precision == searched}
        if names and measured is not None:
            model, inputs = self._deployed(member, precision), as_arrays(self.device.inputs)
            local = names if bench.device.transport == "local" else names & {THROUGHPUT}
            found |= finished_costs(local, model, inputs, bench.workload.batch_size, measured.p50, bench.say)
        return found
