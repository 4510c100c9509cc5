"""What a causal language model says about the next token, in few numbers: the vocabulary itself is never stored.

A row of logits has as many entries as the vocabulary, tens of thousands a token. Kept of it are the log-probability of
the token that came, the likeliest token, and the log-probabilities of some tokens: of a teacher its ``top_k`` likeliest
ones, of a student those that its teacher names, so that the two can be compared and a student can be distilled.

These are the columns of `NEXT_TOKEN`: ``(samples, tokens - 1, 2 + 2 top_k)``: log-likelihood, likeliest token, the
tokens asked for, and their log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

NEXT_TOKEN = "next_token"  # noqa: S105  (No password.)
# In a batch: the tokens whose probabilities are wanted, ``(samples, tokens - 1, top_k)``.
ASKED = "asked_tokens"
_LEADING = 2
# Rows of logits that exist at the same time: of 50,000 tokens, 100 MB.
_CHUNK = 512
Array = TypeVar("Array", Tensor, NDArray[Any])


def score_next_tokens(
    hidden: Tensor, head: Callable[[Tensor], Tensor], tokens: Tensor, asked: Tensor | None, top_k: int
) -> Tensor:
    """The columns of `NEXT_TOKEN`.

    Args:
        hidden: What the head reads, ``(samples, tokens, hidden)``.
        head: Gives logits.
        tokens: The samples' tokens, ``(samples, tokens)``.
        asked: Tokens whose log-probabilities are wanted, ``(samples, tokens - 1, top_k)``; the model's own likeliest
            ones when None.
        top_k: How many these are.
    """
    rows, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    wanted = None if asked is None else asked.flatten(0, 1)

    def scores(some: Tensor, target: Tensor, named: Tensor | None) -> Tensor:
        # In full precision: logits in bf16 have three digits, too few for a perplexity.
        with torch.autocast(some.device.type, enabled=False):
            logits = head(some.float()).float()
        norm = logits.logsumexp(dim=-1, keepdim=True)
        named = logits.topk(min(top_k, logits.shape[-1])).indices if named is None else named
        columns = (
            logits.gather(1, target[:, None]) - norm,
            logits.argmax(dim=-1, keepdim=True),
            named,
            logits.gather(1, named) - norm,
        )
        return torch.cat([column.float() for column in columns], dim=1)

    parts = []
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        arguments = (rows[part], targets[part], None if wanted is None else wanted[part])
        if torch.is_grad_enabled() and rows.requires_grad:
            # Logits are computed again for the gradient rather than kept.
            parts.append(checkpoint(scores, *arguments, use_reentrant=False))
        else:
            parts.append(scores(*arguments))
    return torch.cat(parts).reshape(len(tokens), tokens.shape[1] - 1, -1)


def questions(teacher: NDArray[Any]) -> dict[str, Tensor]:
    """What a student must be asked, beside its inputs, to be compared with a teacher's columns of some samples."""
    return {ASKED: torch.from_numpy(asked_tokens(teacher).astype(np.int64))}


def log_likelihoods(scores: Array) -> Array:
    """Log-probabilities of the tokens that came, in nats, ``(samples, tokens - 1)``."""
    return scores[..., 0]


def likeliest(scores: Array) -> Array:
    """The likeliest tokens, ``(samples, tokens - 1)``, as floating-point numbers."""
    return scores[..., 1]


def asked_tokens(scores: Array) -> Array:
    """The tokens that were asked for, ``(samples, tokens - 1, top_k)``, as floating-point numbers."""
    return scores[..., _LEADING : _LEADING + (scores.shape[-1] - _LEADING) // 2]


def log_probabilities(scores: Array) -> Array:
    """Log-probabilities of the tokens that were asked for, ``(samples, tokens - 1, top_k)``."""
    return scores[..., _LEADING + (scores.shape[-1] - _LEADING) // 2 :]
