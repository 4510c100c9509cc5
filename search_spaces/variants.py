"""The variants of one block: its units in order of importance, every width refitted, every rank factorised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from search_spaces.compensate import compensate
from search_spaces.factorize import whitened_svd
from search_spaces.families import ModelFamily, projection_weights
from search_spaces.fisher import Gradients, fisher_information
from search_spaces.importance import Importance, features, unit_order
from search_spaces.layout import ProjectionLayout, layouts, prefixes
from search_spaces.observe import Observed
from search_spaces.output_metric import output_metric, output_scale
from search_spaces.space import SearchSpace

# Removals between two updates of the scores, as a share of the units: one by one would take minutes for an FFN.
_CHUNKS = 48


@dataclass(frozen=True)
class BlockVariants:
    """Makes the tensors of one block's variants; see `Library` for their names.

    Args:
        index: The block's number in the teacher.
        block: The teacher's block.
        family: Where the block keeps its projections.
        space: Which levels and ranks to prepare.
        observed: Moments of what the block's projections read.
        importance: In which order units are kept.
        gradients: Of the gates of its units, for ``fisher``.
    """

    index: int
    block: nn.Module
    family: ModelFamily
    space: SearchSpace
    observed: Observed
    importance: Importance
    gradients: Gradients = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All variants of the block."""
        return self._attention() | self._ffn()

    def _attention(self) -> dict[str, Tensor]:
        """Heads are kept or left in whole key/value groups."""
        shape, family = self.space.shape, self.family
        group, size = shape.heads // shape.kv_heads, shape.head_dim
        order = self._order(family.attention_out, "attention_out", group * size, 1)
        keys = features(order, size)
        heads = (order[:, None] * group + torch.arange(group)).reshape(-1)
        if min(self.space.levels("queries_per_group", self.index)) < group:
            # Within a group, its query heads in the order in which they are important on their own.
            place = self._order(family.attention_out, "attention_out", size, 1).argsort()
            heads = heads.reshape(-1, group).gather(1, place[heads.reshape(-1, group)].argsort(dim=1)).reshape(-1)
        queries = features(heads, size)
        rows: dict[str, list[Tensor]] = {}
        for path, own in ((family.query, queries), (family.key, keys), (family.value, keys)):
            rows.setdefault(path, []).append(own)
        return self._levels("heads", rows, queries)

    def _ffn(self) -> dict[str, Tensor]:
        order = self._order(self.family.ffn_out, "ffn_out", 1, max(1, self.space.shape.ffn // _CHUNKS))
        rows: dict[str, list[Tensor]] = {}
        for path in self.family.ffn_in:
            rows.setdefault(path, []).append(order)
        return self._levels("ffn", rows, order)

    def _levels(self, dimension: str, rows: Mapping[str, list[Tensor]], order: Tensor) -> dict[str, Tensor]:
        """Every width of the projections whose width one dimension sets."""
        orders = {path: _in_one_matrix(parts) for path, parts in rows.items()}
        tensors = self._sorted_readers(orders)
        for block in self.space.widths(dimension, self.index):
            for layout in layouts(self.family, self.space.shape, block).values():
                if layout.dimension == dimension:
                    writes = layout.writes
                    tensors |= self._writer(layout, order) if writes else self._reader(layout, orders[layout.path])
        return tensors

    def _weights(self, path: str) -> tuple[Tensor, Tensor | None]:
        weight, bias = projection_weights(self.block, path)
        return weight.cpu(), None if bias is None else bias.cpu()

    def _order(self, path: str, name: str, size: int, chunk: int) -> Tensor:
        weight, bias = self._weights(path)
        if (scale := output_scale(self.block, self.family, path)) is not None:
            weight = weight.double() * scale[:, None]
        information = None
        if self.importance == "fisher":
            gates = size // self.space.shape.head_dim if name == "attention_out" else size
            information = fisher_information(self.gradients[name], gates)
        return unit_order(weight, bias, self.observed.both(name), size, self.importance, chunk, information)

    def _sorted_readers(self, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The projections that make units: their rows in order of importance, part by part."""
        tensors: dict[str, Tensor] = {}
        for path, chosen in orders.items():
            weight, bias = self._weights(path)
            tensors[f"{self.index}.{path}.permuted"] = weight[chosen]
            if bias is not None:
                tensors[f"{self.index}.{path}.permuted_bias"] = bias[chosen]
        return tensors

    def _writer(self, layout: ProjectionLayout, order: Tensor) -> dict[str, Tensor]:
        """One width of the projection that reads units, refitted to the units that are kept, and its factors."""
        weight, bias = self._weights(layout.path)
        prefix, kept, role = self._prefix(layout), layout.units.of(order), layout.role
        if layout.inputs == weight.shape[1]:
            return self._factors(layout, weight, bias, torch.arange(layout.inputs))
        fitted, shifted = compensate(weight, bias, self.observed.fit[role], self.observed.held_out[role], kept)
        tensors = {f"{prefix}.weight": fitted.to(weight.dtype)}
        if shifted is not None:
            tensors[f"{prefix}.bias"] = shifted.to(weight.dtype)
        return tensors | self._factors(layout, fitted, shifted, kept)

    def _reader(self, layout: ProjectionLayout, order: Tensor) -> dict[str, Tensor]:
        """Factors of one width of a projection that makes units; its dense form is a part of the sorted one."""
        if not layout.outputs:
            return {}
        weight, bias = self._weights(layout.path)
        rows = torch.arange(len(weight)) if layout.outputs == len(weight) else prefixes(order, layout.parts)
        bias = None if bias is None else bias[rows]
        return self._factors(layout, weight[rows], bias, torch.arange(weight.shape[1]), rows)

    def _factors(
        self, layout: ProjectionLayout, weight: Tensor, bias: Tensor | None, kept: Tensor, rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The two factors of one width, sorted, for the largest rank of the space that saves anything.

        The weight reads the teacher's inputs ``kept`` and gives its outputs ``rows``, by default all.
        """
        largest = self.space.largest_rank(layout.rank_dimension, self.index, layout.inputs, layout.outputs)
        if not largest:
            return {}
        prefix, moments, dtype = self._prefix(layout), self.observed.both(layout.role), self._dtype
        metric = self._metrics[layout.path]
        if metric is not None and rows is not None:
            metric = metric[rows][:, rows]
        up, down = whitened_svd(weight, moments.spread(bias)[kept][:, kept], largest, metric)
        tensors = {f"{prefix}.up": up.to(dtype), f"{prefix}.down": down.to(dtype)}
        if bias is not None:
            # The bias of rank r is `mean_output - up[:, :r] @ down_mean[:r]`: it keeps the mean output at every rank.
            mean = moments.mean[kept]
            tensors[f"{prefix}.down_mean"] = (down @ mean).to(dtype)
            tensors[f"{prefix}.mean_output"] = (bias.double() + weight.double() @ mean).to(dtype)
        return tensors

    @cached_property
    def _metrics(self) -> dict[str, Tensor | None]:
        """What errors of each projection's outputs cost: the same for all widths; made where there is a rank."""
        shape, observed = self.space.shape, self.observed
        return {p: output_metric(self.block, self.family, shape, observed, p) for p in self.family.projections}

    @property
    def _dtype(self) -> torch.dtype:
        return self._weights(self.family.ffn_out)[0].dtype

    def _prefix(self, layout: ProjectionLayout) -> str:
        return f"{self.index}.{layout.path}.{layout.level}"


def _in_one_matrix(parts: Sequence[Tensor]) -> Tensor:
    """Orders of rows that stand one part after the other, as one."""
    starts = accumulate((len(own) for own in parts), initial=0)
    return torch.cat([own + start for own, start in zip(parts, starts, strict=False)])
