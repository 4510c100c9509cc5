"""Self-attention relations: which tokens are alike to a block's queries, keys and values.

MiniLMv2 (Wang et al. 2021, arXiv 2012.15828): the heads of queries are put side by side and split again into as many
relation heads on both sides, so that a student may have fewer heads, or narrower ones, than its teacher. A relation is
the softmax of the scaled dot products between all tokens of a sample; the same of keys and of values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from nas.tasks.attention import ATTENTION, CAUSAL


def relation_difference(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], attention_mask: Tensor | None, heads: int
) -> Tensor:
    """KL(teacher || student) of query, key and value relations: mean over relation heads and real tokens, summed, nats.

    Args:
        student: ``queries``, ``keys`` and ``values``, ``(samples, tokens, width)``, and ``causal ()``: where it is
            true, tokens are related to themselves and the tokens before them only.
        teacher: Its queries, keys and values of the same samples, of widths of their own.
        attention_mask: ``(samples, tokens)``; without one, all tokens are real.
        heads: Relation heads; see `relation_heads`.
    """
    queries = student[ATTENTION[0]]
    size = queries.shape[:2]
    real = queries.new_ones(size, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    related = real[:, None, :].expand(-1, size[1], -1)
    if CAUSAL in student and bool(student[CAUSAL]):
        related = related.tril()
    return torch.stack([_divergence(student[name], teacher[name], real, related, heads) for name in ATTENTION]).sum()


def relation_heads(student: int, teacher: int, wanted: int) -> int:
    """The largest number up to the one wanted that divides both widths."""
    return next(count for count in range(wanted, 0, -1) if student % count == 0 == teacher % count)


def _divergence(student: Tensor, teacher: Tensor, real: Tensor, related: Tensor, heads: int) -> Tensor:
    heads = relation_heads(student.shape[-1], teacher.shape[-1], heads)
    own, other = (_log_relations(side, related, heads) for side in (student, teacher))
    difference = functional.kl_div(own, other, log_target=True, reduction="none").sum(dim=-1)
    return difference.mean(dim=1)[real].mean()


def _log_relations(states: Tensor, related: Tensor, heads: int) -> Tensor:
    """Logarithms of relations, ``(samples, heads, tokens, tokens)``; of unrelated tokens next to minus infinity."""
    split = states.reshape(*states.shape[:2], heads, -1).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    # A finite number, because infinities have no difference.
    return functional.log_softmax(scores.masked_fill(~related[:, None], torch.finfo(scores.dtype).min), dim=-1)
