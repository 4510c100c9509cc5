"""What a calibration refuses."""

from __future__ import annotations

import pytest

from search_spaces.calibrate import calibrate
from tests.models import tiny_batches, tiny_bert, tiny_space


def test_too_few_tokens_are_told_as_such() -> None:
    model = tiny_bert()
    batches = tiny_batches(1, size=1, length=3)
    with pytest.raises(ValueError, match=r"must see more than 3 tokens.*`task.data.calibration`"):
        calibrate(model, batches, tiny_space(model))
