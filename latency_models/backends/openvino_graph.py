"""OpenVINO's models: read from ONNX or its own files, brought to a precision by NNCF, written, sized to inputs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import openvino
from numpy.typing import NDArray

from latency_models.backends.base import BackendError, with_cache
from latency_models.backends.byte_products import saturates
from latency_models.backends.graph_file import check_opset, graph_bytes
from latency_models.backends.quantize import is_quantized

IR_SUFFIX = ".xml"
# Inputs of a product that share a scale in int4.
_GROUP_SIZE = 32
# NNCF's own default: what its statistics need.
_SAMPLES = 300
_INTEGERS = {openvino.Type.i8, openvino.Type.u8, openvino.Type.i4, openvino.Type.u4}


def read_graph(model: Any) -> tuple[Any, bool]:
    """A model as OpenVINO has it, and whether it is quantised already.

    Args:
        model: An ONNX graph, or the path of a ``.xml`` file with its ``.bin`` beside it.

    Raises:
        BackendError: The file is missing or no model, or of an opset that nobody knows.
    """
    core = openvino.Core()
    if isinstance(model, str | Path) and Path(model).suffix == IR_SUFFIX:
        if not Path(model).is_file():
            raise BackendError(f"OpenVINO model: No such file or directory: {str(model)!r}.")
        found = core.read_model(str(model))
        return found, any(
            op.get_element_type() in _INTEGERS for op in found.get_ops() if op.get_type_name() == "Constant"
        )
    check_opset(model)
    return core.read_model(graph_bytes(model)), is_quantized(model)


def compress_weights(model: Any, precision: str) -> Any:
    """Integer weights, one scale an output channel (int8) or a group of inputs (int4), by NNCF.

    On CPUs with the instructions for it, OpenVINO then scales activations as they come and multiplies in int8.

    Args:
        model: An OpenVINO model; it is changed.
        precision: ``int8`` or ``int4``.

    Returns:
        The model.
    """
    nncf = _nncf()
    modes = nncf.CompressWeightsMode
    with _quiet():
        if precision == "int8":
            return nncf.compress_weights(model, mode=modes.INT8_ASYM)
        # Every projection: by default the first and last stay in int8, and so do most of a small model. Only those that
        # read a number of values which no group divides stay in int8.
        adjusted = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
        return nncf.compress_weights(
            model,
            mode=modes.INT4_SYM,
            group_size=_GROUP_SIZE,
            ratio=1.0,
            all_layers=False,
            advanced_parameters=adjusted,
        )


def input_sizes(model: Any) -> dict[str, list[int | None]]:
    """Sizes of a model's inputs by name, None where they are not fixed."""
    return {
        entry.get_any_name(): [size.get_length() if size.is_static else None for size in entry.partial_shape]
        for entry in model.inputs
    }


def quantize(model: Any, calibration: Iterable[Mapping[str, NDArray[Any]]]) -> Any:
    """Int8 weights and activations with scales found in advance, by NNCF (SmoothQuant, bias correction).

    Args:
        model: An OpenVINO model with dynamic or matching shapes.
        calibration: Real inputs, one mapping a run; at most 300 are used.

    Returns:
        A new model.

    Raises:
        BackendError: There is no calibration input.
    """
    taken = input_sizes(model)
    inputs = [{name: with_cache(taken, one)[name] for name in taken} for one in islice(calibration, _SAMPLES)]
    if not inputs:
        raise BackendError("static quantisation: there must be at least one calibration input, but there is none.")
    nncf = _nncf()
    # Weights of seven bits where products of eight would overflow: see `byte_products`.
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE if saturates() else None)
    with _quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            advanced_parameters=advanced,
        )


def save_graph(model: Any, path: Path, *, half: bool = False) -> None:
    """Write a model as ``.xml`` and ``.bin``; with weights in fp16 where asked."""
    openvino.save_model(model, str(path), compress_to_fp16=half)


def check_nncf() -> None:
    """Refuse to go on without what brings models to integers.

    Raises:
        BackendError: NNCF is not installed.
    """
    _nncf()


@cache
def _nncf() -> Any:
    """NNCF, which would tell its makers that it is used; nothing of ours is sent anywhere."""
    silent = {"NNCF_CI": "1", "CI": "true"}
    before = {name: os.environ.get(name) for name in silent}
    os.environ.update(silent)
    try:
        with _quiet():
            import nncf
    except ImportError as error:
        raise BackendError("OpenVINO in int8 and int4 needs NNCF; run `pip install hwnas[openvino]`.") from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and the warnings of NNCF's own dependencies."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield
