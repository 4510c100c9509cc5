"""The space's promises: static, canonical, the same in objects and in arrays; and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.canonical import canonical
from search_spaces.cost import Workload, cost, costs
from search_spaces.families import family_of
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig, SubnetTable
from tests.models import tiny_bert, tiny_space

SHAPE = ModelShape.from_model(tiny_bert())
SPACE = tiny_space(tiny_bert())
GROUPED = dataclasses.replace(SHAPE, kv_heads=2)
LEVELS = st.tuples(*(st.integers(0, len(d.choices) - 1) for d in SPACE.dimensions))


class Recorded:
    """A trial that answers from a list and remembers what it was asked."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        self.answers = iter(levels)
        self.asked: list[tuple[str, int, int]] = []

    def suggest_int(self, name: str, low: int, high: int) -> int:
        self.asked.append((name, low, high))
        return next(self.answers)


@given(first=LEVELS, second=LEVELS)
@settings(max_examples=50)
def test_every_trial_is_asked_the_same_questions(first, second):
    a, b = Recorded(first), Recorded(second)
    SPACE.suggest(a)
    SPACE.suggest(b)
    assert a.asked == b.asked
    assert len({name for name, _, _ in a.asked}) == len(SPACE.dimensions)


@given(levels=LEVELS)
@settings(max_examples=200)
def test_canonical_form_is_idempotent_and_round_trips(levels):
    subnet = SPACE.suggest(Recorded(levels))
    assert SPACE.canonical(subnet) == subnet
    assert SubnetConfig.from_json(subnet.to_json()) == subnet
    assert hash(SubnetConfig.from_json(subnet.to_json())) == hash(subnet)
    encoded = SPACE.encode([subnet])
    assert SPACE.decode(encoded) == [subnet]
    assert SPACE.suggest(Recorded(tuple(SPACE.parameters(subnet).values()))) == subnet
    assert SPACE.contains(subnet)


@given(rows=st.lists(LEVELS, min_size=1, max_size=8))
@settings(max_examples=100)
def test_tables_hold_what_the_objects_hold(rows):
    levels = np.array(rows)
    fast, slow = SPACE.table(levels), SubnetTable.from_subnets(SPACE.decode(levels))
    for field in dataclasses.fields(SubnetTable):
        assert np.array_equal(getattr(fast, field.name), getattr(slow, field.name)), field.name
    for one, subnet in zip(costs(SHAPE, fast).macs, SPACE.decode(levels), strict=True):
        assert one == cost(SHAPE, subnet).macs


def test_a_rank_at_break_even_is_dense_and_a_skipped_block_is_inert():
    block = BlockConfig(heads=4, kv_heads=4, ffn=64, rank_qkv=16)
    assert canonical(SHAPE, SubnetConfig((block,), 32)).blocks[0].rank_qkv == 0
    assert canonical(SHAPE, SubnetConfig((dataclasses.replace(block, rank_qkv=15),), 32)).blocks[0].rank_qkv == 15
    gone = BlockConfig(heads=0, kv_heads=0, ffn=0, rank_ffn_in=7, precision="int8")
    assert canonical(SHAPE, SubnetConfig((gone,), 32)).blocks[0] == SKIPPED


def test_as_many_blocks_as_promised_are_left():
    space = SearchSpace.from_choices(SHAPE, {"skip": [True, False]}, min_blocks=2)
    assert space.smallest.depth == 2
    assert {subnet.depth for subnet in space.sample(np.random.default_rng(0), 50)} == {2, 3}


def test_fractions_are_rounded_and_whole_groups_kept():
    space = SearchSpace.from_choices(SHAPE, {"ffn": [0.3, 0.55, 1.0]}, round_to={"ffn": 16})
    assert space.levels("ffn", 0) == (16, 32, 64)
    grouped = SearchSpace.from_choices(GROUPED, {"heads": [0.3, 1.0]})
    assert grouped.levels("heads", 0) == (2, 4)
    assert grouped.smallest.blocks[0].kv_heads == 1
    with pytest.raises(ValueError, match="multiple of 2"):
        SearchSpace.from_choices(GROUPED, {"heads": [3, 4]})


