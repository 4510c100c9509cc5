"""Exported teachers on disk: a teacher whose graph was made once is not exported again by the next command.

A file is a checksum and an ONNX graph without the teacher's weights, which are put back from the teacher itself. Its
name tells what the export depends on: see `latency_models.backends.template_key`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from latency_models.backends.graph_edits import TRANSPOSED, as_array
from latency_models.backends.graph_places import LinearPlace, transformers_model
from latency_models.backends.graph_sizes import Repeat, SizePlace
from latency_models.backends.graph_template import GraphTemplate
from search_spaces.families import blocks_path
from search_spaces.shapes import ModelShape

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from latency_models.backends.causal import CachePlace

_logger = logging.getLogger(__name__)
_PLACES = "hwnas.template"
_TEACHER = "weights-of-the-teacher"  # Stands where the path of a file with weights would.
_MOST_BYTES = 2**30  # Of what is not the teacher's own: a protobuf file holds less than 2 GiB.


def find_template(path: Path, model: nn.Module) -> GraphTemplate | None:
    """A teacher's template that was kept; None where there is none, or, with a warning, where it cannot be read.

    Args:
        path: Its name tells what the graph depends on: `latency_models.backends.template_key.template_key`.
        model: The deployed teacher.
    """
    try:
        return read(path.read_bytes(), model)
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001  (Parsers of files that others wrote raise what they like.)
        _logger.warning("graph template: %s cannot be read (%s); the teacher is exported again.", path, error)
        return None


def keep_template(template: GraphTemplate, model: nn.Module, path: Path) -> None:
    """Keep a template for the next command, where a file can hold it; a full disk is told, and no reason to stop.

    Args:
        template: Of the model.
        model: The deployed teacher.
        path: Where `find_template` will look. It is written aside and renamed: a killed run leaves no half of a file.
    """
    if (data := write(template, model)) is None:
        return
    # Not `tempfile`, whose files are for their owner alone: caches are shared.
    aside = path.with_name(f".{path.stem}-{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        aside.replace(path)
    except OSError as error:
        _logger.warning("graph template: it is not kept for the next command: %s", error)
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def write(template: GraphTemplate, model: nn.Module) -> bytes | None:
    """A template without the teacher's own weights, behind its checksum; None where that is too large for one file.

    Args:
        template: Of the model.
        model: The deployed teacher.
    """
    import onnx_ir as ir

    graph, own, inline = template.model.clone(), _Weights(model), 0
    for value in graph.graph.initializers.values():
        constant, name = value.const_value, str(value.name)
        assert constant is not None
        array, weight = constant.numpy(), own.get(name)
        if weight is not None and weight.dtype == array.dtype and np.array_equal(weight, array):
            shape = ir.Shape(array.shape)
            value.const_value = ir.ExternalTensor(_TEACHER, None, None, constant.dtype, shape=shape, name=name)
        else:
            inline += array.nbytes
    if inline > _MOST_BYTES:
        return None
    places: dict[str, Any] = {"boundaries": template.boundaries}
    places["linears"] = {path: asdict(place) for path, place in template.linears.items()}
    places |= {name: [asdict(place) for place in getattr(template, name)] for name in ("sizes", "repeats", "caches")}
    graph.metadata_props[_PLACES] = json.dumps(places)
    content = bytes(ir.to_proto(graph).SerializeToString())
    return sha256(content).digest() + content


def read(data: bytes, model: nn.Module) -> GraphTemplate:
    """A template that `write` made, with the weights of the model.

    Args:
        data: The file's content.
        model: The deployed teacher that it was made of.

    Raises:
        ValueError: The file is damaged or another program's, or a weight of its graph is not the model's.
    """
    import onnx
    import onnx_ir as ir

    checksum, content = data[: sha256().digest_size], data[sha256().digest_size :]
    if sha256(content).digest() != checksum:
        raise ValueError("it is damaged, or was not written here")
    graph, own = ir.from_proto(onnx.load_model_from_string(content)), _Weights(model)
    for value in graph.graph.initializers.values():
        constant = value.const_value
        if isinstance(constant, ir.ExternalTensor):
            weight = own.get(str(value.name))
            if weight is None or weight.shape != constant.shape.numpy():
                raise ValueError(f"the teacher has no weight {value.name!r} of shape {constant.shape}")
            # A copy: training the teacher on must not change its template.
            value.const_value = ir.tensor(np.array(weight, order="C"), name=value.name)
    places, inner = json.loads(graph.metadata_props.pop(_PLACES)), transformers_model(model)[1]
    return GraphTemplate(
        graph,
        {path: LinearPlace(**{**place, "nodes": tuple(place["nodes"])}) for path, place in places["linears"].items()},
        tuple(places["boundaries"]),
        ModelShape.from_model(inner),
        blocks_path(inner),
        tuple(_size_place(place) for place in places["sizes"]),
        tuple(Repeat(**place) for place in places["repeats"]),
        tuple(_caches(places["caches"])),
    )


class _Weights:
    """The weights of a model by the names that its exported graph gives them."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers()))

    def get(self, name: str) -> NDArray[Any] | None:
        """The array, not copied; None where the model has none of that name."""
        tensor = self.tensors.get(name.removesuffix(TRANSPOSED))
        if tensor is None or str(tensor.dtype) != "torch.float32":  # Others are few, or have no type in NumPy.
            return None
        array = as_array(tensor)
        return array.T if name.endswith(TRANSPOSED) else array


def _size_place(place: dict[str, Any]) -> SizePlace:
    powers = tuple((a, b, c) for a, b, c in place["powers"])
    return SizePlace(place["block"], place["name"], tuple(place["values"]), powers)


def _caches(places: Sequence[dict[str, Any]]) -> Iterator[CachePlace]:
    if places:  # Encoders need nothing of what is imported here.
        from latency_models.backends.causal import CachePlace

        yield from (CachePlace(**place) for place in places)
