"""Write a found subnet as a folder that runs elsewhere: transformers model, ONNX graphs, tokenizer, metrics, card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.export.model_card import CARD_FILE, Card, render_card
from nas.export.verify import GRAPHS, Check, Reference, Tolerances, verify
from search_spaces.cost import Workload
from search_spaces.families import ModelShape
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from nas.tasks.task import Task

METRICS_FILE = "metrics.json"


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """An exported and verified folder.

    Args:
        directory: Where it lies.
        graphs: Precision -> ONNX file.
        size_mb: Precision -> size of the ONNX file, in megabytes (10^6 bytes).
        checks: What was compared, all passed.
    """

    directory: Path
    graphs: Mapping[str, Path]
    size_mb: Mapping[str, float]
    checks: tuple[Check, ...]


def export_candidate(
    model: nn.Module,
    subnet: SubnetConfig,
    shape: ModelShape,
    task: Task,
    directory: Path,
    *,
    name: str = "",
    teacher: str = "",
    metrics: Mapping[str, Any] | None = None,
    precisions: Sequence[str] = ("fp32", "int8"),
    graph: ModelProto | None = None,
    split: str = "test",
    tolerances: Tolerances | None = None,
) -> ExportedModel:
    """Export an extracted model and verify every artefact against it.

    The folder is written aside and renamed when everything in it has passed; an older folder of the same name is
    replaced only then.

    Args:
        model: What `Supernet.extract` returned, distilled or not.
        subnet: Its architecture.
        shape: The teacher's sizes.
        task: Gives the deployed form, the tokenizer and the real inputs of the checks.
        directory: Where to; its parents are made.
        name: What people call the model; the folder's name where it is empty.
        teacher: What people call the teacher.
        metrics: Plain data for ``metrics.json`` and the card: see `write_metrics`.
        precisions: ONNX graphs to write: ``fp32``, ``int8`` (dynamic, weights per channel).
        graph: The deployed model's fp32 graph where it was made already; exported here otherwise. It is verified like
            any other.
        split: Whose texts the checks run on.
        tolerances: What the checks allow.

    Raises:
        ValueError: A precision is unknown.
        ExportError: An artefact does not compute what the model computes.
    """
    from search_spaces.checkpoint import save_subnet

    if unknown := [precision for precision in precisions if precision not in GRAPHS]:
        raise ValueError(f"`precisions` must be among {', '.join(GRAPHS)}, but got {unknown[0]!r}.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.with_name(directory.name + ".exporting")
    try:
        save_subnet(model, subnet, shape, aside, tokenizer=task.tokenizer, metadata={"teacher": teacher})
        write_graphs(model, task, aside, precisions, graph)
        card = Card(
            name=name or directory.name,
            teacher=teacher,
            kind=task.kind,
            subnet=subnet,
            output=task.output_names[-1],
            max_length=task.samples.max_length,
            graphs=tuple(GRAPHS[precision] for precision in precisions),
        )
        (aside / "card.json").write_text(card.to_json(), encoding="utf-8")
        write_metrics(aside, metrics or {})
        checks = verify(aside, Reference.from_model(model, task, split), tolerances)
        _replace(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    files = {precision: directory / GRAPHS[precision] for precision in precisions}
    sizes = {precision: file.stat().st_size / 1e6 for precision, file in files.items()}
    return ExportedModel(directory, files, sizes, checks)


def write_graphs(
    model: nn.Module, task: Task, directory: Path, precisions: Sequence[str], graph: ModelProto | None = None
) -> None:
    """Write the deployed model's ONNX graphs into a folder.

    Args:
        model: A `transformers` model of the task's kind.
        task: Gives the deployed form, its inputs and its outputs' names.
        directory: An existing folder.
        precisions: Which: ``fp32``, ``int8``.
        graph: The fp32 graph, where it was made already.
    """
    import onnx

    from latency_models.backends.onnx import export_onnx
    from latency_models.backends.quantize import quantize_int8

    if not precisions:
        return
    if graph is None:
        graph = export_onnx(task.deployable(model), task.example_inputs(Workload()), task.output_names)
    for precision in precisions:
        written = graph if precision == "fp32" else quantize_int8(graph)
        onnx.save(written, str(directory / GRAPHS[precision]))


def write_metrics(directory: Path, metrics: Mapping[str, Any]) -> None:
    """Write what was measured of an exported model into ``metrics.json`` and its card, in place of what was there.

    Args:
        directory: An exported folder.
        metrics: Plain data. Entries ``fp32`` and ``int8`` that are mappings of numbers become the card's table.

    Raises:
        ValueError: The folder was not written by ``export_candidate``.
    """
    file = directory / "card.json"
    if not file.is_file():
        raise ValueError(f"{directory}: has no {file.name}; is it a folder that `nas export` wrote?")
    card = Card.from_json(file.read_text(encoding="utf-8"))
    text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False) + "\n"
    (directory / METRICS_FILE).write_text(text, encoding="utf-8")
    (directory / CARD_FILE).write_text(render_card(card, metrics), encoding="utf-8")


def _replace(source: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one; there is a complete folder at every moment but one."""
    old = target.with_name(target.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
