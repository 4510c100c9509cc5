"""What analytic costs refuse."""

from __future__ import annotations

import pytest

from search_spaces.cost import Workload


def test_a_workload_longer_than_the_position_embeddings_is_refused():
    Workload(sequence_length=512).check_positions(512)
    Workload(sequence_length=511, phase="decode").check_positions(512)
    Workload(sequence_length=100_000).check_positions(None)
    for workload, most in ((Workload(sequence_length=513), 512), (Workload(sequence_length=512, phase="decode"), 511)):
        with pytest.raises(ValueError, match=f"`workload.sequence_length` must be at most {most}, because .* has 512"):
            workload.check_positions(512)
