"""The supernet's promises, over random subnets: exact at full size, equal when activated, extracted and reloaded."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from search_spaces.calibrate import calibrate
from search_spaces.checkpoint import load_subnet, save_subnet
from search_spaces.cost import costs
from search_spaces.elastic import LinearWeights
from search_spaces.importance import Importance
from search_spaces.library import Library, model_hash
from search_spaces.space import SearchSpace
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig
from search_spaces.supernet import Supernet
from tests.models import tiny_batches, tiny_bert, tiny_space

BATCH = tiny_batches(count=1, seed=9)[0]
FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return tiny_bert()


@pytest.fixture(scope="module")
def space(teacher: nn.Module) -> SearchSpace:
    return tiny_space(teacher)


@pytest.fixture(scope="module")
def library(teacher: nn.Module, space: SearchSpace) -> Library:
    return calibrate(teacher, tiny_batches(), space)


@pytest.fixture(scope="module")
def supernet(teacher: nn.Module, library: Library, space: SearchSpace) -> Supernet:
    return Supernet(copy.deepcopy(teacher), library, space)


@torch.inference_mode()
def run(model: nn.Module) -> torch.Tensor:
    return model(**BATCH).last_hidden_state


def subnets(space: SearchSpace) -> st.SearchStrategy[SubnetConfig]:
    return st.integers(0, 2**31).map(lambda seed: space.sample(np.random.default_rng(seed), 1)[0])


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def test_largest_subnet_is_the_teacher_bit_for_bit(supernet, teacher, space):
    assert space.largest == space.teacher
    supernet.activate(space.smallest)
    assert not torch.equal(run(supernet.model), run(teacher))
    supernet.activate(space.largest)
    assert torch.equal(run(supernet.model), run(teacher))
    assert torch.equal(run(supernet.extract(space.largest)), run(teacher))


def test_permuting_units_at_full_width_changes_nothing(teacher, library, space):
    model = copy.deepcopy(teacher)
    for index, block in enumerate(model.encoder.layer):
        attention, shape = block.attention, space.shape
        order = [library.tensors[f"{index}.{p}.permuted"] for p in ("attention.self.value", "intermediate.dense")]
        for full, writer, permuted in (
            (attention.self.value, attention.output.dense, order[0]),
            (block.intermediate.dense, block.output.dense, order[1]),
        ):
            rows = [int(torch.where((full.weight == row).all(dim=1))[0][0]) for row in permuted]
            assert sorted(rows) == list(range(full.weight.shape[0]))
            with torch.no_grad():
                writer.weight.copy_(writer.weight[:, rows].clone())
        assert shape.heads == 4
        for path in ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"):
            with torch.no_grad():
                block.get_submodule(path).weight.copy_(library.tensors[f"{index}.{path}.permuted"])
                block.get_submodule(path).bias.copy_(library.tensors[f"{index}.{path}.permuted_bias"])
    assert close(run(model), run(teacher), 1e-5)


@FAST
@given(data=st.data())
def test_activated_equals_extracted_equals_loaded(data, supernet, space, tmp_path):
    subnet = data.draw(subnets(space))
    supernet.activate(subnet)
    active = run(supernet.model)
    model = supernet.extract(subnet)
    assert not [m for m in model.modules() if type(m).__name__ == "ElasticLinear"]
    assert close(run(model), active, 1e-5)
    save_subnet(model, subnet, space.shape, tmp_path / "model")
    assert torch.equal(run(load_subnet(tmp_path / "model")), run(model))


@FAST
@given(data=st.data())
def test_costs_are_those_of_the_extracted_model(data, supernet, space):
    subnet = data.draw(subnets(space))
    model = supernet.extract(subnet)
    cost = costs(space.shape, [subnet])
    assert cost.parameters[0] == sum(p.numel() for p in model.parameters())
    assert cost.block_parameters[0] == sum(p.numel() for p in model.encoder.layer.parameters())
    projections = [m for n, m in model.encoder.named_modules() if isinstance(m, nn.Linear)]
    heads = sum(subnet.blocks[i].heads for i in subnet.kept)
    macs = 128 * sum(m.weight.numel() for m in projections) + 2 * heads * space.shape.head_dim * 128 * 128
    assert cost.macs[0] == macs + model.pooler.dense.weight.numel()


@FAST
@given(data=st.data())
def test_activation_is_total(data, supernet, space):
    first, second = data.draw(subnets(space)), data.draw(subnets(space))
    supernet.activate(second)
    alone = run(supernet.model)
    supernet.activate(first)
    supernet.activate(second)
    assert torch.equal(run(supernet.model), alone)


def test_every_choice_changes_the_output(supernet, space):
    supernet.activate(space.teacher)
    full = run(supernet.model)
    for variant in space.variants(1):
        if variant != space.teacher.blocks[1]:
            supernet.activate(space.teacher.with_block(1, variant))
            assert not torch.equal(run(supernet.model), full), variant


def test_extracting_leaves_the_active_subnet_and_shares_nothing(supernet, space):
    supernet.activate(space.smallest)
    before = run(supernet.model)
    model = supernet.extract(space.teacher)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(run(supernet.model), before)


def test_linear_weights_are_those_of_the_extracted_model(supernet, space):
    subnet = space.teacher.with_block(0, SKIPPED).with_block(1, replace(space.teacher.blocks[1], rank_qkv=4))
    weights = supernet.linear_weights(subnet)
    assert not any(name.startswith("encoder.layer.0.") for name in weights)
    query = weights["encoder.layer.1.attention.self.query"]
    assert isinstance(query, LinearWeights)
    assert query.down is not None
    assert torch.equal(query.down, supernet.extract(subnet).encoder.layer[0].attention.self.query[0].weight)


def test_library_is_saved_and_loaded_bit_for_bit(library, tmp_path):
    library.save(tmp_path / "library.safetensors")
    loaded = Library.load(tmp_path / "library.safetensors")
    assert loaded.metadata == library.metadata
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in library.tensors.items())
    (tmp_path / "library.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ValueError, match="cannot be read"):
        Library.load(tmp_path / "library.safetensors")


def test_model_hash_sees_one_changed_weight(teacher):
    other = copy.deepcopy(teacher)
    assert model_hash(other) == model_hash(teacher)
    with torch.no_grad():
        other.encoder.layer[0].output.dense.bias[0] += 1
    assert model_hash(other) != model_hash(teacher)


@pytest.mark.parametrize("importance", get_args(Importance))
def test_compensation_brings_the_block_closer_to_the_teacher(teacher, space, importance):
    """On the rows that it was fitted on, the refitted projection cannot be worse than the sliced one."""
    library = calibrate(teacher, tiny_batches(), space, importance=importance)
    supernet = Supernet(copy.deepcopy(teacher), library, space)
    block = BlockConfig(heads=2, kv_heads=2, ffn=64)
    subnet = space.teacher.with_block(0, block)
    seen: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda _m, _a, out: seen.__setitem__(name, out)

    supernet.activate(subnet)
    writer = supernet.model.encoder.layer[0].attention.output.dense
    handle = writer.register_forward_hook(keep("compensated"))
    run(supernet.model)
    kept = writer.active.weight.shape[1]
    values = library.tensors["0.attention.self.value.permuted"][:kept]
    full = teacher.encoder.layer[0].attention.self.value.weight
    columns = [int(torch.where((full == row).all(dim=1))[0][0]) for row in values]
    dense = teacher.encoder.layer[0].attention.output.dense
    writer.activate(LinearWeights(dense.weight[:, columns], dense.bias))
    handle.remove()
    handle = writer.register_forward_hook(keep("sliced"))
    run(supernet.model)
    handle.remove()
    handle = teacher.encoder.layer[0].attention.output.dense.register_forward_hook(keep("teacher"))
    run(teacher)
    handle.remove()
    mask = BATCH["attention_mask"].bool()

    def error(name: str) -> float:
        return float((seen[name] - seen["teacher"])[mask].square().sum())

    assert error("compensated") < error("sliced")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("subnet"), "'subnet' is missing"),
        (lambda d: d.update(surprise=1), "unknown key 'surprise'"),
        (lambda d: d.update(version=99), "version 1"),
        (lambda d: d.update(architecture="os.system"), "model class of transformers"),
        (lambda d: d["subnet"]["blocks"][0].update(heads=99, kv_heads=99), "at most the teacher's 4"),
        (lambda d: d["subnet"]["blocks"][0].update(colour=1), "unknown key 'colour'"),
        (lambda d: d["subnet"]["blocks"].pop(), "blocks"),
        (lambda d: d["subnet"]["blocks"].append({"heads": 0, "kv_heads": 0, "ffn": 0}), "`subnet.blocks` must be"),
        (lambda d: d.update(architecture="PreTrainedModel"), "must be a model class of transformers"),
        (lambda d: d["shape"].pop("ffn"), "ffn"),
        (lambda d: d["shape"].update(heads="4"), r"`shape\.heads` must be a whole number > 0, but got '4'"),
        (lambda d: d["shape"].update(kv_heads=0), r"`shape\.kv_heads` must be a whole number > 0"),
        (lambda d: d["shape"].update(gated=1), r"`shape\.gated` must be true or false"),
        (lambda d: d["subnet"].update(hidden_size=True), "`hidden_size` must be a whole number"),
        (lambda d: d.update(architecture="GPT2Model"), "GPT2Model cannot be made of its config.json"),
    ],
)
def test_a_damaged_description_names_file_and_rule(supernet, space, tmp_path, change, message):
    save_subnet(supernet.extract(space.teacher), space.teacher, space.shape, tmp_path / "m")
    path = tmp_path / "m" / "subnet.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=message):
        load_subnet(tmp_path / "m")


def test_weights_that_are_no_numbers_are_named(supernet, space, tmp_path):
    model = supernet.extract(space.teacher)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    save_subnet(model, space.teacher, space.shape, tmp_path / "m")
    with pytest.raises(ValueError, match=r"model.safetensors: tensor 'encoder.layer.0.output.dense.weight' .* NaN"):
        load_subnet(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "a"}, "config.json cannot be read"),
        ({"num_attention_heads": 0}, "cannot be made of its config"),
    ],
)
def test_a_damaged_configuration_names_the_folder(supernet, space, tmp_path, change, message):
    save_subnet(supernet.extract(space.teacher), space.teacher, space.shape, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_subnet(tmp_path / "m")


def test_a_description_from_before_narrower_streams_is_read(supernet, space, tmp_path):
    save_subnet(supernet.extract(space.teacher), space.teacher, space.shape, tmp_path / "m")
    path = tmp_path / "m" / "subnet.json"
    description = json.loads(path.read_text())
    for name in ("stream_parameters", "stem_macs_per_sequence"):
        del description["shape"][name]
    path.write_text(json.dumps(description))
    assert torch.equal(run(load_subnet(tmp_path / "m")), run(supernet.extract(space.teacher)))


def test_damaged_weights_name_the_file(supernet, space, tmp_path):
    save_subnet(supernet.extract(space.teacher), space.teacher, space.shape, tmp_path / "m")
    weights: Path = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        load_subnet(tmp_path / "m")
    with pytest.raises(ValueError, match=r"subnet\.json"):
        load_subnet(tmp_path)


def test_weights_of_another_kind_of_number_are_refused(supernet, space, tmp_path):
    save_subnet(supernet.extract(space.teacher), space.teacher, space.shape, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    save_file({name: tensor.to(torch.int32) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"must be of torch\.float32, but got torch\.int32"):
        load_subnet(tmp_path / "m")


def test_weights_of_another_subnet_are_refused(supernet, space, tmp_path):
    save_subnet(supernet.extract(space.teacher), space.teacher, space.shape, tmp_path / "a")
    save_subnet(supernet.extract(space.smallest), space.teacher, space.shape, tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="must be"):
        load_subnet(tmp_path / "a")


def test_calibration_refuses_what_it_cannot_use(teacher, space):
    with pytest.raises(ValueError, match="at least 2 tokens"):
        calibrate(teacher, [], space)
    with pytest.raises(ValueError, match="max_gb"):
        calibrate(teacher, tiny_batches(), space, max_gb=1e-6)
    broken = copy.deepcopy(teacher)
    with torch.no_grad():
        broken.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        calibrate(broken, tiny_batches(), space)


def test_classifier_is_exact_too(tmp_path):
    model = tiny_bert(labels=3)
    space = tiny_space(model)
    supernet = Supernet(copy.deepcopy(model), calibrate(model, tiny_batches(), space), space)
    with torch.inference_mode():
        supernet.activate(space.teacher)
        assert torch.equal(supernet.model(**BATCH).logits, model(**BATCH).logits)
        small = supernet.extract(space.smallest)
        save_subnet(small, space.smallest, space.shape, tmp_path / "m")
        assert torch.equal(load_subnet(tmp_path / "m")(**BATCH).logits, small(**BATCH).logits)
