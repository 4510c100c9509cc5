"""Narrower residual streams keep the supernet's promises in every family, together with widths, ranks and depth."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from transformers import AutoModelForSequenceClassification

from nas.distillation.losses import state_difference
from nas.distillation.projections import fit_projections, parts
from nas.tasks.deployed import hidden_outputs
from search_spaces.calibrate import calibrate, check_size, count_steps, library_gb
from search_spaces.checkpoint import load_subnet, save_subnet
from search_spaces.cost import cost
from search_spaces.fake_quantize import fake_quantized
from search_spaces.families import base_model, blocks_of, family_of
from search_spaces.modeling_subnet import Columns
from search_spaces.recalibrate import recalibrate
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.subnet import SKIPPED, SubnetConfig
from search_spaces.supernet import Supernet
from tests.contracts.test_families import (
    CAUSAL,
    MODEL_TYPES,
    SEEDS,
    Made,
    check_costs,
    check_deployed,
    close,
    different_windows,
    drawn,
)
from tests.models import randomise, tiny, tiny_batches, tiny_images

FAST = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# One type of each row, and what differs among the types of a row: windows, and biases of queries, keys and values.
TYPES = [t for t in MODEL_TYPES if t not in ("xlm-roberta", "camembert")]


@cache
def narrow(model_type: str) -> Made:
    """A teacher of which the stream, too, can be narrower."""
    teacher = tiny(model_type, language_model=model_type in CAUSAL)
    shape = ModelShape.from_model(teacher)
    grouped = shape.kv_heads < shape.heads
    choices = {
        "hidden_size": [16, 32] if shape.head_dim > 8 else [16, 24, 32],
        "skip": [False, True],
        "no_attention": [False] if different_windows(teacher) else [False, True],
        "no_ffn": [False, True],
        "heads": [2, 4] if grouped else [3, 4],
        "ffn": [48, 64],
        "rank_qkv": [0, 4, 12],
        "rank_attention_out": [0, 8],
        "rank_ffn_in": [0, 12],
        "rank_ffn_out": [0, 12],
    }
    space = SearchSpace.from_choices(shape, choices)
    library = calibrate(teacher, batches_of(model_type), space)
    return Made(teacher, library, Supernet(copy.deepcopy(teacher), library, space), batches_of(model_type, 1, 9)[0])


def batches_of(model_type: str, count: int = 4, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    return tiny_images(count, seed=seed) if model_type == "vit" else tiny_batches(count, seed=seed)


def whole(it: Made, hidden_size: int) -> SubnetConfig:
    """The teacher with another stream."""
    return replace(it.space.teacher, hidden_size=hidden_size)


@pytest.mark.parametrize("model_type", TYPES)
class TestHiddenSize:
    """One class for the table, one parameter for each row."""

    def test_full_width_is_the_teacher_bit_for_bit_after_a_narrower_one(self, model_type):
        it = narrow(model_type)
        expected = it.run(it.teacher)
        assert it.space.largest == it.space.teacher
        it.supernet.activate(whole(it, 16))
        assert not torch.equal(it.run(it.supernet.model), expected)
        it.supernet.activate(it.space.teacher)
        assert torch.equal(it.run(it.supernet.model), expected)
        largest = it.supernet.extract(it.space.teacher)
        assert torch.equal(it.run(largest), expected)
        assert {n: type(m) for n, m in largest.named_modules()} == {n: type(m) for n, m in it.teacher.named_modules()}

    @FAST
    @given(seed=SEEDS)
    def test_activated_equals_extracted_equals_loaded(self, model_type, tmp_path, seed):
        it = narrow(model_type)
        subnet = replace(drawn(it.space, seed), hidden_size=16)
        check_deployed(it, subnet, tmp_path / "model", {"Absent", "Constant", "Columns"})

    @FAST
    @given(seed=SEEDS)
    def test_costs_are_counted_ones(self, model_type, seed):
        it = narrow(model_type)
        check_costs(it, drawn(it.space, seed), 10 if model_type == "vit" else 24)

    @FAST
    @given(seed=SEEDS)
    def test_canonical_form_is_idempotent_and_round_trips(self, model_type, seed):
        space = narrow(model_type).space
        subnet = drawn(space, seed)
        assert space.canonical(subnet) == subnet
        assert space.decode(space.encode([subnet])) == [subnet]
        assert SubnetConfig.from_json(subnet.to_json()) == subnet
        assert hash(SubnetConfig.from_json(subnet.to_json())) == hash(subnet)

    def test_every_width_changes_the_output_and_wider_streams_are_nearer_to_the_teacher(self, model_type):
        it = narrow(model_type)
        teacher, apart = it.run(it.teacher), []
        for size in it.space.levels("hidden_size", 0):
            it.supernet.activate(whole(it, size))
            apart.append(float((it.run(it.supernet.model) - teacher).norm()))
        assert apart == sorted(apart, reverse=True)
        assert apart[-1] == 0.0 < apart[-2]
        other = tiny(model_type, seed=1, language_model=model_type in CAUSAL)
        assert apart[0] < (it.run(other) - teacher).norm()

    def test_nothing_is_silently_inert_beside_a_narrower_stream(self, model_type):
        it = narrow(model_type)
        it.supernet.activate(whole(it, 16))
        full = it.run(it.supernet.model)
        # The second and the third block differ in whether another one follows.
        for block in (1, 2):
            seen = {it.space.canonical(whole(it, 16)).to_json()}
            for variant in it.space.variants(block)[::7]:
                subnet = it.space.canonical(whole(it, 16).with_block(block, variant))
                if subnet.to_json() not in seen:
                    seen.add(subnet.to_json())
                    it.supernet.activate(subnet)
                    assert not torch.equal(it.run(it.supernet.model), full), variant

    def test_quantised_blocks_compute_in_the_supernet_as_in_the_extracted_model(self, model_type):
        it = narrow(model_type)
        subnet = replace(drawn(it.space, 3), hidden_size=16).on_device("int8")
        it.supernet.activate(subnet)
        model = it.supernet.extract(subnet)
        with fake_quantized(model, ["int8"] * subnet.depth):
            assert close(it.run(model), it.run(it.supernet.model))
        assert not close(it.run(model), it.run(it.supernet.model), 1e-4)

    def test_refitting_as_a_whole_brings_it_nearer_to_the_teacher(self, model_type):
        it = narrow(model_type)
        # Without its last block, the stream is read in the end where another block read it.
        subnet = whole(it, 16).with_block(2, SKIPPED)
        model, batches = it.supernet.extract(subnet), batches_of(model_type, 24)
        before = distance(model, it.teacher, batches[:8])
        recalibrate(model, it.teacher, subnet.kept, batches, coordinates=it.supernet.coordinates(subnet))
        assert distance(model, it.teacher, batches[:8]) < 0.95 * before

    def test_states_are_compared_with_its_teachers_through_projections(self, model_type):
        it, names = narrow(model_type), ("hidden", "hidden_states")
        student = it.supernet.extract(whole(it, 16))
        compared = [
            (states_of(student, batch, parts(names)), states_of(it.teacher, batch, names), batch.get("attention_mask"))
            for batch in batches_of(model_type, 8)
        ]
        assert compared[0][0]["inner_states"].shape[::3] == (2, 16)
        found = fit_projections(compared, names, None)(compared[0][0])
        for name in names:
            target = compared[0][1][name]
            assert found[name].shape == target.shape
            assert state_difference(found[name], target, compared[0][2]) < 0.9

    def test_maps_are_better_than_leaving_coordinates_out(self, model_type):
        """What the first block reads, given back by the map, against the kept coordinates alone."""
        it = narrow(model_type)
        tensors = it.library.tensors
        kept = tensors["residual.order"][:16].sort().values
        own, full = (read_first(it, size) for size in (16, 32))
        given_back = own @ tensors["residual.16.0.qkv.map"].T + tensors.get("residual.16.0.qkv.shift", 0.0)
        alone = torch.zeros_like(full)
        alone[..., kept] = own
        assert (given_back - full).norm() < (alone - full).norm()


@torch.no_grad()
def states_of(model: nn.Module, batch: dict[str, torch.Tensor], names: Collection[str]) -> dict[str, torch.Tensor]:
    options = {"use_cache": False} if family_of(model).causal else {}
    found = base_model(model)(**batch, **options, output_hidden_states=True)
    return hidden_outputs(found, found.hidden_states[-1], names)


@torch.inference_mode()
def distance(model: nn.Module, teacher: nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    total = 0.0
    for batch in batches:
        own, other = (side(**batch)[0] for side in (model, teacher))
        mask = batch.get("attention_mask")
        difference = own - other if mask is None else (own - other)[mask.bool()]
        total += float(difference.square().mean())
    return total


def read_first(it: Made, size: int) -> torch.Tensor:
    """What the first block's query projection reads in a model with a stream of this width."""
    seen = []
    family, model = family_of(it.teacher), it.supernet.extract(whole(it, size))
    module = blocks_of(model)[0].get_submodule(family.query)
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    it.run(model)
    return seen[0]