def test_one_choice_for_all_blocks_and_overrides():
    space = SearchSpace.from_choices(
        SHAPE, {"heads": [2, 4], "ffn": [32, 64]}, per_block=["ffn"], overrides={2: {"ffn": [64]}}
    )
    assert [d.parameter for d in space.dimensions] == ["heads", "block0.ffn", "block1.ffn", "block2.ffn"]
    for subnet in space.sample(np.random.default_rng(0), 20):
        assert len({block.heads for block in subnet.blocks}) == 1
        assert subnet.blocks[2].ffn == 64


def test_variants_are_the_distinct_choices_of_one_block():
    variants = SPACE.variants(0)
    assert SKIPPED in variants
    assert len(set(variants)) == len(variants)
    assert SPACE.teacher.blocks[0] in variants
    assert len(SPACE.uniform()) == 12


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"heads": [2, 99]}, "between 1 and the model's heads 4, but got 99"),
        ({"ffn": [0]}, "between 1 and the model's ffn 64, but got 0"),
        ({"ffn": [1.5]}, r"fraction for `choices.ffn` must be in \(0, 1\]"),
        ({"rank_qkv": [33]}, "hidden size 32, but got 33"),
        ({"colour": [1]}, "unknown dimension 'colour'"),
        ({"skip": [1]}, "true and false"),
        ({"precision": ["int3"]}, "must be one of fp32"),
        ({"heads": []}, "at least one choice"),
        ({"heads": ["many"]}, "takes numbers"),
        ({"hidden_size": [0, 32]}, "`choices.hidden_size` must be between 1 and the model's hidden size 32, but got 0"),
        ({"hidden_size": [40]}, "between 1 and the model's hidden size 32, but got 40"),
        ({"hidden_size": [12]}, r"`choices.hidden_size` must be a multiple of 8 \(whole heads\), but got 12"),
    ],
)
def test_choices_that_do_not_fit_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.from_choices(SHAPE, choices)


def test_hidden_sizes_are_one_for_the_model():
    space = SearchSpace.from_choices(
        SHAPE, {"hidden_size": [0.55, 0.8, 1.0], "heads": [2, 4]}, round_to={"hidden_size": 8}
    )
    assert space.levels("hidden_size", 2) == (16, 24, 32)
    assert space.narrower == (16, 24)
    assert [d.parameter for d in space.dimensions if d.name == "hidden_size"] == ["hidden_size"]
    assert space.teacher == space.largest
    assert SearchSpace.from_choices(SHAPE, {"hidden_size": 24}).largest.hidden_size == 24
    assert SPACE.narrower == ()
    for misplaced in ({"per_block": ["heads", "hidden_size"]}, {"overrides": {1: {"hidden_size": [16]}}}):
        with pytest.raises(ValueError, match="`hidden_size` is one for the whole model, but is given per block"):
            SearchSpace.from_choices(SHAPE, {"hidden_size": [16, 32]}, **misplaced)


def test_a_rank_may_save_something_with_the_full_stream_alone():
    block = BlockConfig(heads=4, kv_heads=4, ffn=64, rank_qkv=12)
    assert canonical(SHAPE, SubnetConfig((block,), 32)).blocks[0].rank_qkv == 12
    assert canonical(SHAPE, SubnetConfig((block,), 16)).blocks[0].rank_qkv == 0


def test_a_shared_rank_that_saves_something_in_some_blocks_alone_round_trips():
    choices = {"heads": [2, 4], "rank_qkv": [0, 12], "hidden_size": [16, 32]}
    space = SearchSpace.from_choices(SHAPE, choices, per_block=["heads"])
    mixed = 0
    for subnet in space.sample(np.random.default_rng(0), 60):
        assert space.decode(space.encode([subnet])) == [subnet]
        mixed += len({block.rank_qkv for block in subnet.blocks}) == 2
    assert mixed


def test_hidden_sizes_below_the_model_s_need_a_family_that_has_them_and_no_stock_class():
    with pytest.raises(ValueError, match=r"must be the model's 32 in the family other.*but got 16"):
        SearchSpace.from_choices(dataclasses.replace(SHAPE, family="other"), {"hidden_size": [16, 32]})
    space = SearchSpace.from_choices(SHAPE, {"hidden_size": [16, 32]}, homogeneous=True, per_block=[])
    assert space.narrower == ()
    with pytest.raises(ValueError, match="`homogeneous` leaves 'hidden_size' no choice of 16"):
        SearchSpace.from_choices(SHAPE, {"hidden_size": [16]}, homogeneous=True, per_block=[])


