"""Losses against hand-computed values, and what they promise whatever the tensors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from nas.distillation.losses import Distiller, similarity_difference, softened_divergence, state_difference
from nas.tasks.attention import ATTENTION
from nas.tasks.deployed import hidden_outputs
from nas.tasks.text import SentenceEmbedding, TextClassification

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


def outputs(seed: int, blocks: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "logits": torch.randn(3, 5, generator=generator),
        "embedding": torch.randn(3, 8, generator=generator),
        "hidden": torch.randn(3, 4, 8, generator=generator),
        "hidden_states": torch.randn(blocks, 3, 4, 8, generator=generator),
        **{name: torch.randn(3, 4, 8, generator=generator) for name in ATTENTION},
    }


EVERYTHING = Distiller(logits=1.0, embedding=1.0, similarity=1.0, hidden=1.0, hidden_states=1.0, relations=1.0)


def test_states_of_a_narrower_stream_are_not_compared() -> None:
    class Embedding:
        kind, deployed, samples = "sentence_embedding", {"sentence_embedding": "embedding"}, None

    Distiller(embedding=1.0, hidden=1.0).check(Embedding(), narrower=[16])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`hidden_states` must be 0 .*another hidden size.*\(16\).*use `hidden`"):
        Distiller(hidden_states=1.0).check(Embedding(), narrower=[16])  # type: ignore[arg-type]
    states = SimpleNamespace(hidden_states=[torch.zeros(1, 2, size) for size in (16, 16, 32)])
    with pytest.raises(ValueError, match="must all have one hidden size, but have 16 and 32"):
        hidden_outputs(states, torch.zeros(1, 2, 32), ["hidden_states"])


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_student_that_is_the_teacher_has_no_loss(seed: int) -> None:
    teacher = outputs(seed)
    assert EVERYTHING(teacher, teacher, {"attention_mask": MASK}).item() == pytest.approx(0.0, abs=1e-5)


@given(st.integers(0, 1000), st.integers(1001, 2000))
@settings(max_examples=20, deadline=None)
def test_a_loss_is_the_weighted_sum_of_its_terms(first: int, second: int) -> None:
    student, teacher, batch = outputs(first), outputs(second), {"attention_mask": MASK}
    weights = {
        "logits": 0.5,
        "embedding": 2.0,
        "similarity": 3.0,
        "hidden": 0.25,
        "hidden_states": 1.5,
        "relations": 2.5,
    }
    terms = [weight * Distiller(**{name: 1.0})(student, teacher, batch) for name, weight in weights.items()]
    assert Distiller(**weights)(student, teacher, batch).item() == pytest.approx(torch.stack(terms).sum().item(), 1e-5)
    assert all(term.item() > 0 for term in terms)


@given(st.integers(0, 1000), st.integers(1001, 2000))
@settings(max_examples=20, deadline=None)
def test_padding_counts_nowhere(first: int, second: int) -> None:
    student, teacher = outputs(first), outputs(second)
    loss = Distiller(hidden=1.0, hidden_states=1.0, relations=1.0)
    before = loss(student, teacher, {"attention_mask": MASK})
    padded = MASK == 0
    for side in (student, teacher):
        side["hidden"][padded] = 1e6
        side["hidden_states"][:, padded] = -1e6
        side["queries"][padded] = 1e6
    assert loss(student, teacher, {"attention_mask": MASK}).item() == before.item()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_divergence_is_scipys(temperature: float) -> None:
    student, teacher = outputs(1)["logits"], outputs(2)["logits"]
    own, other = (softmax(side.double().numpy() / temperature, axis=1) for side in (student, teacher))
    expected = rel_entr(other, own).sum(axis=1).mean() * temperature**2
    assert softened_divergence(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-4)


def test_saying_the_mean_costs_one() -> None:
    teacher = outputs(3)["hidden_states"]
    real = MASK.bool()
    mean = teacher[:, real].mean(dim=1)[:, None, None, :].expand_as(teacher)
    assert state_difference(mean, teacher, MASK).item() == pytest.approx(1.0, rel=1e-5)


def test_similarities_see_angles_only() -> None:
    teacher = outputs(4)["embedding"]
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    turned = 3.0 * teacher @ torch.from_numpy(turn).float()
    assert similarity_difference(turned, teacher).item() == pytest.approx(0.0, abs=1e-5)


def test_batches_too_small_for_pairs() -> None:
    one, two = outputs(5)["embedding"][:1], outputs(5)["embedding"][:2]
    assert similarity_difference(one, one + 1).item() == 0.0
    assert similarity_difference(two, two.flip(1)).isfinite()


def test_skipped_blocks_learn_from_their_own() -> None:
    teacher = outputs(6, blocks=3)
    student = outputs(7, blocks=2) | {"hidden_states": teacher["hidden_states"][[0, 2]]}
    loss = Distiller(hidden_states=1.0)
    assert loss(student, teacher, {"attention_mask": MASK}, blocks=(0, 2)).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(student, teacher, {"attention_mask": MASK}, blocks=(0, 1)).item() > 0.1
    with pytest.raises(ValueError, match="hidden states must have the same sizes, but are"):
        loss(student, teacher, {"attention_mask": MASK})


def test_labels() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    loss = Distiller(labels=1.0)({"logits": logits}, {}, {"labels": torch.tensor([0, 1])})
    assert loss.item() == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2, rel=1e-5)


def test_needs_only_what_has_a_weight() -> None:
    assert Distiller(embedding=1.0, similarity=1.0).needs == {"embedding"}
    assert Distiller(labels=1.0).needs == frozenset()
    assert EVERYTHING.needs == {"logits", "embedding", "hidden", "hidden_states", *ATTENTION}


def test_settings() -> None:
    with pytest.raises(ValueError, match="must be > 0, but all are 0"):
        Distiller()
    with pytest.raises(ValueError, match="`hidden` must be a number >= 0, but got -1"):
        Distiller(hidden=-1)
    with pytest.raises(ValueError, match="`temperature` must be > 0, but got 0"):
        Distiller(logits=1.0, temperature=0)


def test_task_must_give_what_the_loss_reads(embedding: SentenceEmbedding, classification: TextClassification) -> None:
    for task in (embedding, classification):
        Distiller.default(task).check(task)
    with pytest.raises(ValueError, match="`logits` needs logits, which a sentence_embedding task does not give"):
        Distiller(logits=1.0).check(embedding)
    with pytest.raises(ValueError, match="`labels` must be 0 for a task without labels"):
        Distiller(embedding=1.0, labels=1.0).check(embedding)
    Distiller(labels=1.0).check(classification)
