"""Every model type of every family keeps the supernet's promises, over small random models."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from nas.evaluation.prefix import TeacherPrefix
from search_spaces.calibrate import calibrate
from search_spaces.checkpoint import load_subnet, save_subnet
from search_spaces.cost import Workload, costs
from search_spaces.counting import example
from search_spaces.fake_quantize import fake_quantized, quantization_aware
from search_spaces.families import FAMILIES, blocks_of, family_of, projection_weights
from search_spaces.library import Library
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.subnet import SKIPPED, SubnetConfig
from search_spaces.supernet import Supernet
from tests.models import randomise, tiny, tiny_batches, tiny_images

MODEL_TYPES = [model_type for family in FAMILIES for model_type in family.model_types]
CAUSAL = [model_type for family in FAMILIES if family.causal for model_type in family.model_types]
FAST = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Made:
    """A teacher, its supernet, and inputs that calibration did not see."""

    teacher: Any
    library: Library
    supernet: Supernet
    inputs: dict[str, torch.Tensor]

    @property
    def space(self) -> SearchSpace:
        return self.supernet.space

    @torch.inference_mode()
    def run(self, model: nn.Module) -> torch.Tensor:
        return model(**self.inputs)[0]


def different_windows(model: Any) -> bool:
    """Whether a causal model's blocks attend to different windows."""
    return family_of(model).causal and len(set(getattr(model.config, "layer_types", None) or [])) > 1


def space_of(model: Any) -> SearchSpace:
    """Every dimension, with ranks below and above break-even."""
    shape = ModelShape.from_model(model)
    choices = {
        "skip": [False, True],
        "no_attention": [False] if different_windows(model) else [False, True],
        "no_ffn": [False, True],
        "heads": [2, 4] if shape.kv_heads < shape.heads else [1, 3, 4],
        "queries_per_group": [1, 2] if shape.kv_heads < shape.heads else [1],
        "ffn": [16, 48, 64],
        "rank_qkv": [0, 4, 12, 22],
        "rank_attention_out": [0, 8],
        "rank_ffn_in": [0, 12, 25],
        "rank_ffn_out": [0, 12, 30],
    }
    return SearchSpace.from_choices(shape, choices)


@cache
def made(model_type: str) -> Made:
    teacher = tiny(model_type, language_model=model_type in CAUSAL)
    space = space_of(teacher)
    batches = tiny_images() if model_type == "vit" else tiny_batches()
    library = calibrate(teacher, batches, space)
    unseen = tiny_images(1, seed=9) if model_type == "vit" else tiny_batches(1, seed=9)
    return Made(teacher, library, Supernet(copy.deepcopy(teacher), library, space), unseen[0])


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def check_deployed(it: Made, subnet: SubnetConfig, folder: Path, ours: set[str]) -> None:
    """Activated computes as extracted, and extracted as loaded, bit for bit; of our modules it has these alone."""
    it.supernet.activate(subnet)
    active = it.run(it.supernet.model)
    model = it.supernet.extract(subnet)
    assert {type(m).__name__ for m in model.modules() if type(m).__module__.startswith("search_spaces")} <= ours
    assert active.shape == it.run(it.teacher).shape
    assert close(it.run(model), active)
    save_subnet(model, subnet, it.space.shape, folder)
    loaded = load_subnet(folder)
    assert torch.equal(it.run(loaded), it.run(model))
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def check_costs(it: Made, subnet: SubnetConfig, length: int) -> None:
    """Parameters and MACs are those that are counted on the extracted model."""
    model = it.supernet.extract(subnet)
    found = costs(it.space.shape, [subnet], Workload(sequence_length=length))
    assert found.parameters[0] == sum(p.numel() for p in model.parameters())
    assert found.block_parameters[0] == sum(p.numel() for p in blocks_of(model).parameters())
    assert found.weight_bytes[0] == 4 * found.parameters[0]
    assert found.macs[0] == counted_macs(model, example(model, length))


SEEDS = st.integers(0, 2**31)


def drawn(space: SearchSpace, seed: int) -> SubnetConfig:
    return space.sample(np.random.default_rng(seed), 1)[0]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
