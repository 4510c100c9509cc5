"""What an exported folder can hold, one row each: a model in the files of a runtime, at a precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto

    from latency_models.device import Device
    from search_spaces.shapes import ModelShape
    from search_spaces.subnet import SubnetConfig

Rule = Literal["difference", "cosine", "tokens"]
Calibration = Sequence[Mapping[str, NDArray[Any]]]
# Every block in the precision that was searched for it; written of those subnets that have any beside fp32.
MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Artefact:
    """One model of a folder.

    Args:
        format: ``onnx``, ``openvino`` or ``tensorrt``.
        precision: Of its weights; activations follow the runtime's kernels.
        file: Its file in the folder.
        backend: The runtime that reads it: a key of `latency_models.backends.base.BACKENDS`.
        rule: How it is compared with the model that it was made from.
    """

    format: str
    precision: str
    file: str
    backend: str
    rule: Rule

    @property
    def key(self) -> str:
        """``onnx int8``: what tables and metrics call it."""
        return f"{self.format} {self.precision}"


@dataclass(frozen=True, slots=True)
class Blocks:
    """Precisions of a model's blocks.

    Args:
        family: Name of the family's row in `search_spaces.families`.
        precisions: Of every block that is left, in order.
    """

    family: str
    precisions: tuple[str, ...]

    @classmethod
    def of(cls, shape: ModelShape, subnet: SubnetConfig) -> Blocks:
        """Those of a subnet of a teacher of this shape."""
        return cls(shape.family, tuple(subnet.blocks[index].precision for index in subnet.kept))

    @property
    def mixed(self) -> bool:
        """Whether any is not fp32."""
        return not {*self.precisions} <= {"fp32"}


def _rows() -> Iterable[Artefact]:
    """Names are those of the runtimes' own exporters, where they have one: `optimum` writes ``model.onnx``."""
    for precision in ("fp32", "fp16", "int8", "int8_static", "int4"):
        suffix = "" if precision == "fp32" else f"_{precision}"
        rule: Rule = "difference" if precision in ("fp32", "fp16") else "cosine"
        yield Artefact("onnx", precision, f"model{suffix}.onnx", "onnxruntime", rule)
        yield Artefact("openvino", precision, f"openvino_model{suffix}.xml", "openvino", rule)
        if precision != "int8_static":
            # TensorRT knows int8 with scales that were found in advance only.
            yield Artefact("tensorrt", precision, f"model_{precision}.engine", "tensorrt", rule)
    yield Artefact("onnx", MIXED, f"model_{MIXED}.onnx", "onnxruntime", "cosine")


ARTEFACTS: Mapping[str, Artefact] = {row.key: row for row in _rows()}
FORMATS = ("transformers", *dict.fromkeys(row.format for row in ARTEFACTS.values()))
PRECISIONS = tuple(dict.fromkeys(row.precision for row in ARTEFACTS.values() if row.precision != MIXED))


def chosen(formats: Sequence[str], precisions: Sequence[str], blocks: Blocks | None = None) -> tuple[Artefact, ...]:
    """The artefacts of these formats and precisions; ``transformers`` has none beside the model itself.

    Args:
        formats: Of `FORMATS`.
        precisions: Of `PRECISIONS`.
        blocks: Precisions of the model's blocks: where any has its own, ONNX files of these are among the artefacts.

    Raises:
        ValueError: A format or a precision is unknown.
    """
    for name, values, known in (("format", formats, FORMATS), ("precision", precisions, PRECISIONS)):
        if unknown := [value for value in values if value not in known]:
            raise ValueError(f"`{name}` must be among {', '.join(known)}, but got {unknown[0]!r}.")
    wanted = dict.fromkeys((form, precision) for form in formats for precision in precisions)
    if ("tensorrt", "int8_static") in wanted:
        wanted |= {("tensorrt", "int8"): None}
    if blocks is not None and blocks.mixed and "onnx" in formats:
        wanted |= {("onnx", MIXED): None}
    return tuple(row for row in ARTEFACTS.values() if (row.format, row.precision) in wanted)


