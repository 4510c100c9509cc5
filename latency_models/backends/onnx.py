"""The one exporter of the project: a torch module to an ONNX graph with dynamic batch and sequence."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

from latency_models.backends.base import BackendError
from latency_models.backends.onnx_passes import clean, forget_shapes, linear_gemms, name_linear_nodes

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from torch import Tensor, nn

# The first with one operator for GELU; ONNX Runtime >= 1.17, OpenVINO >= 2024 and TensorRT >= 10 read it.
DEFAULT_OPSET = 20
# Sizes of the example that is traced. 1 would be taken for a constant, and equal sizes for the same axis.
_TRACED_BATCH, _TRACED_SEQUENCE, _TRACED_TOTAL = 2, 11, 16


def export_onnx(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    output_names: Sequence[str],
    *,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    metadata: Mapping[str, str] | None = None,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Export a module to ONNX.

    Input, output and axis names are those that `optimum` gives: ``input_ids``, ``attention_mask``,
    ``last_hidden_state``, ``batch_size``, ``sequence_length``. A projection's product is named after its module
    (``encoder.layer.0.intermediate.dense/MatMul``).

    Args:
        model: A module whose forward takes the inputs by keyword and returns a tensor or a tuple of tensors.
        inputs: Example tensors by input name; their values and their batch and sequence sizes don't matter.
        output_names: One name per tensor that the forward pass returns.
        axes: Dynamic axes by input name; when None, the module's own (``dynamic_axes``), else batch (and sequence, for
            inputs of two axes).
        metadata: Entries for the graph's own metadata (subnet, teacher, versions).
        opset: Version of the ONNX operator set.

    Returns:
        The graph with its weights. It carries no paths of the machine that it was made on.

    Raises:
        BackendError: torch cannot export the module; the message is the exporter's first line.
    """
    import onnx_ir as ir

    program = export_ir(model, inputs, output_names, axes=axes, opset=opset)
    if takes_cache(model):
        from latency_models.backends.causal import expose_cache, find_caches

        expose_cache(program, find_caches(program))
    clean(program)
    forget_shapes(program)
    program.metadata_props.update(metadata or {})
    proto: onnx.ModelProto = ir.to_proto(program)
    return proto


def export_ir(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    output_names: Sequence[str],
    *,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    opset: int = DEFAULT_OPSET,
) -> ir.Model:
    """The exporter's own representation, weights shared with the module and scopes still there; see `export_onnx`."""
    import torch

    axes = dynamic_axes(model, inputs) if axes is None else axes
    example = {name: _resized(value, axes.get(name, {})) for name, value in inputs.items()}
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with _quiet(), plain_attention(model), _explicit_forward(model, list(example)), torch.no_grad():
            program = torch.onnx.export(
                model,
                (),
                kwargs=example,
                input_names=list(example),
                output_names=list(output_names),
                dynamic_shapes={name: dict(axes.get(name, {})) for name in example},
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except BackendError:
        raise
    except Exception as error:  # The exporter raises what it likes; its text is what helps.
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise BackendError(f"torch cannot export {type(model).__name__} to ONNX: {reason[:300]}") from error
    finally:
        for module in training:
            module.training = True
    assert program is not None
    linear_gemms(program.model)
    name_linear_nodes(program.model)
    return program.model


def takes_cache(model: nn.Module) -> bool:
    """Whether a deployed module's graph has a KV cache: `latency_models.backends.causal.CausalModel`."""
    return "total_sequence_length" in str(getattr(model, "dynamic_axes", ""))


def dynamic_axes(model: nn.Module, inputs: Mapping[str, Tensor]) -> Mapping[str, Mapping[int, str]]:
    """Which axes of a module's inputs its graph leaves open: those that it names, else batch and sequence."""
    own: Mapping[str, Mapping[int, str]] | None = getattr(model, "dynamic_axes", None)
    return {name: default_axes(value) for name, value in inputs.items()} if own is None else own


def default_axes(value: Tensor) -> dict[int, str]:
    """Dynamic axes of one input: batch first, then, for tokens (two axes), the sequence."""
    if value.dim() == 2:
        return {0: "batch_size", 1: "sequence_length"}
    return {0: "batch_size"} if value.dim() else {}


def _resized(value: Tensor, axes: Mapping[int, str]) -> Tensor:
    """The example with sizes that the exporter cannot mistake for constants or for one another."""
    import torch

    sizes = {
        "batch_size": _TRACED_BATCH,
        "sequence_length": _TRACED_SEQUENCE,
        "total_sequence_length": _TRACED_TOTAL,
    }
    for axis, name in axes.items():
        wanted = sizes.get(name, max(value.shape[axis], 2))
        value = value.index_select(axis, torch.arange(wanted, device=value.device) % value.shape[axis])
    return value


@contextmanager
def _explicit_forward(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let the forward method name its inputs, for modules that take them as ``**inputs``: the exporter reads names."""
    parameters = inspect.signature(model.forward).parameters
    if all(name in parameters for name in names):
        yield
        return
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        unknown = next(name for name in names if name not in parameters)
        raise BackendError(f"{type(model).__name__} takes no input {unknown!r}; it has {', '.join(parameters)}.")
    forward = model.forward

    def explicit(*args: Any, **inputs: Any) -> Any:
        return forward(**dict(zip(names, args, strict=False)), **inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    explicit.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    model.forward = explicit
    try:
        yield
    finally:
        del model.forward


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Let `transformers` models compute attention by its formula while they are exported.

    The fused torch operator exports to three reshapes and a guard against empty rows more per block; runtimes fuse
    the formula's graph instead.
    """
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    changed = [key for key, value in before.items() if value in ("sdpa", "flash_attention_2", "flex_attention")]
    for key in changed:
        configs[key]._attn_implementation = "eager"
    try:
        yield
    finally:
        for key in changed:
            configs[key]._attn_implementation = before[key]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter prints and warns of: progress marks, missing torchvision, deprecations inside torch."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
