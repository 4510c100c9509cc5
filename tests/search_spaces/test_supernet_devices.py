"""A supernet moves as a whole: its teacher's projections and its library are no parameters of any module."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from search_spaces.calibrate import calibrate
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.supernet import Supernet
from tests.models import tiny_batches, tiny_bert

BATCH = tiny_batches(count=1, seed=9)[0]


@torch.inference_mode()
def run(supernet: Supernet) -> torch.Tensor:
    return supernet(**BATCH).last_hidden_state


@pytest.mark.parametrize("hidden_size", [[32], [16, 32]])
def test_to_takes_along_what_no_module_owns(hidden_size: list[int]) -> None:
    """Dtypes stand for devices here: every machine has two of them."""
    model = tiny_bert()
    choices = {"heads": [2, 4], "ffn": [32, 64], "rank_qkv": [0, 8], "hidden_size": hidden_size}
    space = SearchSpace.from_choices(ModelShape.from_model(model), choices)
    supernet = Supernet(copy.deepcopy(model), calibrate(model, tiny_batches(), space), space)
    for subnet in (space.smallest, space.teacher, *space.sample(np.random.default_rng(0), 2)):
        supernet.activate(subnet)
        before = run(supernet)
        supernet.to(torch.float64)
        wide = run(supernet)
        supernet.to(torch.float32)
        assert wide.dtype == torch.float64
        torch.testing.assert_close(wide.float(), before, rtol=1e-4, atol=1e-5)
        assert torch.equal(run(supernet), before)