class TestFamily:
    """One class for the table, one parameter for each model type that a row serves."""

    def test_quantised_blocks_compute_in_the_supernet_as_in_the_extracted_model(self, model_type):
        it = made(model_type)
        for seed, precision in enumerate(("int8", "int4")):
            subnet = drawn(it.space, seed).on_device(precision)
            it.supernet.activate(subnet)
            model = it.supernet.extract(subnet)
            with fake_quantized(model, [precision] * subnet.depth):
                assert close(it.run(model), it.run(it.supernet.model))
            plain, judged = it.run(model), it.run(it.supernet.model)
            with quantization_aware(model, [precision] * subnet.depth):
                # Factors are multiplied in another order: a value between two integers may go to the other one.
                assert (it.run(model) - judged).abs().mean() < 0.1 * (plain - judged).abs().mean()
            assert not close(it.run(model), it.run(it.supernet.model), 1e-4)

    def test_largest_subnet_is_the_teacher_bit_for_bit(self, model_type):
        it = made(model_type)
        expected = it.run(it.teacher)
        assert it.space.largest == it.space.teacher
        it.supernet.activate(it.space.smallest)
        assert not torch.equal(it.run(it.supernet.model), expected)
        it.supernet.activate(it.space.largest)
        assert torch.equal(it.run(it.supernet.model), expected)
        largest = it.supernet.extract(it.space.largest)
        assert torch.equal(it.run(largest), expected)
        assert {n: type(m) for n, m in largest.named_modules()} == {n: type(m) for n, m in it.teacher.named_modules()}

    @FAST
    @given(seed=SEEDS)
    def test_activated_equals_extracted_equals_loaded(self, model_type, tmp_path, seed):
        it = made(model_type)
        check_deployed(it, drawn(it.space, seed), tmp_path / "model", {"Absent", "Constant"})

    @FAST
    @given(seed=SEEDS)
    def test_costs_are_counted_ones(self, model_type, seed):
        it = made(model_type)
        check_costs(it, drawn(it.space, seed), 10 if model_type == "vit" else 24)

    @FAST
    @given(seed=SEEDS)
    def test_canonical_form_is_idempotent_and_round_trips(self, model_type, seed):
        space = made(model_type).space
        subnet = drawn(space, seed)
        assert space.canonical(subnet) == subnet
        assert space.decode(space.encode([subnet])) == [subnet]
        assert SubnetConfig.from_json(subnet.to_json()) == subnet
        assert hash(SubnetConfig.from_json(subnet.to_json())) == hash(subnet)

    def test_subnets_compute_alike_behind_what_the_teacher_s_first_blocks_passed_on(self, model_type):
        it = made(model_type)
        prefix = TeacherPrefix(it.supernet)
        with prefix.activated(it.space.teacher, "validation"):
            it.run(it.supernet.model)
        for seed in range(6):
            at = seed % it.space.shape.num_blocks
            subnet = it.space.teacher.with_block(at, drawn(it.space, seed).blocks[at])
            it.supernet.activate(subnet)
            expected = it.run(it.supernet.model)
            with prefix.activated(subnet, "validation"):
                assert (len(blocks_of(it.supernet.model)) < subnet.depth) == (at > 0)
                assert torch.equal(it.run(it.supernet.model), expected)

    def test_nothing_is_silently_inert(self, model_type):
        it = made(model_type)
        it.supernet.activate(it.space.teacher)
        full = it.run(it.supernet.model)
        for variant in it.space.variants(1):
            if variant != it.space.teacher.blocks[1]:
                it.supernet.activate(it.space.teacher.with_block(1, variant))
                assert not torch.equal(it.run(it.supernet.model), full), variant

    def test_sorting_units_at_full_width_changes_nothing(self, model_type):
        """The library's sorted rows are the teacher's own, in an order that the following projection shares."""
        it = made(model_type)
        family, model = family_of(it.teacher), copy.deepcopy(it.teacher)
        for index, block in enumerate(blocks_of(model)):
            for paths, writer in (
                (dict.fromkeys((family.query, family.key, family.value)), family.attention_out),
                (dict.fromkeys(family.ffn_in), family.ffn_out),
            ):
                order = []
                for path in paths:
                    weight, bias = projection_weights(block, path)
                    rows = it.library.tensors[f"{index}.{path}.permuted"]
                    order = [int(torch.where((weight == row).all(dim=1))[0][0]) for row in rows]
                    assert sorted(order) == list(range(weight.shape[0]))
                    with torch.no_grad():
                        weight.copy_(rows)
                        if bias is not None:
                            bias.copy_(it.library.tensors[f"{index}.{path}.permuted_bias"])
                    if path == family.query:
                        order = order[: it.space.shape.heads * it.space.shape.head_dim]
                        permute_columns(block, writer, order)
                if paths.keys() == dict.fromkeys(family.ffn_in).keys():
                    permute_columns(block, writer, order[: it.space.shape.ffn])
        assert close(it.run(model), it.run(it.teacher))

    def test_blocks_of_calibrated_widths_are_nearer_to_the_teacher_than_random_ones(self, model_type):
        it = made(model_type)
        shape = it.space.shape
        grouped = shape.kv_heads < shape.heads
        heads, kv_heads = (2, 1) if grouped else (3, 3)
        narrow = replace(it.space.teacher.blocks[0], heads=heads, kv_heads=kv_heads, ffn=48)
        subnet = SubnetConfig((narrow,) * shape.num_blocks, shape.hidden_size)
        it.supernet.activate(subnet)
        teacher = it.run(it.teacher)
        apart = (it.run(it.supernet.model) - teacher).norm()
        other = tiny(model_type, seed=1, language_model=model_type in CAUSAL)
        assert apart < (it.run(other) - teacher).norm()


