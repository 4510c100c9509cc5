"""What our subnets are compared with, cut out of the same teacher: Torch-Pruning, dropped layers, truncated SVD."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.families import blocks_of, family_of
from search_spaces.surgery import keep_blocks

Batch = Mapping[str, Tensor]


def skipped() -> bool:
    """Whether a benchmark cannot run because a peer is not installed, which is said."""
    missing = find_spec("torch_pruning") is None
    if missing:
        print("skipped: Torch-Pruning is not installed; run `pip install --no-deps torch-pruning==1.6.1`")
    return missing


def torch_pruning(
    teacher: nn.Module, importance: Literal["taylor", "l2"], heads: float, ffn: float, batches: Iterable[Batch]
) -> nn.Module:
    """Torch-Pruning (Fang et al. 2023, arXiv 2301.12900): whole heads and FFN neurons, the same share in every block.

    Args:
        teacher: A BERT encoder; it stays as it is.
        importance: Taylor expansion of a contrastive loss between the texts of a batch, or the weights' L2 norm.
        heads: Share of the heads that goes.
        ffn: Share of the FFN's neurons that goes.
        batches: Inputs for Taylor's gradients.
    """
    import torch_pruning as tp

    model = copy.deepcopy(teacher).requires_grad_(True)
    batches = [_inputs(batch) for batch in batches]
    if importance == "taylor":
        for batch in batches:
            _contrastive(model(**batch).last_hidden_state, batch["attention_mask"]).backward()
    blocks = list(blocks_of(model))
    attention = [block.attention.self for block in blocks]
    within = [m for a in attention for m in (a.query, a.key, a.value)] + [block.intermediate.dense for block in blocks]
    scores = (
        tp.importance.GroupTaylorImportance() if importance == "taylor" else tp.importance.GroupMagnitudeImportance()
    )
    pruner = tp.pruner.BasePruner(
        model,
        {name: values[:2] for name, values in batches[0].items()},
        scores,
        pruning_ratio=ffn,
        # Only what lies inside a block: the residual stream keeps its width.
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding) and m not in within],
        num_heads={m: a.num_attention_heads for a in attention for m in (a.query, a.key, a.value)},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=heads,
        round_to=8,
        output_transform=lambda out: out.last_hidden_state,
    )
    pruner.step()
    for module in attention:
        module.num_attention_heads = module.query.out_features // module.attention_head_size
        module.all_head_size = module.query.out_features
    return model.requires_grad_(False).eval()


def evenly_spaced(blocks: int, keep: int) -> list[int]:
    """Which blocks stay where so many do (DistilBERT; Sanh et al. 2019, arXiv 1910.01108)."""
    return sorted({round(i * (blocks - 1) / max(keep - 1, 1)) for i in range(keep)})


def dropped_layers(teacher: nn.Module, kept: Sequence[int]) -> nn.Module:
    """Some of the blocks, as they are."""
    model = copy.deepcopy(teacher)
    keep_blocks(model, list(blocks_of(model)), kept, getattr(model.config, "layer_types", None))
    return model.eval()


def truncated_svd(teacher: nn.Module, share: float) -> nn.Module:
    """Every projection in two factors, their rank this share of the break-even rank; plain SVD of the weights."""
    model = copy.deepcopy(teacher)
    for number, block in enumerate(blocks_of(model)):
        for path in family_of(model).projections:
            linear: Any = block.get_submodule(path)
            out, inner = linear.weight.shape
            rank = _rank(linear, share)
            left, values, right = _factors(teacher)[f"{number}.{path}"]
            down, up = nn.Linear(inner, rank, bias=False), nn.Linear(rank, out, bias=linear.bias is not None)
            with torch.no_grad():
                up.weight.copy_(left[:, :rank] * values[:rank].sqrt())
                down.weight.copy_(values[:rank].sqrt()[:, None] * right[:rank])
                if linear.bias is not None:
                    up.bias.copy_(linear.bias)
            block.set_submodule(path, nn.Sequential(down, up))
    return model.requires_grad_(False).eval()


def svd_ranks(teacher: nn.Module, share: float) -> tuple[int, int, int, int]:
    """Ranks that `truncated_svd` gives queries, the attention's output, and the FFN's input and output."""
    family, block = family_of(teacher), blocks_of(teacher)[0]
    query, written, read, out = (
        _rank(block.get_submodule(path), share)
        for path in (family.query, family.attention_out, family.ffn_in[0], family.ffn_out)
    )
    return query, written, read, out


def _rank(linear: Any, share: float) -> int:
    out, inner = linear.weight.shape
    return max(1, int(share * out * inner / (out + inner)))


@lru_cache(maxsize=1)
def _factors(teacher: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The SVD of every projection, computed once: hundreds of matrices take minutes."""
    return {
        f"{number}.{path}": torch.linalg.svd(block.get_submodule(path).weight.detach(), full_matrices=False)
        for number, block in enumerate(blocks_of(teacher))
        for path in family_of(teacher).projections
    }


def encoder_parameters(model: nn.Module) -> int:
    """Parameters of the blocks' projections, as stored."""
    family = family_of(model)
    return sum(
        p.numel() for b in blocks_of(model) for path in family.projections for p in b.get_submodule(path).parameters()
    )


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: values for name, values in batch.items() if name != "labels"}


def _contrastive(states: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of each text's embedding against the batch's: has a gradient at the teacher, unlike agreement."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    pooled = functional.normalize((states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1), dim=-1)
    return functional.cross_entropy(pooled @ pooled.detach().T / 0.05, torch.arange(len(pooled)))