def check_runtimes(artefacts: Sequence[Artefact], engines: Device | None = None) -> None:
    """Refuse artefacts whose runtime is not here, before anything is done for them.

    Args:
        artefacts: What shall be written.
        engines: Where TensorRT would build its engines; the first GPU unless given.

    Raises:
        BackendError: A runtime, or a tool of it, is not installed.
    """
    from latency_models.backends.base import make_backend
    from latency_models.device import Device

    if any(row.format == "tensorrt" for row in artefacts):
        make_backend(engines or Device("tensorrt_cuda", "tensorrt", provider="cuda"))
    precisions = {row.precision for row in artefacts if row.format == "openvino"}
    if precisions:
        make_backend(Device("openvino_cpu", "openvino"))
    if precisions - {"fp32", "fp16"}:
        from latency_models.backends.openvino_graph import check_nncf

        check_nncf()


def size_mb(artefact: Artefact, directory: Path) -> float:
    """Size on disk in megabytes (10^6 bytes), of all the files that belong to it."""
    file = directory / artefact.file
    files = [file, file.with_suffix(".bin")] if artefact.format == "openvino" else [file]
    return sum(path.stat().st_size for path in files) / 1e6


def write_artefact(
    artefact: Artefact,
    graph: ModelProto,
    directory: Path,
    *,
    calibration: Calibration = (),
    metadata: Mapping[str, str] | None = None,
    device: Device | None = None,
    blocks: Blocks | None = None,
) -> Path:
    """Write one artefact of a model into a folder.

    Args:
        artefact: Which.
        graph: The deployed model's fp32 graph.
        directory: An existing folder.
        calibration: Real inputs, one mapping a run: for static scales, and the shapes that an engine is built for.
        metadata: Names and texts that go into the file, where its format has a place for them.
        device: Where TensorRT builds its engine, and with which options.
        blocks: What ``mixed`` means for this model.

    Raises:
        BackendError: The runtime or the tool that writes it is not installed, or cannot do it.
    """
    target = directory / artefact.file
    if artefact.precision == MIXED:
        from latency_models.backends.quantize import at_block_precisions

        assert blocks is not None
        graph = at_block_precisions(graph, blocks.family, blocks.precisions)
    write = {"onnx": _write_onnx, "openvino": _write_openvino, "tensorrt": _write_tensorrt}[artefact.format]
    write(artefact, graph, target, calibration, dict(metadata or {}), device)
    return target


def _write_onnx(
    artefact: Artefact, graph: ModelProto, target: Path, calibration: Calibration, metadata: dict[str, str], _: Any
) -> None:
    import onnx

    from latency_models.backends.quantize import at_precision
    from latency_models.backends.quantize_static import quantize_static

    if artefact.precision == "int8_static":
        written = quantize_static(graph, calibration)
    else:
        written = graph if artefact.precision == MIXED else at_precision(graph, artefact.precision)
    written = onnx.ModelProto.FromString(written.SerializeToString()) if written is graph else written
    onnx.helper.set_model_props(written, {**{p.key: p.value for p in written.metadata_props}, **metadata})
    onnx.save(written, str(target))


def _write_openvino(
    artefact: Artefact, graph: ModelProto, target: Path, calibration: Calibration, metadata: dict[str, str], _: Any
) -> None:
    check_runtimes([artefact])
    from latency_models.backends.openvino_graph import compress_weights, quantize, read_graph, save_graph

    model, _quantized = read_graph(graph)
    if artefact.precision == "int8_static":
        model = quantize(model, calibration)
    elif artefact.precision in ("int8", "int4"):
        model = compress_weights(model, artefact.precision)
    for name, text in metadata.items():
        model.set_rt_info(text, ["hwnas", name])
    save_graph(model, target, half=artefact.precision == "fp16")


def _write_tensorrt(
    artefact: Artefact,
    graph: ModelProto,
    target: Path,
    calibration: Calibration,
    _: dict[str, str],
    device: Device | None,
) -> None:
    from latency_models.backends.base import make_backend
    from latency_models.backends.quantize_static import quantize_static
    from latency_models.device import Device

    base = device or Device("tensorrt_cuda", "tensorrt", provider="cuda")
    backend: Any = make_backend(replace(base, precision=artefact.precision))  # type: ignore[arg-type]
    if artefact.precision == "int8":
        graph = quantize_static(graph, calibration, symmetric=True)
    target.write_bytes(backend.build(graph, calibration[-1]))
