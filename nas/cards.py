"""Judging models: from a path to a report card, whatever made the model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import build
from nas.evaluation.aspects import Aspects
from nas.evaluation.card import METRICS_FILE, ReportCard
from nas.evaluation.model_card import write_card
from nas.subjects import Subject, check_alike, check_there, check_tokens, existing_graph, models_there
from nas.tasks.cache import content_key
from nas.workbench import Workbench

if TYPE_CHECKING:
    from latency_models.profiler import Profiler
    from nas.evaluation.evaluate import Run
    from nas.evaluation.judge import Judge, Judged

_LIBRARIES = ("hwnas", "torch", "transformers", "onnxruntime", "scikit-learn", "fairlearn", "torchmetrics")


class JudgeBench:
    """Everything that judging models needs of a workbench; the teacher is the model of ``model.path``.

    Args:
        bench: The configuration's stages.
        settings: ``split``, ``measure``, ``memory`` and ``protocol``; those of the configuration by default.
    """

    def __init__(self, bench: Workbench, settings: Mapping[str, Any] | None = None) -> None:
        self.bench = bench
        self.settings = settings or bench.config
        self.aspects: Aspects = build(bench.config["evaluation"], "evaluation")
        self.split = str(self.settings["split"])
        # What names models, for errors.
        self.option = "models" if "models" in bench.config else "candidate"

    @cached_property
    def teacher(self) -> Subject:
        """What the others are compared with."""
        path = str(self.bench.config["model"]["path"])
        return Subject(Path(path).name, path, "transformers", self.bench.teacher, existing_graph(Path(path)))

    def subject(self, path: str, name: str | None = None) -> Subject:
        """The model of a path.

        Raises:
            FileNotFoundError, ValueError: There is none, or it is of another kind than the task.
        """
        place = Path(path)
        check_there(self.option, path, self.bench.root)
        if path == self.teacher.path:
            return self.teacher if name is None else replace(self.teacher, name=name)
        if place.suffix == ".onnx":
            return Subject(name or f"{place.parent.name}/{place.stem}", path, "onnx", self._beside(place), place)
        return Subject(name or place.name, path, "transformers", self._loaded(path), existing_graph(place))

    def cards(self, subjects: Sequence[Subject]) -> list[ReportCard]:
        """One report card a model, measured together where anything is measured."""
        if self.settings["measure"]:
            # What cannot be measured is told now, not after minutes of judging.
            _ = self._profiler, self.bench.workload
        cards = [self._card(subject) for subject in subjects]
        if not self.settings["measure"]:
            return cards
        sections = self._efficiency(subjects)
        return [replace(card, efficiency=section) for card, section in zip(cards, sections, strict=True)]

    # -- quality and what belongs to it -----------------------------------------------------------------------------

    @cached_property
    def judge(self) -> Judge:
        """What judges all models."""
        from nas.distillation.teacher import TeacherOutputs
        from nas.evaluation.judge import Judge

        bench = self.bench
        outputs = TeacherOutputs(bench.task, (), str(bench.cache), model=bench.teacher)
        return Judge(bench.task, outputs, self._teacher_run, self.aspects, self.split)

    @cached_property
    def _teacher_run(self) -> Run:
        task, model = self.bench.task, self.bench.teacher
        return lambda batch: task.outputs(model, batch)

    def _card(self, subject: Subject) -> ReportCard:
        judge, task = self.judge, self.bench.task
        with self.bench.progress(f"Judging {subject.name}") as bar:
            judge.listen(lambda text: bar.advance(text=text))
            model = self._judged(subject)
            data, (samples, unit) = self.bench.config["task"]["data"], judge.judged_on
            return ReportCard(
                name=subject.name,
                model={"path": subject.path, "kind": subject.kind, "teacher": self.teacher.path},
                task={
                    "kind": task.kind,
                    "data": str(data["path"]),
                    "split": self.split,
                    "samples": samples,
                    "unit": unit,
                    "measure": task.quality,
                },
                settings={**asdict(self.aspects), "task": dict(self.bench.config["task"])},
                quality=judge.quality_section(model),
                calibration=judge.calibration_section(model),
                fairness=judge.fairness_section(model),
                robustness=judge.robustness_section(model),
                versions={name: version(name) for name in _LIBRARIES},
            )

    def _judged(self, subject: Subject) -> Judged:
        """A model's outputs; errors name the model, because there may be several."""
        try:
            return self.judge.run(*self._run(subject))
        except ValueError as error:
            if subject.path in str(error):
                raise
            raise ValueError(f"{subject.path}: {error}") from error

    def _run(self, subject: Subject) -> tuple[Run, int]:
        """What runs a model, and on how many samples at once."""
        from nas.evaluation.evaluate import onnx_run

        task = self.bench.task
        if subject.path == self.teacher.path:
            return self._teacher_run, 64
        if subject.kind == "onnx":
            # Dynamic quantisation scales activations over the whole batch, so it is judged as deployed, one by one.
            return onnx_run(str(subject.graph), task, self.bench.device.threads), 1
        module: Any = subject.module

        def run(batch: Any) -> Any:
            try:
                return task.outputs(module, batch)
            except (AttributeError, IndexError, KeyError) as error:  # No logits, or fewer tokens than the tokenizer.
                raise ValueError(
                    f"{subject.path}: must run on what the {task.kind} task gives it, with the teacher's vocabulary "
                    f"and outputs, but {type(module).__name__} fails: {error}."
                ) from error

        return run, 64

    # -- efficiency -------------------------------------------------------------------------------------------------

    @cached_property
    def _profiler(self) -> Profiler:
        """The measurement protocol."""
        from latency_models.profiler import Profiler

        return Profiler(**self.settings["protocol"], seed=self.bench.seed)

    def _efficiency(self, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
        """Costs of all models, interleaved with the teacher as the reference."""
        from latency_models.deployed import device_of_graphs
        from nas.evaluation.efficiency import GraphSubject, measure_efficiency

        bench = self.bench
        # Graphs carry their precision.
        device = replace(device_of_graphs(bench.device), precision="fp32")
        with tempfile.TemporaryDirectory() as folder, bench.progress("Measuring") as bar:

            def deployed(subject: Subject) -> GraphSubject:
                graph = subject.graph or self._exported(subject, Path(folder))
                module = None if subject.module is None else bench.task.deployable(subject.module)
                return GraphSubject(subject.name, graph, module)

            found = measure_efficiency(
                [deployed(subject) for subject in subjects],
                deployed(self.teacher),
                device,
                bench.workload,
                bench.task.example_inputs(bench.workload),
                self._profiler,
                memory=bool(self.settings["memory"]),
                say=lambda text: bar.advance(text=text),
            )
        common = {"device": device.fingerprint(), "workload": bench.workload.to_dict(), "reference": self.teacher.path}
        return [{**section, **common} for section in found]

    def _exported(self, subject: Subject, folder: Path) -> Path:
        """The graph of a model that has none, kept for the next time by its weights."""
        import onnx

        from latency_models.backends.onnx import export_onnx
        from search_spaces.cost import Workload
        from search_spaces.library import model_fingerprint

        assert subject.module is not None
        task = self.bench.task
        inputs = task.example_inputs(Workload())
        key = content_key(["graph", model_fingerprint(subject.module), task.output_settings, *inputs])
        kept = self.bench.cache / "graphs" / f"{key}.onnx"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            graph = export_onnx(task.deployable(subject.module), inputs, task.output_names)
            # Written aside first: a killed run leaves no half a graph behind.
            onnx.save(graph, str(folder / kept.name))
            shutil.move(folder / kept.name, kept)
        return kept

    # -- models -----------------------------------------------------------------------------------------------------

    def _loaded(self, path: str) -> Any:
        from search_spaces.checkpoint import SUBNET_FILE, load_subnet

        task: Any = self.bench.task
        own = replace(task, model=path)
        try:
            model = load_subnet(Path(path)) if (Path(path) / SUBNET_FILE).is_file() else own.load_model()
        except (FileNotFoundError, ValueError) as error:
            if Path(path).exists() or not str(error).startswith("`model.path`"):
                raise
            text = str(error).replace("`model.path`", f"`{self.option}`", 1)
            raise type(error)(f"{text} ({models_there(path, self.bench.root)})") from error
        check_alike(model, self.bench.teacher, path)
        check_tokens(own, task, path)
        return model

    def _beside(self, graph: Path) -> Any:
        """The model of the folder that an ONNX file lies in, where we exported both: its operations can be counted.

        Only the file itself is judged: whatever is wrong with what lies beside it costs no more than the counts.
        """
        from search_spaces.checkpoint import SUBNET_FILE

        if not (graph.parent / SUBNET_FILE).is_file():
            return None
        try:
            return self._loaded(str(graph.parent))
        except (OSError, ValueError) as error:
            self.bench.say(f"Parameters and operations of {graph} are not counted, for want of its model: {error}")
            return None


def chosen_form(bench: Workbench) -> str:
    """In which form cards are to be printed; asked before the work, so that a slip does not cost its result.

    Raises:
        ValueError: They cannot be written where they should be.
    """
    shown, output = str(bench.config["show"]), bench.config["output"]
    if output and Path(output).exists() and not Path(output).is_dir():
        raise ValueError(f"`output` must be a folder, but {output!r} is a file.")
    return shown


def write_cards(cards: Sequence[ReportCard], bench: Workbench) -> list[Path]:
    """Write every card's ``metrics.json`` and ``model_card.md``, to ``output`` or below the root; the folders.

    One card goes into the folder of ``output``, several into folders below it, each into its own.
    """
    given = bench.config["output"]
    if given and len(cards) == 1:
        write_card(cards[0], Path(given))
        return [Path(given)]
    return write_below(cards, Path(given) if given else bench.root / "cards")


def write_below(cards: Sequence[ReportCard], root: Path) -> list[Path]:
    """Write cards into folders of a folder, named after their models; twins get numbers."""
    folders: list[Path] = []
    for card in cards:
        name = card.name.replace("/", "-").strip(".") or "model"
        number = 1 + sum(folder.name.partition("~")[0] == name for folder in folders)
        folders.append(root / (name if number == 1 else f"{name}~{number}"))
        write_card(card, folders[-1])
    return folders


def study_cards(bench: Workbench, directory: Path) -> list[ReportCard]:
    """Judge and measure the teacher and every exported model of a study, in fp32 and quantised, and write the cards."""
    from nas.export.artefacts import MIXED
    from search_spaces.checkpoint import SUBNET_FILE

    settings = {"split": "test", "measure": True, "memory": True, "protocol": bench.config["finalists"]["protocol"]}
    judging = JudgeBench(bench, settings)
    subjects = [judging.teacher]
    for folder in sorted(path.parent for path in (directory / "models").glob(f"*/{SUBNET_FILE}")):
        subjects.append(judging.subject(str(folder)))
        graphs = (folder / f"model_{precision}.onnx" for precision in ("int8", MIXED))
        subjects += [judging.subject(str(graph)) for graph in graphs if graph.is_file()]
    with bench.stage("report cards"):
        cards = judging.cards(subjects)
    write_below(cards, directory / "cards")
    return cards


def load_cards(directory: Path) -> list[ReportCard]:
    """The report cards of a study's folder, of whichever run."""
    return [ReportCard.load(path) for path in sorted((directory / "cards").glob(f"*/{METRICS_FILE}"))]
