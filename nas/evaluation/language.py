"""Metrics of causal language models: rows of token blocks, so that intervals are drawn over blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import POSITIVE, SHARE, Measure, Rows, ratio_of
from nas.tasks.next_token import asked_tokens, likeliest, log_likelihoods, log_probabilities

_TINY = 1e-9


def language_rows(student: NDArray[Any], teacher: NDArray[Any], tokens: NDArray[Any]) -> Rows:
    """Rows of blocks.

    Args:
        student: Columns of `nas.tasks.next_token.NEXT_TOKEN`, of the tokens that the teacher names.
        teacher: The reference's.
        tokens: The blocks' tokens, ``(blocks, tokens)``.

    Returns:
        For every block: ``tokens`` that were predicted; the sums over them of ``surprise`` (minus the log-likelihood,
        in nats), ``correct`` (the likeliest token came), ``agrees`` (it is the teacher's likeliest) and ``kl``
        (Kullback-Leibler divergence from the teacher's distribution to the student's, nats, of the teacher's likeliest
        tokens one by one and of all others together: at most that of the whole distributions).

    Raises:
        ValueError: The student was asked about other tokens than the teacher's.
    """
    if not np.array_equal(asked_tokens(student), asked_tokens(teacher)):
        raise ValueError(
            "a language model must be asked about the tokens that its teacher names, but was about others."
        )
    own, other = _with_rest(student), _with_rest(teacher)
    chosen = likeliest(student)
    return {
        "tokens": np.full(len(tokens), tokens.shape[1] - 1),
        "surprise": -log_likelihoods(student).sum(axis=1, dtype=np.float64),
        "correct": (chosen == tokens[:, 1:]).sum(axis=1),
        "agrees": (chosen == likeliest(teacher)).sum(axis=1),
        "kl": (np.exp(other) * (other - own)).sum(axis=(1, 2)),
    }


def _with_rest(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probabilities of the tokens asked for, and of all others together."""
    named = log_probabilities(scores).astype(np.float64)
    rest = np.log(np.maximum(1.0 - np.exp(named).sum(axis=-1, keepdims=True), _TINY))
    return np.concatenate([named, rest], axis=-1)


def _perplexity(rows: Rows) -> float:
    return math.exp(rows["surprise"].sum() / rows["tokens"].sum())


LANGUAGE = (
    ratio_of("log_perplexity", "surprise", "tokens", higher_is_better=False, span=POSITIVE),
    Measure("perplexity", _perplexity, higher_is_better=False, span=(1.0, math.inf)),
    ratio_of("accuracy", "correct", "tokens", span=SHARE),
    ratio_of("agreement", "agrees", "tokens", agreement=True, span=SHARE),
    ratio_of("kl", "kl", "tokens", agreement=True, higher_is_better=False, span=POSITIVE),
)
