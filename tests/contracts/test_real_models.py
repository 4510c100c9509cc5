"""Real models keep the supernet's promises: a sentence encoder, and the first blocks of a causal language model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from search_spaces.calibrate import calibrate
from search_spaces.checkpoint import load_subnet, save_subnet
from search_spaces.cost import costs
from search_spaces.families import blocks_of
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig
from search_spaces.supernet import Supernet
from search_spaces.surgery import keep_blocks
from tests.contracts.test_families import close
from tests.models import tiny_batches

ASSETS = Path(__file__).parents[2] / ".assets"
BLOCKS = 2


def loaded(name: str) -> Any:
    folder = ASSETS / name
    if not folder.is_dir():
        pytest.skip(f"{name} is absent: run `make assets`")
    kind = AutoModelForCausalLM if name == "smollm2" else AutoModel
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    keep_blocks(model, list(blocks_of(model)), range(BLOCKS), getattr(model.config, "layer_types", None))
    model.config.num_hidden_layers = BLOCKS
    return model


@pytest.mark.assets
@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_subnets_of_real_weights_are_exact(name, tmp_path):
    teacher = loaded(name)
    shape = ModelShape.from_model(teacher)
    kv_heads = [1, shape.kv_heads] if shape.kv_heads < shape.heads else [shape.heads // 2, shape.heads]
    group = shape.heads // shape.kv_heads
    choices = {
        "skip": [False, True],
        "heads": [group * number for number in kv_heads],
        "ffn": [0.25, 0.5, 1.0],
        "rank_qkv": [0, 64],
    }
    space = SearchSpace.from_choices(shape, choices)
    supernet = Supernet(
        copy.deepcopy(teacher), calibrate(teacher, tiny_batches(), space, importance="activation_weight"), space
    )
    inputs = tiny_batches(1, seed=9)[0]

    @torch.inference_mode()
    def run(model: Any) -> torch.Tensor:
        return model(**inputs)[0]

    supernet.activate(space.smallest)
    assert not close(run(supernet.model), run(teacher), 1e-2)
    supernet.activate(space.largest)
    assert torch.equal(run(supernet.model), run(teacher))
    subnet: SubnetConfig = space.sample(np.random.default_rng(0), 1)[0]
    supernet.activate(subnet)
    model = supernet.extract(subnet)
    assert close(run(model), run(supernet.model))
    assert costs(shape, [subnet]).parameters[0] == sum(p.numel() for p in model.parameters())
    save_subnet(model, subnet, shape, tmp_path / "model")
    assert torch.equal(run(load_subnet(tmp_path / "model")), run(model))
    if name == "smollm2":
        written = {
            cached: model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=cached, pad_token_id=0)
            for cached in (True, False)
        }
        assert torch.equal(written[True], written[False])
