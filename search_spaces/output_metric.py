"""What an error of a projection's outputs costs: the quadratic form in which ranks and the order of units are chosen.

A squared error that counts every output alike spends ranks and units on outputs that nobody reads:

- a norm that follows the residual sum scales each of its coordinates (BERT), so errors written there count by it;
- an error e of a query changes the attention's logits by e' k, so it counts by the spread of the keys of its own head,
  and one of a key by the queries' second moment (a shift that is common to all keys changes nothing);
- an error of a value goes through the columns of the attention's output projection that read its head.

The same two-sided weighting, with gradients in the place of these closed forms, is K-FAC's (Martens and Grosse 2015,
arXiv 1503.05671) and FWSVD's (Hsu et al. 2022, arXiv 2207.00112).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from search_spaces.families import ModelFamily, projection_weights
from search_spaces.observe import Observed
from search_spaces.shapes import ModelShape


def output_scale(block: nn.Module, family: ModelFamily, path: str) -> Tensor | None:
    """``(hidden_size,)``: what the norm behind the residual sum makes of the outputs of a projection that writes there.

    None where the stream is read as it is: norms precede the sublayers.
    """
    if not family.post_norm:
        return None
    norm = block.get_submodule(family.attention_norm if path == family.attention_out else family.ffn_norm)
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return weight.detach().double().abs().cpu()


def output_metric(
    block: nn.Module, family: ModelFamily, shape: ModelShape, observed: Observed, path: str
) -> Tensor | None:
    """``(out, out)``, in double precision: an error e of a projection's outputs costs e' G e; None if all count alike.

    Args:
        block: The teacher's block.
        family: Where it keeps its projections.
        shape: Its head counts.
        observed: Moments of what its projections read.
        path: The projection; where one matrix holds query, key and value, G has a part for each.
    """
    if path in (family.attention_out, family.ffn_out):
        scale = output_scale(block, family, path)
        return None if scale is None else scale.square().diag()
    if path not in (family.query, family.key, family.value):
        return None
    parts = _AttentionMetrics(block, family, shape, observed)
    makers: tuple[tuple[str, Callable[[], Tensor]], ...] = (
        (family.query, parts.query),
        (family.key, parts.key),
        (family.value, parts.value),
    )
    return _block_diagonal(make() for place, make in makers if place == path)


class _AttentionMetrics:
    """Of the queries, keys and values of one block, each head on its own: a block-diagonal matrix."""

    def __init__(self, block: nn.Module, family: ModelFamily, shape: ModelShape, observed: Observed) -> None:
        self.block, self.family, self.size = block, family, shape.head_dim
        self.kv_heads, self.group = shape.kv_heads, shape.heads // shape.kv_heads
        self.read = observed.both("qkv")

    def query(self) -> Tensor:
        """Covariance of the keys that each query head meets."""
        if self.family.rotary:
            return self._alike(self.kv_heads * self.group)
        weight, _ = self._rows("key")
        heads = self._heads(weight @ self.read.covariance @ weight.T)
        return _block_diagonal(heads.repeat_interleave(self.group, dim=0))

    def key(self) -> Tensor:
        """Second moment of the queries that each key head meets, summed over its group."""
        if self.family.rotary:
            return self._alike(self.kv_heads)
        weight, bias = self._rows("query")
        mean = weight @ self.read.mean + bias
        return self._grouped(weight @ self.read.covariance @ weight.T + torch.outer(mean, mean))

    def value(self) -> Tensor:
        """What the attention's output projection makes of each value head, summed over its group."""
        weight, _ = projection_weights(self.block, self.family.attention_out)
        scale = output_scale(self.block, self.family, self.family.attention_out)
        written = weight.double().cpu() * (1.0 if scale is None else scale[:, None])
        return self._grouped(written.T @ written)

    def _alike(self, heads: int) -> Tensor:
        # Rotary positions turn queries against keys: over all distances, directions within a head count alike.
        return torch.eye(heads * self.size, dtype=torch.float64)

    def _rows(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of the queries or keys, out of the matrix that may hold all three."""
        family = self.family
        weight, bias = projection_weights(self.block, family.query if name == "query" else family.key)
        bias = torch.zeros(len(weight)) if bias is None else bias
        queries, keys = self.kv_heads * self.group * self.size, self.kv_heads * self.size
        start = queries if family.fused_qkv and name == "key" else 0
        rows = slice(start, start + (queries if name == "query" else keys))
        return weight[rows].double().cpu(), bias[rows].double().cpu()

    def _heads(self, form: Tensor) -> Tensor:
        """The heads' own blocks of a matrix: ``(heads, size, size)``."""
        count = len(form) // self.size
        return form.reshape(count, self.size, count, self.size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def _grouped(self, form: Tensor) -> Tensor:
        """The heads' own blocks, those of one key/value group summed."""
        own = self._heads(form).reshape(self.kv_heads, self.group, self.size, self.size).sum(dim=1)
        return _block_diagonal(own)


def _block_diagonal(blocks: Iterable[Tensor]) -> Tensor:
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined
