"""Pairs of texts that are embedded one by one: labelled similarity, and retrieval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import Floats, Tables
from nas.evaluation.similarity import PAIRS, QUERIES, retrieval_rows, sts_rows
from nas.tasks.data import Examples
from nas.tasks.labels import encode_numbers


@dataclass(frozen=True)
class TextPairs:
    """A split whose samples are the different texts of its pairs.

    Args:
        texts: Every text once.
        first: Row of each pair's first text.
        second: Row of its second.
        scores: How alike people found the two, or None: then the second text is what a search for the first must find.
    """

    texts: Examples
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    scores: NDArray[np.float32] | None

    @classmethod
    def from_examples(cls, examples: Examples) -> TextPairs:
        """Take the pairs of a split apart.

        Raises:
            ValueError: A score is not a number.
        """
        assert examples.pairs is not None
        both, rows = (*examples.texts, *examples.pairs), np.concatenate([examples.rows, examples.rows])
        places: dict[str, int] = {}
        for text in both:
            places.setdefault(text, len(places))
        _, kept = np.unique([places[text] for text in both], return_index=True)
        texts = Examples(tuple(places), rows[kept])
        first, second = (
            np.array([places[text] for text in side], dtype=np.int64) for side in (examples.texts, examples.pairs)
        )
        scores = None if examples.labels is None else encode_numbers({"": examples})[""][:, 0]
        return cls(texts, first, second, scores)

    def tables(self, embeddings: Floats, nearest: int) -> Tables:
        """What measures of similarity, or of retrieval, are computed of."""
        if self.scores is not None:
            return {PAIRS: sts_rows(embeddings, self.first, self.second, self.scores)}
        return {QUERIES: retrieval_rows(embeddings, self.first, self.second, nearest)}
