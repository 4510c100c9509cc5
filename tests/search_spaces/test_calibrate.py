"""What a calibration refuses."""

from __future__ import annotations

import pytest
import torch

from search_spaces.calibrate import calibrate
from tests.models import tiny_batches, tiny_bert, tiny_space


def test_too_few_tokens_are_told_as_such() -> None:
    model = tiny_bert()
    batches = tiny_batches(1, size=1, length=3)
    with pytest.raises(ValueError, match=r"must see more than 3 tokens.*`task.data.calibration`"):
        calibrate(model, batches, tiny_space(model))


def test_a_teacher_with_weights_that_are_not_finite_is_named_with_the_tensor() -> None:
    model = tiny_bert()
    model.config.name_or_path = "folder/of/teacher"
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"folder/of/teacher: weights must be finite, but 'embeddings\.word"):
        calibrate(model, tiny_batches(), tiny_space(model))
