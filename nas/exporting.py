"""`nas export`: a found subnet in the files of wanted runtimes, verified, judged, and measured beside its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.beforehand import check_recalibration
from nas.finalists import Budget, distil_finalist
from nas.searching import SearchBench
from nas.workbench import Workbench

if TYPE_CHECKING:
    from torch import nn

    from latency_models.device import Device
    from nas.engine.candidates import Candidate
    from nas.export.artefacts import Artefact
    from nas.export.export import ExportedModel
    from nas.export.measure import Subject
    from nas.export.reference import Arrays
    from nas.export.verify import Check

# An engine of TensorRT holds for a range of shapes, which must be told when it is built.
_MOST_TEXTS = 32


def several(value: Any) -> list[str]:
    """Names as a list: ``format=onnx`` means ``format=[onnx]``."""
    return [value] if isinstance(value, str) else [str(name) for name in value or ()]


class Export:
    """Writes one candidate of a study.

    Args:
        stages: The study's stages, with the options of `nas export` in its configuration.
    """

    def __init__(self, stages: SearchBench) -> None:
        self.stages = stages
        self.bench: Workbench = stages.bench
        self.settings: Mapping[str, Any] = stages.bench.config["measure"]

    def run(self) -> ExportedModel:
        """Export, verify, judge and measure; the folder appears when all of it is done.

        Raises:
            ValueError: An option is unknown, or the study has no such candidate.
            ExportError: An artefact does not compute what the model computes.
        """
        from nas.engine.candidates import pick
        from nas.export.artefacts import Blocks, check_runtimes, chosen
        from nas.export.export import check_target, export_candidate

        config, bench = self.bench.config, self.bench
        formats, precisions = several(config["format"]), several(config["precision"])
        if not formats:
            raise ValueError("`format` must name at least one format, but is empty.")
        # What is wrong with them is told at once.
        check_runtimes(chosen(formats, precisions), self._tensorrt)
        check_recalibration(bench)
        candidate = pick(
            self.stages.stored().front, self.stages.objectives, config["pick"], dict(config["under"] or {}) or None
        )
        blocks = Blocks.of(bench.space.shape, candidate.subnet)
        artefacts = chosen(formats, precisions, blocks)
        name = f"{config['study']}-{config['pick']}"
        directory = Path(config["directory"] or self.stages.directory / "models" / name)
        check_target(directory)
        model = self._model(candidate, name)

        def metrics(folder: Path, checks: Sequence[Check]) -> dict[str, Any]:
            return self._metrics(candidate, model, artefacts, folder, checks)

        return export_candidate(
            model,
            candidate.subnet,
            bench.space.shape,
            bench.task,
            directory,
            name=name,
            teacher=str(config["model"]["path"]),
            metrics=metrics,
            formats=formats,
            precisions=precisions,
            graph=self.stages.device.student_graph(model, candidate.subnet) if artefacts else None,
            calibration_samples=int(self.settings["calibration_samples"]),
            metadata=self._told(candidate),
            device=self._tensorrt,
        )

    def _model(self, candidate: Candidate, name: str) -> nn.Module:
        bench = self.bench
        model = bench.finalist(candidate.subnet)
        if bench.config["distil"] and (budget := Budget.of(bench.config["finalists"])):
            distil_finalist(bench, candidate.subnet, model, name, budget)
        if bench.config["temperature"]:
            from nas.evaluation.calibration import with_fitted_temperature

            model, temperature = with_fitted_temperature(model, bench.task)
            bench.say(f"Logits are divided by the temperature {temperature:.3f}, fitted on the validation split.")
        return model

    def _told(self, candidate: Candidate) -> dict[str, str]:
        """What the files' own metadata say beside architecture and versions."""
        quality = {name: f"{value:.4g}" for name, value in candidate.metrics.items()}
        found = {"study": str(self.bench.config["study"]), "trial": str(candidate.number)}
        return found | {f"quality.validation.{name}": text for name, text in quality.items()}

    @property
    def _tensorrt(self) -> Device:
        """Where engines are built: the study's own device where it is TensorRT's."""
        from latency_models.device import Device

        target = self.bench.device
        base = target if target.backend == "tensorrt" else Device("tensorrt_cuda", "tensorrt", provider="cuda")
        sizes = {"max_batch_size": _MOST_TEXTS, "max_sequence_length": max(self.bench.task.samples.max_length, 1)}
        return replace(base, options={**sizes, **base.options})

    # -- figures ----------------------------------------------------------------------------------------------------

    def _metrics(
        self,
        candidate: Candidate,
        model: nn.Module,
        artefacts: Sequence[Artefact],
        folder: Path,
        checks: Sequence[Check],
    ) -> dict[str, Any]:
        """Everything that is known of the folder, as plain data."""
        from latency_models.backends.tensorrt_operators import PARSER_VERSION, unsupported

        bench = self.bench
        graphs = [row for row in artefacts if row.format == "onnx"]
        found: dict[str, Any] = {
            "study": bench.config["study"],
            "trial": candidate.number,
            "split": "test",
            "quality": self._quality(model, artefacts, folder),
            "checks": [{**asdict(check), "shape": list(check.shape)} for check in checks],
            "tensorrt_refuses": {row.file: list(unsupported(folder / row.file)) for row in graphs},
            "tensorrt_parser": PARSER_VERSION,
        }
        if self.settings["enabled"] and bench.device.transport == "local":
            found |= {
                "measured": self._measured(candidate, model, artefacts, folder),
                "device": bench.device.fingerprint(),
                "workload": bench.workload.to_dict(),
            }
        return found

    def _quality(self, model: nn.Module, artefacts: Sequence[Artefact], folder: Path) -> dict[str, dict[str, float]]:
        """Metrics on the test split, and how far the main one is from the model's own."""
        from nas.evaluation.evaluate import evaluate_model
        from nas.export.measure import device_of
        from nas.export.quality import judge

        bench, main = self.bench, self.bench.task.quality
        teacher = bench.evaluator.teacher
        found = {"transformers": evaluate_model(model, bench.task, teacher, "test", place=bench.place)}
        with bench.stage("judge"), bench.progress("Judging", len(artefacts)) as bar:
            for row in artefacts:
                metrics = judge(row, folder, bench.task, teacher, device_of(row, bench.device))
                found[row.key] = {**metrics, f"{main}_difference": metrics[main] - found["transformers"][main]}
                bar.advance(text=f"{row.key} {main} {metrics[main]:.4f}")
        return found

    def _measured(
        self, candidate: Candidate, model: nn.Module, artefacts: Sequence[Artefact], folder: Path
    ) -> dict[str, dict[str, Any]]:
        """Figures of every artefact and of the teacher's, and what was predicted beside them."""
        from nas.export.artefacts import MIXED
        from nas.export.measure import measure, subjects_of

        bench = self.bench
        own = [*self._modules(model, teacher=False), *subjects_of(artefacts, folder, bench.device)]
        teachers = self._teachers(artefacts)
        reference = next(subject for subject in teachers if subject.key in ("onnx fp32", "transformers"))
        with bench.stage("measure"), bench.progress("Measuring", len(own) + len(teachers)) as bar:
            found = measure(
                [*teachers, *own],
                reference,
                self._inputs,
                batch_size=bench.workload.batch_size,
                batches=[int(size) for size in self.settings["batches"]],
                protocol=self.settings["protocol"],
                seed=bench.seed,
                progress=bar,
            )
        predicted, mixed = candidate.predicted.get("latency_ms"), candidate.subnet != candidate.subnet.plain
        searched = (bench.device.backend, MIXED if mixed else bench.device.precision)
        for row in artefacts:
            if predicted and (row.backend, row.precision) == searched:
                found[row.key]["predicted_ms"] = dict(zip(("value", "low", "high"), predicted, strict=True))
        return found

    def _inputs(self, batch_size: int) -> Arrays:
        from nas.export.reference import as_numpy

        return as_numpy(self.bench.task.example_inputs(replace(self.bench.workload, batch_size=batch_size)))

    def _modules(self, model: nn.Module, *, teacher: bool) -> list[Subject]:
        """The model in torch, where the folder holds it."""
        from latency_models.device import Device
        from nas.export.measure import Subject

        if "transformers" not in several(self.bench.config["format"]):
            return []
        target = self.bench.device
        device = target if target.backend == "torch" else Device("torch_cpu", "torch", threads=target.threads)
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6
        return [Subject("transformers", teacher, device, self.bench.task.deployable(model), size)]

    def _teachers(self, artefacts: Sequence[Artefact]) -> list[Subject]:
        """The teacher in the same files, kept in the study's folder; its fp32 graph always."""
        from nas.export.artefacts import ARTEFACTS, MIXED, write_artefact
        from nas.export.export import calibration_inputs
        from nas.export.measure import subjects_of

        bench, folder = self.bench, self.stages.directory / "models" / "teacher"
        folder.mkdir(parents=True, exist_ok=True)
        same = [row for row in artefacts if row.precision != MIXED]  # A teacher's blocks have no precisions.
        wanted = list(dict.fromkeys([ARTEFACTS["onnx fp32"], *same]))
        missing = [row for row in wanted if not (folder / row.file).is_file()]
        if missing:
            bench.say("Writing the teacher's files, to be measured beside ...")
            with bench.stage("export teacher"):
                graph = self.stages.device.graph(bench.space.teacher)
                calibration = calibration_inputs(bench.task, int(self.settings["calibration_samples"]))
                for row in missing:
                    write_artefact(row, graph, folder, calibration=calibration, device=self._tensorrt)
        found = self._modules(bench.teacher, teacher=True)
        return [*found, *subjects_of(wanted, folder, bench.device, teacher=True)]
