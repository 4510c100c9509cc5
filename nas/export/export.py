"""Write a found subnet as a folder that runs elsewhere: model, runtimes' files, tokenizer, metrics, card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.export.artefacts import Artefact, Blocks, Calibration, chosen, size_mb, write_artefact
from nas.export.model_card import CARD_FILE, Card, render_card
from nas.export.reference import Reference, as_numpy
from nas.export.verify import Check, ExportError, verify
from nas.stored_json import finite
from search_spaces.cost import Workload
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from latency_models.device import Device
    from nas.tasks.task import Task

METRICS_FILE, FACTS_FILE = "metrics.json", "card.json"
_VERSIONS = ("hwnas", "torch", "transformers", "onnxruntime")


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """An exported and verified folder.

    Args:
        directory: Where it lies.
        artefacts: The models in it beside the one of `transformers`.
        checks: What was compared, all passed.
    """

    directory: Path
    artefacts: tuple[Artefact, ...]
    checks: tuple[Check, ...]

    @property
    def graphs(self) -> dict[str, Path]:
        """ONNX files by precision."""
        return {row.precision: self.directory / row.file for row in self.artefacts if row.format == "onnx"}

    @property
    def size_mb(self) -> dict[str, float]:
        """Sizes on disk by artefact, in megabytes (10^6 bytes)."""
        return {row.key: size_mb(row, self.directory) for row in self.artefacts}


def export_candidate(
    model: nn.Module,
    subnet: SubnetConfig,
    shape: ModelShape,
    task: Task,
    directory: Path,
    *,
    name: str = "",
    teacher: str = "",
    metrics: Mapping[str, Any] | Callable[[Path, Sequence[Check]], Mapping[str, Any]] | None = None,
    formats: Sequence[str] = ("transformers", "onnx"),
    precisions: Sequence[str] = ("fp32", "int8"),
    graph: ModelProto | None = None,
    calibration_samples: int = 64,
    metadata: Mapping[str, str] | None = None,
    device: Device | None = None,
) -> ExportedModel:
    """Export an extracted model and verify every artefact against it.

    The folder is written aside and renamed when everything in it has passed; an older folder of the same name is
    replaced only then.

    Args:
        model: What `Supernet.extract` returned, distilled or not.
        subnet: Its architecture; where blocks have precisions of their own, a graph in these is written, too.
        shape: The teacher's sizes.
        task: Gives the deployed form, the tokenizer and the real inputs of the checks.
        directory: Where to; its parents are made.
        name: What people call the model; the folder's name where it is empty.
        teacher: What people call the teacher.
        metrics: Plain data for ``metrics.json`` and the card, see `write_metrics`; or what gives them for the verified
            folder and its checks, before it gets its name.
        formats: Of `nas.export.artefacts.FORMATS`: what to write.
        precisions: Of `nas.export.artefacts.PRECISIONS`: in which each runtime's files are written.
        graph: The deployed model's fp32 graph where it was made already; it is verified like any other.
        calibration_samples: Samples of the calibration split that static scales are taken from.
        metadata: Further names and texts for the files' own metadata.
        device: Where TensorRT builds its engines.

    Raises:
        ValueError: A format or a precision is unknown, or the directory is something else than an exported folder.
        ExportError: An artefact does not compute what the model computes, or the folder cannot be written.
        BackendError: A runtime that is asked for is not installed.
    """
    check_target(directory)
    blocks = Blocks.of(shape, subnet)
    artefacts = chosen(formats, precisions, blocks)
    title = name or directory.name
    told = _metadata(subnet, title, teacher) | dict(metadata or {})
    with _written_aside(directory) as aside:
        _write_model(model, subnet, shape, task, aside, whole="transformers" in formats, metadata=told)
        if artefacts:
            graph = deployed_graph(model, task) if graph is None else graph
            calibration = calibration_inputs(task, calibration_samples)
            for row in artefacts:
                write_artefact(row, graph, aside, calibration=calibration, metadata=told, device=device, blocks=blocks)
        (aside / FACTS_FILE).write_text(_card(title, teacher, task, subnet, artefacts).to_json(), encoding="utf-8")
        checks = verify(aside, Reference.from_model(model, task))
        write_metrics(aside, metrics(aside, checks) if callable(metrics) else metrics or {})
    return ExportedModel(directory, artefacts, checks)


def check_target(directory: Path) -> None:
    """Refuse a place that an export would replace, unless it is an earlier export.

    Raises:
        ValueError: There is something else.
    """
    if not directory.exists() or (directory / FACTS_FILE).is_file():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        raise ValueError(f"export: `directory` must be new, or an earlier export, but {directory} is something else.")


def write_graphs(
    model: nn.Module, task: Task, directory: Path, precisions: Sequence[str], graph: ModelProto | None = None
) -> None:
    """Write the deployed model's ONNX graphs into a folder.

    Args:
        model: A `transformers` model of the task's kind.
        task: Gives the deployed form, its inputs and its outputs' names.
        directory: An existing folder.
        precisions: Which: ``fp32``, ``int8``, ...
        graph: The fp32 graph, where it was made already.
    """
    if not precisions:
        return
    graph = deployed_graph(model, task) if graph is None else graph
    calibration = calibration_inputs(task)
    for artefact in chosen(("onnx",), precisions):
        write_artefact(artefact, graph, directory, calibration=calibration)


def deployed_graph(model: nn.Module, task: Task) -> ModelProto:
    """The fp32 graph of a model as the task deploys it, batch and sequence dynamic."""
    from latency_models.backends.onnx import export_onnx

    return export_onnx(task.deployable(model), task.example_inputs(Workload()), task.output_names)


def calibration_inputs(task: Task, count: int = 64) -> Calibration:
    """Real inputs of the calibration split, one sample each, from the shortest to the longest."""
    rows = task.samples.order("calibration", 1)
    spread = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [as_numpy(task.samples.batch("calibration", rows[index])) for index in spread]


def write_metrics(directory: Path, metrics: Mapping[str, Any]) -> None:
    """Write what was measured of an exported model into ``metrics.json`` and its card, in place of what was there.

    Args:
        directory: An exported folder.
        metrics: Plain data. Of ``quality`` and ``measured``, the mappings of numbers by artefact become the card's
            tables.

    Raises:
        ValueError: The folder was not written by ``export_candidate``.
    """
    file = directory / FACTS_FILE
    if not file.is_file():
        raise ValueError(f"{directory}: has no {file.name}; is it a folder that `nas export` wrote?")
    card = Card.from_json(file.read_text(encoding="utf-8"))
    text = json.dumps(finite(metrics), indent=2, sort_keys=True, allow_nan=False) + "\n"
    (directory / METRICS_FILE).write_text(text, encoding="utf-8")
    (directory / CARD_FILE).write_text(render_card(card, metrics), encoding="utf-8")


def _write_model(
    model: nn.Module,
    subnet: SubnetConfig,
    shape: ModelShape,
    task: Task,
    aside: Path,
    *,
    whole: bool,
    metadata: Mapping[str, str],
) -> None:
    """The model of `transformers` with its tokenizer; the tokenizer alone where the model is not wanted."""
    from search_spaces.checkpoint import save_subnet

    shutil.rmtree(aside, ignore_errors=True)
    if whole:
        save_subnet(model, subnet, shape, aside, tokenizer=task.tokenizer, metadata=metadata)
    else:
        aside.mkdir(parents=True)
        task.tokenizer.save_pretrained(aside)


def _card(name: str, teacher: str, task: Task, subnet: SubnetConfig, artefacts: Sequence[Artefact]) -> Card:
    """What the folder says of itself to people."""
    return Card(
        name=name,
        teacher=teacher,
        kind=task.kind,
        subnet=subnet,
        output=task.output_names[-1],
        max_length=task.samples.max_length,
        graphs=tuple(row.file for row in artefacts if row.format == "onnx"),
    )


def _metadata(subnet: SubnetConfig, name: str, teacher: str) -> dict[str, str]:
    """What every file says of itself."""
    from latency_models.device import library_version

    versions = {library: library_version(library) for library in _VERSIONS}
    told = {"name": name, "teacher": teacher, "subnet": subnet.to_json()}
    return told | {f"version.{library}": version for library, version in versions.items() if version}


@contextmanager
def _written_aside(directory: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name in the end; nothing is left of it where anything goes wrong.

    Raises:
        ExportError: It cannot be written.
    """
    aside = directory.with_name(directory.name + ".exporting")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _replace(aside, directory)
    except OSError as error:
        raise ExportError(f"export: {directory} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one; there is a complete folder at every moment but one."""
    old = target.with_name(target.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