@pytest.mark.parametrize("model_type", CAUSAL)
@pytest.mark.parametrize("first", ["whole", "skipped"])
def test_generation_with_a_cache_equals_generation_without(model_type, first):
    it = narrow(model_type)
    subnet = whole(it, 16) if first == "whole" else whole(it, 16).with_block(0, SKIPPED)
    model = it.supernet.extract(subnet)
    prompt = tiny_batches(1, size=2, length=5, seed=3)[0]["input_ids"].clamp(min=1)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.inference_mode():
        cached = model.generate(prompt, **options, use_cache=True)
        assert torch.equal(cached, model.generate(prompt, **options, use_cache=False))
    assert cached.shape == (2, 17)


@pytest.mark.parametrize("kind", ["tied", "classifier"])
def test_heads_keep_their_interface(kind, tmp_path):
    """A head that is tied to the embeddings stays so; a classifier of pooled states sees the teacher's width."""
    if kind == "tied":
        model = tiny("llama", language_model=True, tie_word_embeddings=True)
    else:
        model = randomise(AutoModelForSequenceClassification.from_config(tiny("bert").config))
    space = SearchSpace.from_choices(ModelShape.from_model(model), {"hidden_size": [16, 32]})
    supernet = Supernet(copy.deepcopy(model), calibrate(model, tiny_batches(), space), space)
    subnet, batch = replace(space.teacher, hidden_size=16), tiny_batches(1, seed=9)[0]
    small = supernet.extract(subnet)
    assert cost(space.shape, subnet).parameters == sum(p.numel() for p in small.parameters())
    if kind == "tied":
        assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
        assert isinstance(small.get_input_embeddings(), Columns)
    save_subnet(small, subnet, space.shape, tmp_path / "m")
    with torch.inference_mode():
        assert small(**batch).logits.shape == model(**batch).logits.shape
        assert torch.equal(load_subnet(tmp_path / "m")(**batch).logits, small(**batch).logits)


