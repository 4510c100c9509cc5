"""The one exporter of the project: a torch module to an ONNX graph with dynamic batch and sequence."""

from __future__ import annotations

import ast
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_models.backends.base import BackendError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from torch import Tensor, nn

# The first with one operator for GELU; ONNX Runtime >= 1.17, OpenVINO >= 2024 and TensorRT >= 10 read it.
DEFAULT_OPSET = 20
_SCOPES = "pkg.torch.onnx.name_scopes"
_LINEAR_OPS = ("MatMul", "Gemm")
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

    axes = getattr(model, "dynamic_axes", None) if axes is None else axes
    axes = dict(axes) if axes is not None else {name: default_axes(value) for name, value in inputs.items()}
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


def scope_of(node: ir.Node) -> str:
    """Path of the innermost module that a node was traced in; empty when the exporter did not say."""
    scopes = scopes_of(node)
    return scopes[-1] if scopes else ""


def scopes_of(node: ir.Node) -> tuple[str, ...]:
    """Paths of the modules that a node was traced in, from the outermost."""
    text = node.metadata_props.get(_SCOPES)
    if not text:
        return ()
    # The last entry names the operation itself.
    return tuple(str(scope) for scope in ast.literal_eval(text)[:-1])


def name_linear_nodes(model: ir.Model) -> None:
    """Name every projection's product after its module: what selects a block's nodes for its own precision."""
    seen: dict[str, int] = {}
    for node in model.graph:
        if node.op_type in _LINEAR_OPS and (scope := scope_of(node)):
            name = f"{scope}/{node.op_type}"
            seen[name] = seen.get(name, 0) + 1
            node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def linear_gemms(model: ir.Model) -> None:
    """Make the products of all tokens that stand as ``Reshape, Gemm, Reshape`` (GPT-2's) a ``MatMul`` and an ``Add``.

    That is how every other family's stand, and what runtimes quantise and fuse. A ``Gemm`` of one token per sequence,
    as in a pooler, stays.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        found = _reshaped_gemm(node)
        if found is None:
            continue
        flatten, unflatten = found
        source, result = flatten.inputs[0], unflatten.outputs[0]
        assert source is not None
        nodes = []
        if len(source.shape or ()) != 3:  # The heads' outputs side by side: batch and tokens stay as they are.
            name = f"{result.name}/shape"
            shape = ir.val(name, const_value=ir.tensor(np.array([0, 0, -1], dtype=np.int64), name=name))
            model.graph.register_initializer(shape)
            nodes.append(ir.node("Reshape", [source, shape]))
            source = nodes[-1].outputs[0]
        nodes.append(ir.node("MatMul", [source, node.inputs[1]]))
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], node.inputs[2]]))
        for number, made in enumerate(nodes):
            made.metadata_props.update(node.metadata_props)
            made.outputs[0].name, made.outputs[0].type = f"{result.name}/{number}", result.type
        model.graph.insert_after(unflatten, nodes)
        result.replace_all_uses_with(nodes[-1].outputs[0])
        nodes[-1].outputs[0].shape = result.shape
        model.graph.remove([unflatten, node], safe=True)
        if not flatten.outputs[0].uses():
            model.graph.remove(flatten, safe=True)


def _reshaped_gemm(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The reshapes around a ``Gemm`` that is a projection of three-dimensional hidden states."""
    if node.op_type != "Gemm" or len(node.inputs) < 3 or any(value is None for value in node.inputs):
        return None
    changes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    if any(name in node.attributes and node.attributes[name].value != default for name, default in changes.items()):
        return None
    flatten, uses = node.inputs[0].producer(), list(node.outputs[0].uses())  # type: ignore[union-attr]
    if flatten is None or flatten.op_type != "Reshape" or len(uses) != 1 or uses[0].node.op_type != "Reshape":
        return None
    unflatten = uses[0].node
    return (flatten, unflatten) if len(unflatten.outputs[0].shape or ()) == 3 else None


def clean(model: ir.Model) -> None:
    """Drop the exporter's notes: stack traces with the paths of this machine, and ten times the graph's own size."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes between inputs and outputs, which runtimes find for themselves.

    In a graph that subnets are cut out of they are the teacher's. And where ONNX Runtime reads them, it fuses every
    residual sum with the norm behind it: on CPUs its fused kernel is slower than the two (measured on MiniLM, 128
    tokens: 0.23 ms each), so that a fresh export would be slower than what its predictor was fitted to.
    """
    ends = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in ends:
                value.shape = None


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
