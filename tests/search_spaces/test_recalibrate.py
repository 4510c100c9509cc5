"""Sequential compensation: what it leaves alone, and that it brings whole subnets nearer to their teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from search_spaces.calibrate import calibrate
from search_spaces.recalibrate import last_linear, recalibrate
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig
from search_spaces.supernet import Supernet
from tests.models import tiny_batches, tiny_bert, tiny_space

FULL = BlockConfig(4, 4, 64)
SUBNETS = {
    "narrow": SubnetConfig((BlockConfig(2, 2, 32), FULL, BlockConfig(3, 3, 32)), 32),
    "skipped": SubnetConfig((FULL, SKIPPED, BlockConfig(2, 2, 64)), 32),
    "factored": SubnetConfig((BlockConfig(2, 2, 32, rank_ffn_out=12), FULL, BlockConfig(3, 3, 64, rank_qkv=4)), 32),
}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return tiny_bert()


@pytest.fixture(scope="module")
def supernet(teacher: nn.Module) -> Supernet:
    space = tiny_space(teacher)
    return Supernet(copy.deepcopy(teacher), calibrate(teacher, tiny_batches(24), space), space)


@torch.inference_mode()
def distance(model: nn.Module, teacher: nn.Module) -> float:
    """Mean squared difference of last hidden states on fresh tokens."""
    total = 0.0
    for batch in tiny_batches(8, seed=5):
        mask = batch["attention_mask"].bool()
        own, other = (side(**batch).last_hidden_state[mask] for side in (model, teacher))
        total += float((own - other).square().mean())
    return total


@pytest.mark.parametrize("name", SUBNETS)
def test_a_subnet_comes_nearer_to_its_teacher(teacher, supernet, name):
    model = supernet.extract(SUBNETS[name])
    before = distance(model, teacher)
    seen = []
    recalibrate(model, teacher, SUBNETS[name].kept, tiny_batches(24), on_block=seen.append)
    assert distance(model, teacher) < 0.9 * before
    assert seen == list(range(1, SUBNETS[name].depth + 1))


def test_the_largest_subnet_stays_the_teacher_bit_for_bit(teacher, supernet):
    model = supernet.extract(supernet.space.teacher)
    recalibrate(model, teacher, range(3), tiny_batches())
    for (name, own), (_, other) in zip(model.named_parameters(), teacher.named_parameters(), strict=True):
        assert torch.equal(own, other), name


def test_only_what_writes_to_the_residual_stream_changes(teacher, supernet):
    subnet = SUBNETS["narrow"]
    model, before = supernet.extract(subnet), supernet.extract(subnet)
    recalibrate(model, teacher, subnet.kept, tiny_batches(24))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed
    assert all(".output.dense." in name for name in changed)


def test_the_same_batches_give_the_same_weights(teacher, supernet):
    models = [supernet.extract(SUBNETS["skipped"]) for _ in range(2)]
    for model in models:
        recalibrate(model, teacher, SUBNETS["skipped"].kept, tiny_batches(24))
    for own, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_part_of_a_factored_projection_that_writes_is_found():
    block = nn.ModuleDict(
        {"dense": nn.Linear(4, 3), "factored": nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), "other": nn.GELU()}
    )
    assert last_linear(block, "dense") is block["dense"]
    assert last_linear(block, "factored") is block["factored"][-1]
    assert last_linear(block, "other") is None
    assert last_linear(block, "absent") is None


@pytest.mark.parametrize(
    ("kept", "batches", "message"),
    [((0, 1), 4, "`kept` must name 3"), ((0, 2, 1), 4, "`kept` must name 3"), ((0, 1, 2), 1, "at least 2 batches")],
)
def test_mistakes_name_the_rule(teacher, supernet, kept, batches, message):
    with pytest.raises(ValueError, match=message):
        recalibrate(supernet.extract(SUBNETS["narrow"]), teacher, kept, tiny_batches(batches))