def test_kept_coordinates_are_nested_and_the_library_is_as_large_as_told():
    it = narrow("bert")
    small, larger = (set(it.supernet.coordinates(whole(it, size)).tolist()) for size in (16, 24))
    assert small < larger
    assert (len(small), len(larger)) == (16, 24)
    assert it.supernet.coordinates(it.space.teacher) is None
    without = SearchSpace(it.space.shape, it.space.without("hidden_size").dimensions)
    maps = sum(t.numel() for n, t in it.library.tensors.items() if n.startswith("residual.") and n.endswith(".map"))
    assert library_gb(it.space) - library_gb(without) == pytest.approx(4 * maps / 1e9)
    with pytest.raises(ValueError, match="max_gb"):
        check_size(it.space, library_gb(without))
    assert count_steps(it.space, 5) == 5 + 3 * 3


def test_refitting_needs_the_coordinates_of_a_narrower_stream():
    it = narrow("bert")
    with pytest.raises(ValueError, match=r"`coordinates` must name the 16 of 32 .*; got none"):
        recalibrate(it.supernet.extract(whole(it, 16)), it.teacher, range(3), tiny_batches())
    coordinates = it.supernet.coordinates(whole(it, 24))
    with pytest.raises(ValueError, match=r"`coordinates` must name the 32 of 32 .*; got 24"):
        recalibrate(copy.deepcopy(it.teacher), it.teacher, range(3), tiny_batches(), coordinates=coordinates)


def test_a_library_without_the_width_is_refused():
    it = narrow("bert")
    with pytest.raises(ValueError, match=r"has no 'residual\.8\."):
        it.supernet.activate(whole(it, 8))
    plain = it.space.without("hidden_size")
    supernet = Supernet(copy.deepcopy(it.teacher), it.library, plain)
    with pytest.raises(ValueError, match="`hidden_size` must be the teacher's 32 in this space, but got 16"):
        supernet.activate(whole(it, 16))


def test_a_library_is_trained_through_a_narrower_stream():
    """Gradients reach maps, norms and projections, and a step changes what the stream computes."""
    it = narrow("bert")
    tensors = {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in it.library.tensors.items()}
    supernet = Supernet(copy.deepcopy(it.teacher), replace(it.library, tensors=tensors), it.space)
    supernet.activate(whole(it, 16))
    before = supernet.model(**it.inputs)[0]
    before.square().mean().backward()
    touched = {name for name, tensor in tensors.items() if tensor.grad is not None}
    assert {"residual.16.output.map", "residual.16.1.ffn_in.map", "residual.16.embeddings.LayerNorm.bias"} <= touched
    with torch.no_grad():
        for name in touched:
            tensors[name] -= 0.01 * tensors[name].grad
    supernet.activate(whole(it, 16))
    assert supernet.model(**it.inputs)[0].square().mean() < before.square().mean()


def test_samples_of_a_space_have_all_widths():
    it = narrow("bert")
    sizes = [subnet.hidden_size for subnet in it.space.sample(np.random.default_rng(0), 40)]
    assert set(sizes) == {16, 24, 32}
