"""Self-attention relations against values computed by hand, and what they promise whatever the tensors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.distillation.losses import Distiller
from nas.distillation.relations import relation_difference, relation_heads
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings, distil
from nas.tasks.attention import ATTENTION
from nas.tasks.text import SentenceEmbedding

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
SEEDS = st.integers(0, 1000)
FEW = settings(max_examples=20, deadline=None)


def states(seed: int, width: int = 12, keys: int = 12, *, causal: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = dict(zip(ATTENTION, (width, keys, keys), strict=True))
    found = {name: torch.randn(3, 4, size, generator=generator) for name, size in widths.items()}
    return found | {"causal": torch.tensor(causal)}


def two_tokens(size: float) -> dict[str, torch.Tensor]:
    """One sample whose two queries, of width 2, have nothing in common; keys and values are nothing."""
    nothing = torch.zeros(1, 2, 2)
    return {"queries": size * torch.eye(2)[None], "keys": nothing, "values": nothing}


def test_two_tokens_by_hand() -> None:
    # A token's query has the product log(3) with itself, after scaling, and 0 with the other's: shares of 3/4 and 1/4.
    teacher = two_tokens(math.sqrt(math.log(3) * math.sqrt(2)))
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert relation_difference(two_tokens(0.0), teacher, None, 1).item() == pytest.approx(expected, rel=1e-5)
    # Two relation heads of width 1: each relates one token to itself, and leaves the other one undecided.
    one = math.sqrt(math.log(3))
    first = relation_difference(two_tokens(0.0), two_tokens(one), None, 2).item()
    assert first == pytest.approx(expected / 2, rel=1e-5)


def test_a_causal_token_is_related_to_itself_and_those_before_it() -> None:
    size = math.sqrt(math.log(3) * math.sqrt(2))
    student = two_tokens(0.0) | {"causal": torch.tensor(data=True)}
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    # The first token has one relation only, which is the same in any model.
    assert relation_difference(student, two_tokens(size), None, 1).item() == pytest.approx(expected / 2, rel=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@given(seed=SEEDS)
@FEW
def test_the_teacher_itself_has_no_loss_and_others_have(causal: bool, seed: int) -> None:
    own, other = states(seed, causal=causal), states(seed + 5000)
    for heads in (1, 3, 12):
        assert relation_difference(own, own, MASK, heads).item() == pytest.approx(0.0, abs=1e-6)
        assert relation_difference(own, other, MASK, heads).item() > 1e-3


@pytest.mark.parametrize("causal", [False, True])
@given(seed=SEEDS)
@FEW
def test_padding_counts_nowhere(causal: bool, seed: int) -> None:
    own, other = states(seed, causal=causal), states(seed + 5000)
    before = relation_difference(own, other, MASK, 3).item()
    for side, filled in ((own, 1e4), (other, -1e4)):
        for name in ATTENTION:
            side[name][MASK == 0] = filled
            side[name].requires_grad_()
    loss = relation_difference(own, other, MASK, 3)
    assert loss.item() == pytest.approx(before, rel=1e-5)
    loss.backward()
    gradient = own["values"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert not gradient[MASK == 0].any()
    assert gradient[MASK == 1].any()


@given(seed=SEEDS)
@FEW
def test_one_relation_head_does_not_know_the_order_of_heads(seed: int) -> None:
    own, other = states(seed), states(seed + 5000)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    turned = {name: own[name][..., order] for name in ATTENTION}
    expected = relation_difference(own, other, MASK, 1).item()
    assert relation_difference(turned, other, MASK, 1).item() == pytest.approx(expected, rel=1e-4)


def test_sides_of_different_widths() -> None:
    student, teacher = states(1, 8, 4), states(2, 24, 12)
    for heads in (1, 2, 4, 5, 100):
        assert relation_difference(student, teacher, MASK, heads).isfinite()
    assert torch.equal(relation_difference(student, teacher, MASK, 5), relation_difference(student, teacher, MASK, 4))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_relation_heads_divide_both_widths(own: int, other: int, wanted: int) -> None:
    found = relation_heads(own, other, wanted)
    assert 1 <= found <= wanted
    assert own % found == other % found == 0
    assert not any(own % more == other % more == 0 for more in range(found + 1, wanted + 1))
    if own % wanted == other % wanted == 0:
        assert found == wanted


def test_distiller() -> None:
    loss, student, teacher = Distiller(relations=0.5, relation_heads=3), states(1), states(2)
    assert loss.needs == set(ATTENTION)
    expected = 0.5 * relation_difference(student, teacher, MASK, 3)
    assert torch.equal(loss(student, teacher, {"attention_mask": MASK}), expected)
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=f"`relation_heads` must be a whole number >= 1, but got {wrong}"):
            Distiller(relations=1.0, relation_heads=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="all are 0"):
        Distiller(relation_heads=3)


def test_a_student_learns_relations(embedding: SentenceEmbedding) -> None:
    teacher, model = TeacherOutputs(embedding, ATTENTION), embedding.load_model()
    with torch.no_grad():
        model.encoder.layer[2].attention.self.query.weight.mul_(0.1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fast = TrainSettings(learning_rate=3e-3, batch_size=8, precision="fp32")
    trained = distil(model, embedding, teacher, Distiller(relations=1.0), fast, steps=30)
    assert sum(trained.losses[-5:]) < 0.5 * sum(trained.losses[:5])
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert "encoder.layer.0.output.dense.weight" in changed
    # What follows the last attention has no part in it.
    assert not any(name.startswith("encoder.layer.2.output") for name in changed)


def test_a_student_of_another_size_learns_relations_of_its_last_block(embedding: SentenceEmbedding) -> None:
    teacher, model = TeacherOutputs(embedding, ATTENTION), embedding.load_model()
    del model.encoder.layer[2]
    fast = TrainSettings(learning_rate=3e-3, batch_size=8, precision="fp32")
    trained = distil(model, embedding, teacher, Distiller(relations=1.0), fast, steps=40, blocks=(0, 1))
    assert sum(trained.losses[-5:]) < 0.7 * sum(trained.losses[:5])


def test_a_teacher_that_stored_no_attention(embedding: SentenceEmbedding) -> None:
    with pytest.raises(ValueError, match="must hold 'keys', but hold embedding"):
        distil(embedding.load_model(), embedding, TeacherOutputs(embedding), Distiller(relations=1.0), steps=1)