def test_what_only_narrower_streams_cost_tells_no_models_apart():
    """Spaces, profiles and subnets that were stored before are still known by the same names."""
    assert SHAPE.stream_parameters > 0
    older = dataclasses.replace(SHAPE, stream_parameters=0)
    assert older == SHAPE
    assert SearchSpace.from_choices(older, {}).fingerprint == SearchSpace.from_choices(SHAPE, {}).fingerprint


def test_other_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`min_blocks` must be between 1 and 3"):
        SearchSpace.from_choices(SHAPE, {}, min_blocks=4)
    with pytest.raises(ValueError, match=r"`overrides\.7` must be of a block from 0 to"):
        SearchSpace.from_choices(SHAPE, {}, overrides={7: {"ffn": [64]}})
    with pytest.raises(ValueError, match=r"`overrides\.1\.heads` must be between 1 and the model's heads"):
        SearchSpace.from_choices(SHAPE, {}, overrides={1: {"heads": [99]}})
    for name, multiple in (("ffn", 9999), ("hidden_size", SHAPE.head_dim + 1)):
        with pytest.raises(ValueError, match=rf"`round_to\.{name}` must be"):
            SearchSpace.from_choices(SHAPE, {name: [0.5]}, round_to={name: multiple})
    with pytest.raises(ValueError, match="not in this search space"):
        SearchSpace.from_choices(SHAPE, {"ffn": [32, 64]}).encode([SPACE.smallest])
    with pytest.raises(ValueError, match="must be one of bert"):
        family_of(object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choices": 5}, "`choices` must be a mapping"),
        ({"per_block": "heads"}, "`per_block` must be a list"),
        ({"per_block": ["headz"]}, "unknown dimension 'headz'"),
        ({"overrides": {"a": {"ffn": [64]}}}, "`overrides` must name blocks by their numbers, but got 'a'"),
        ({"overrides": {0: 5}}, r"`overrides\.0` must be a mapping"),
        ({"round_to": {"fnn": 16}}, "unknown dimension 'fnn'"),
        ({"round_to": {"ffn": 0}}, r"`round_to\.ffn` must be a whole number >= 1, but got 0"),
        ({"round_to": {"ffn": 1.5}}, r"`round_to\.ffn` must be a whole number >= 1"),
        ({"round_to": {"ffn": "a"}}, r"`round_to\.ffn` must be a whole number >= 1"),
        ({"min_blocks": "a"}, "`min_blocks` must be a whole number >= 1, but got 'a'"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.from_choices(SHAPE, **({"choices": {"ffn": [0.5, 1.0]}} | settings))


@pytest.mark.parametrize(
    "data",
    [
        {"heads": 3, "kv_heads": 2, "ffn": 1},
        {"heads": -1, "kv_heads": -1, "ffn": 1},
        {"heads": 1.5, "kv_heads": 1, "ffn": 1},
        {"heads": True, "kv_heads": 1, "ffn": 1},
        {"heads": 1, "kv_heads": 1, "ffn": 1, "precision": "int3"},
    ],
)
def test_blocks_that_break_a_rule_are_refused(data):
    with pytest.raises(ValueError, match="must be"):
        BlockConfig(**data)


@given(text=st.text(max_size=40) | st.sampled_from(['{"blocks": 1, "hidden_size": 2}', "[]", "{}", '{"blocks": []}']))
def test_garbage_is_never_a_subnet(text):
    with pytest.raises(ValueError, match=r"subnet|blocks"):
        SubnetConfig.from_json(text)


def test_workloads_are_checked():
    with pytest.raises(ValueError, match="`batch_size` must be a whole number >= 1"):
        Workload(batch_size=0)
    with pytest.raises(ValueError, match="`phase` must be one of encode"):
        Workload(phase="dream")  # type: ignore[arg-type]
    assert Workload(sequence_length=9, phase="decode").new_tokens == 1


def test_fingerprint_tells_spaces_apart():
    other = tiny_space(tiny_bert(), heads=[2, 4])
    assert other.fingerprint != SPACE.fingerprint
    assert tiny_space(tiny_bert(seed=5)).fingerprint == SPACE.fingerprint
