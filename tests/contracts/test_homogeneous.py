"""`space=homogeneous`: its members, of every family, are what the stock class builds from a configuration."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModel, AutoModelForCausalLM

from nas.config import conf_dir
from search_spaces.calibrate import calibrate
from search_spaces.checkpoint import load_subnet, save_subnet
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.supernet import Supernet
from tests.contracts.test_families import CAUSAL, MODEL_TYPES
from tests.models import tiny, tiny_batches, tiny_images

# Whose configurations can say that there are fewer heads of the same width.
FEWER_HEADS = {*CAUSAL, "vit"} - {"gpt2"}


def space_of(teacher) -> SearchSpace:
    """The space of the file, with the widths that a tiny model can have."""
    options = OmegaConf.to_container(OmegaConf.load(conf_dir() / "space" / "homogeneous.yaml"))
    return SearchSpace.from_choices(ModelShape.from_model(teacher), **{**options, "round_to": {"ffn": 16}})


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_members_of_the_homogeneous_space_save_as_the_stock_class(model_type, tmp_path):
    teacher = tiny(model_type, language_model=model_type in CAUSAL)
    space = space_of(teacher)
    batches = tiny_images(2) if model_type == "vit" else tiny_batches(2)
    supernet = Supernet(copy.deepcopy(teacher), calibrate(teacher, batches, space), space)
    members = space.decode(np.array(list(np.ndindex(*(len(d.choices) for d in space.dimensions)))))
    assert {member.blocks[0].heads < space.shape.heads for member in members} >= {model_type in FEWER_HEADS}
    assert len({member.blocks[0].ffn for member in members}) == 4
    loads = AutoModelForCausalLM if model_type in CAUSAL else AutoModel
    for number, member in enumerate(members):
        folder, model = tmp_path / str(number), supernet.extract(member)
        save_subnet(model, member, space.shape, folder)
        assert not (folder / "modeling_subnet.py").exists(), member
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
        if member in (space.smallest, space.largest):
            loaded = loads.from_pretrained(folder, trust_remote_code=False).eval()
            with torch.inference_mode():
                assert torch.equal(loaded(**batches[0])[0], model(**batches[0])[0])


def test_heads_that_a_configuration_refuses_are_no_choice_and_save_with_code(tmp_path):
    """Llama's must divide the hidden size: 32 is no multiple of 3."""
    teacher = tiny("llama", language_model=True, num_key_value_heads=4)
    shape, choices = ModelShape.from_model(teacher), {"heads": [1, 2, 3, 4], "ffn": [32, 64]}
    space = SearchSpace.from_choices(shape, choices, per_block=[], homogeneous=True)
    assert {d.name: d.choices for d in space.dimensions} == {"heads": (1, 2, 4), "ffn": (32, 64)}
    free = SearchSpace.from_choices(shape, choices, per_block=[])
    supernet = Supernet(copy.deepcopy(teacher), calibrate(teacher, tiny_batches(2), free), free)
    member = next(m for m in free.sample(np.random.default_rng(0), 50) if m.blocks[0].heads == 3)
    model = supernet.extract(member)
    save_subnet(model, member, shape, tmp_path / "m")
    assert (tmp_path / "m" / "modeling_subnet.py").exists()
    with torch.inference_mode():
        inputs = tiny_batches(1)[0]
        assert torch.equal(load_subnet(tmp_path / "m")(**inputs)[0], model(**inputs)[0])