def counted_macs(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """MACs as torch itself counts them, product by product."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops() / 2


def permute_columns(block: nn.Module, path: str, order: list[int]) -> None:
    weight, _ = projection_weights(block, path)
    with torch.no_grad():
        weight.copy_(weight[:, order].clone())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    "kind",
    [
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoModelForMaskedLM,
        AutoModelForImageClassification,
    ],
    ids=lambda kind: kind.__name__,
)
def test_costs_of_every_head_are_counted_ones(model_type, kind):
    config = made(model_type).teacher.config
    if type(config) not in kind._model_mapping:
        return
    model = randomise(kind.from_config(config))
    shape = ModelShape.from_model(model)
    length = 10 if model_type == "vit" else 24
    space = SearchSpace.from_choices(shape, {})
    found = costs(shape, [space.teacher], Workload(sequence_length=length))
    assert found.parameters[0] == sum(p.numel() for p in model.parameters())
    assert found.macs[0] == counted_macs(model, example(model, length))


@pytest.mark.parametrize("model_type", CAUSAL)
@pytest.mark.parametrize("first", ["whole", "skipped", "no attention", "no ffn", "one query per group"])
def test_generation_with_a_cache_equals_generation_without(model_type, first):
    it = made(model_type)
    full = it.space.teacher.blocks[0]
    if first == "no attention" and different_windows(it.teacher):
        with pytest.raises(ValueError, match="all blocks must have attention where they attend to different windows"):
            it.supernet.activate(it.space.teacher.with_block(0, replace(full, heads=0, kv_heads=0)))
        return
    narrow = next(v for v in it.space.variants(0) if 0 < v.heads < full.heads and 0 < v.ffn < full.ffn)
    chosen = {
        "whole": full,
        "skipped": SKIPPED,
        "no attention": replace(full, heads=0, kv_heads=0),
        "no ffn": replace(full, ffn=0),
        "one query per group": replace(full, heads=full.kv_heads),
    }
    subnet = it.space.teacher.with_block(2, narrow).with_block(0, chosen[first])
    model = it.supernet.extract(subnet)
    prompt = tiny_batches(1, size=2, length=5, seed=3)[0]["input_ids"].clamp(min=1)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.inference_mode():
        cached = model.generate(prompt, **settings, use_cache=True)
        plain = model.generate(prompt, **settings, use_cache=False)
    assert torch.equal(cached, plain)
    assert cached.shape == (2, 17)


def test_every_model_type_is_tested_with_a_model_of_its_own() -> None:
    assert {made(model_type).teacher.config.model_type for model_type in MODEL_TYPES} == set(MODEL_TYPES)


def test_unknown_families_are_told_what_to_do() -> None:
    model = nn.Module()
    model.config = type("Config", (), {"model_type": "mamba"})()
    with pytest.raises(ValueError, match=r"one of bert, camembert, .*but got 'mamba'.*docs/how-to/add-a-family\.md"):
        family_of(model)
    assert (Path(__file__).parents[2] / "docs/how-to/add-a-family.md").is_file()
