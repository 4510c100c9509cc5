"""Which samples run together: all of them by length, or random ones of like length without end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
# Batches of one bucket are sorted by length together: enough for little padding, few enough to stay random.
_BUCKET = 16


def by_length(lengths: Rows, batch_size: int) -> list[Rows]:
    """Rows of batches that hold every sample once, sorted by length so that hardly anything is padding."""
    rows = np.argsort(lengths, kind="stable")
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def shuffled(lengths: Rows, batch_size: int, seed: int) -> Iterator[Rows]:
    """Rows of random batches without end: new epochs are shuffled anew, and batches hold samples of like length."""
    size = len(lengths)
    generator = np.random.default_rng(seed)
    batch_size = min(batch_size, size)
    bucket = batch_size * _BUCKET
    while True:
        rows = generator.permutation(size)
        batches: list[Rows] = []
        for start in range(0, size, bucket):
            some = rows[start : start + bucket]
            some = some[np.argsort(lengths[some], kind="stable")]
            whole = len(some) // batch_size * batch_size
            batches += [some[i : i + batch_size] for i in range(0, whole, batch_size)]
        for position in generator.permutation(len(batches)):
            yield batches[position]
