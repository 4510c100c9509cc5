"""From a subnet to something that runs on a device: the graph is edited where it can be, exported where it cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from latency_models.backends.base import Run, as_arrays, backend_entry, make_backend
from latency_models.device import Device
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn

    from latency_models.backends.graph_template import GraphTemplate
    from latency_models.backends.quantize import Form
    from search_spaces.elastic import LinearWeights
    from search_spaces.space import SearchSpace

_logger = logging.getLogger(__name__)


class SubnetSource(Protocol):
    """What gives subnets their weights: `search_spaces.supernet.Supernet`."""

    @property
    def space(self) -> SearchSpace:
        """The space that the subnets come from."""

    def extract(self, subnet: SubnetConfig) -> nn.Module:
        """An independent plain model."""

    def linear_weights(self, subnet: SubnetConfig) -> dict[str, LinearWeights]:
        """The projections' tensors by path in the teacher; skipped blocks' are absent."""


class SubnetCompiler:
    """Compiles subnets of one supernet for one device.

    Args:
        device: Where they will run.
        supernet: Gives the subnets' weights.
        inputs: What one run processes, by input name.
        output_names: One name per tensor that the deployed model returns.
        deployable: Wraps an extracted model as it is deployed (pooling, normalisation); the model itself by default.
        template: The exported teacher, where it was made already; made on first use when None.
        templates: Folder where exported teachers are kept, so that the next process need not export them.
    """

    def __init__(
        self,
        device: Device,
        supernet: SubnetSource,
        inputs: Mapping[str, Tensor],
        output_names: Sequence[str],
        *,
        deployable: Callable[[nn.Module], nn.Module] | None = None,
        template: GraphTemplate | None = None,
        templates: Path | None = None,
    ) -> None:
        self.device = device
        self.inputs = dict(inputs)
        self.output_names = tuple(output_names)
        self._supernet = supernet
        self._deployable = deployable or _unchanged
        self._warned = False
        self._templates = templates
        self.template_path: Path | None = None
        if template is not None:
            self.__dict__["template"] = template

    def find_template(self) -> bool:
        """Take the exported teacher from where it is kept; whether it is there, or was made already."""
        from latency_models.backends.template_key import template_key
        from latency_models.backends.template_store import find_template

        if "template" in vars(self):
            return True
        if self._templates is None:
            return False
        teacher = self.module(self._supernet.space.teacher)
        if key := template_key(teacher, self.inputs, self.output_names):
            self.template_path = self._templates / f"{key}.template"
            if (found := find_template(self.template_path, teacher)) is not None:
                vars(self)["template"] = found
        return "template" in vars(self)

    @cached_property
    def template(self) -> GraphTemplate | None:
        """The exported teacher; None, with a warning, for a family whose graph cannot be edited."""
        from latency_models.backends.graph_template import GraphTemplate, GraphTemplateError
        from latency_models.backends.template_store import keep_template

        if self.template_path is None and self.find_template():
            found: GraphTemplate | None = vars(self)["template"]
            return found
        teacher = self.module(self._supernet.space.teacher)
        try:
            made = GraphTemplate.from_model(teacher, self.inputs, self.output_names)
        except GraphTemplateError as error:
            _logger.warning("%s Every subnet is exported instead, which takes seconds each.", error)
            return None
        if self.template_path is not None:
            keep_template(made, teacher, self.template_path)
        return made

    def graph(self, subnet: SubnetConfig) -> ModelProto:
        """The subnet's ONNX graph; blocks whose own precision is int8 are quantised.

        Raises:
            ValueError: The subnet is not of the supernet, or the device's runtime has no such precision for a block.
        """
        from latency_models.backends.onnx import export_onnx
        from latency_models.backends.quantize import at_block_precisions

        self._check_precisions(subnet)
        if self._narrower(subnet) or self.template is None:
            graph = export_onnx(self.module(subnet), self.inputs, self.output_names)
        else:
            skipped = [index for index, block in enumerate(subnet.blocks) if block.skipped]
            graph = self.template.edit(self._supernet.linear_weights(subnet), skipped)
        form: Form = "qdq" if self.device.backend == "tensorrt" else "operators"
        precisions = [subnet.blocks[index].precision for index in subnet.kept]
        family = self._supernet.space.shape.family
        return at_block_precisions(graph, family, precisions, form=form, calibration=(as_arrays(self.inputs),))

    def _narrower(self, subnet: SubnetConfig) -> bool:
        """Whether a subnet's residual stream is narrower than the teacher's, so that its graph is another one."""
        full = self._supernet.space.shape.hidden_size
        if subnet.hidden_size == full:
            return False
        if not self._warned:
            self._warned = True
            _logger.warning(
                "graph template: hidden sizes below the teacher's %d are other graphs. Every such subnet is exported, "
                "which takes seconds each.",
                full,
            )
        return True

    def module(self, subnet: SubnetConfig) -> nn.Module:
        """The subnet's plain torch model, wrapped as it is deployed."""
        return self._deployable(self._supernet.extract(subnet))

    def model(self, subnet: SubnetConfig) -> Any:
        """What the device's backend takes: a module or a graph."""
        if backend_entry(self.device.backend).takes != "module":
            return self.graph(subnet)
        self._check_precisions(subnet)
        return self.module(subnet)

    def _check_precisions(self, subnet: SubnetConfig) -> None:
        """Refuse precisions of single blocks that the runtime does not have: a whole model's is the device's own."""
        known = backend_entry(self.device.backend).block_precisions
        if unknown := [block.precision for block in subnet.blocks if block.precision not in known]:
            raise ValueError(
                f"`precision` of a block must be one of {', '.join(known)} on {self.device.backend}, but got "
                f"{unknown[0]!r}; a whole model's precision is the device's."
            )

    def compile(self, subnet: SubnetConfig) -> Run:
        """The subnet, ready to run on the device in this process."""
        return compile_model(self.device, self.model(subnet), self.inputs)

    def job(self, subnet: SubnetConfig) -> Callable[[], Run]:
        """What compiles the subnet when called, here: for `Profiler.measure`."""
        return partial(self.compile, subnet)

    def isolated_job(self, subnet: SubnetConfig) -> Callable[[], Run]:
        """What compiles the subnet when called, in any process: the model itself is made now."""
        takes_module = backend_entry(self.device.backend).takes == "module"
        # Arrays, so that a process that runs a graph does not import torch to read them.
        inputs: Mapping[str, Any] = self.inputs if takes_module else as_arrays(self.inputs)
        return partial(compile_model, self.device, self.model(subnet), inputs)

    def file_job(self, subnet: SubnetConfig, file: Path) -> Callable[[], Run]:
        """What compiles the subnet in any process as it is deployed: from a file, which is written now.

        A process that calls it spends memory on nothing else. Runtimes other than ONNX Runtime on a CPU get what
        `isolated_job` sends.
        """
        if self.device.backend != "onnxruntime" or self.device.provider not in ("cpu", "CPUExecutionProvider"):
            return self.isolated_job(subnet)
        from latency_models.backends.onnxruntime import OnnxRuntimeBackend

        arrays = as_arrays(self.inputs)
        file.write_bytes(OnnxRuntimeBackend(self.device).deployed(self.model(subnet), arrays))
        return partial(compile_model, replace(self.device, precision="fp32"), str(file), arrays)


def compile_model(device: Device, model: Any, inputs: Mapping[str, Any]) -> Run:
    """Compile a model for a device; a function of a module, so that another process can be told to call it."""
    return make_backend(device).compile(model, inputs)


def _unchanged(model: nn.Module) -> nn.Module:
    return model
