"""ONNX graphs as they come: a ``ModelProto``, its bytes or its path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from latency_models.backends.base import BackendError

if TYPE_CHECKING:
    from onnx import ModelProto

# protobuf refuses to serialise more; larger graphs keep their weights in a file beside them.
_LARGEST = 2**31 - 1


def load_graph(model: Any) -> ModelProto:
    """The graph as a ``ModelProto``; one that is given is returned as it is.

    Raises:
        BackendError: It is not an ONNX graph.
    """
    import onnx

    if isinstance(model, onnx.ModelProto):
        return model
    try:
        if isinstance(model, bytes | bytearray | memoryview):
            return onnx.load_from_string(bytes(model))
        if isinstance(model, str | Path):
            return onnx.load(str(model))
    except OSError as error:
        raise BackendError(f"ONNX graph: {error.strerror}: {str(model)!r}.") from error
    except Exception as error:  # protobuf's DecodeError has no public home.
        raise BackendError(f"ONNX graph: not an ONNX file ({type(error).__name__}).") from error
    raise BackendError(f"An ONNX graph must be a ModelProto, bytes or a path, but got {type(model).__name__}.")


def graph_bytes(model: Any) -> bytes:
    """The graph serialised, weights included.

    Raises:
        BackendError: It is not an ONNX graph, or too large for one piece of bytes.
    """
    if isinstance(model, bytes):
        return model
    graph = load_graph(model)
    if (size := graph.ByteSize()) > _LARGEST:
        raise BackendError(
            f"ONNX graph: must be smaller than 2 GB to be passed in memory, but has {size / 1e9:.1f} GB."
        )
    content: bytes = graph.SerializeToString()
    return content


def check_opset(model: Any) -> None:
    """Refuse a graph of an opset that is not defined yet: some runtimes would read it as the newest that they know.

    Raises:
        BackendError: It is.
    """
    import onnx

    newest = onnx.defs.onnx_opset_version()
    for entry in load_graph(model).opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise BackendError(
                f"ONNX graph: `opset` must be at most {newest}, the newest known here, but is {entry.version}; "
                "export it with an older one, or update onnx and the runtime."
            )


def input_names(model: Any) -> list[str]:
    """Names of a graph's inputs; constants that are listed among them are none."""
    graph = load_graph(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [entry.name for entry in graph.input if entry.name not in constants]


def input_shapes(model: Any) -> dict[str, tuple[int | str, ...]]:
    """Shapes of a graph's inputs by name; names of axes stand for sizes that are not fixed."""
    entries = {entry.name: entry.type.tensor_type.shape.dim for entry in load_graph(model).graph.input}
    return {name: tuple(dim.dim_param or dim.dim_value for dim in entries[name]) for name in input_names(model)}
