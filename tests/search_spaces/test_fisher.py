"""Fisher information of units: the gradients of gates that nobody has to build into a model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from search_spaces.calibrate import calibrate
from search_spaces.families import FAMILIES, blocks_of, family_of, projection_weights
from search_spaces.fisher import _surprise, fisher_information, unit_gradients
from search_spaces.observe import Observed, observe
from search_spaces.shapes import ModelShape
from tests.models import tiny, tiny_batches, tiny_bert, tiny_images, tiny_space

MODEL_TYPES = [model_type for family in FAMILIES for model_type in family.model_types]


def inputs_of(model_type: str, count: int = 1, size: int = 3) -> list[dict[str, Tensor]]:
    return tiny_images(count, size) if model_type == "vit" else tiny_batches(count, size)


def seen_by(model: Any) -> dict[int, Observed]:
    return {0: observe(model, tiny_batches(), [0])[0]}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_gates_gradient_is_what_the_weights_that_read_its_unit_say(model_type):
    """One sample: scaling a unit is scaling the columns that read it."""
    model, (batch,) = tiny(model_type), inputs_of(model_type, size=1)
    shape, family = ModelShape.from_model(model), family_of(model)
    seen = dict(enumerate(observe(model, [batch, batch], [0, 1])))
    found = unit_gradients(model, [batch], shape, seen, seed=3)
    assert all(parameter.grad is None for parameter in model.parameters())
    options: dict[str, Any] = {"use_cache": False} if family.causal else {}
    loss = _surprise(model(**batch, **options), model, batch, torch.Generator().manual_seed(3))
    loss.backward()
    for index, gradients in enumerate(found):
        for role, path, units in (
            ("attention_out", family.attention_out, shape.heads),
            ("ffn_out", family.ffn_out, shape.ffn),
        ):
            module = blocks_of(model)[index].get_submodule(path)
            weight, bias = projection_weights(blocks_of(model)[index], path)
            changed = weight * _gradient(module)
            if bias is not None:  # Only what differs from the mean, which the bias takes over.
                changed -= weight * seen[index].both(role).mean.float() * module.bias.grad[:, None]
            expected = changed.reshape(len(weight), units, -1).sum(dim=(0, 2))
            torch.testing.assert_close(gradients[role][0], expected, rtol=1e-3, atol=1e-5)


def _gradient(module: Any) -> Tensor:
    """The weight's gradient, ``(out, in)`` also where the weight is stored transposed."""
    gradient: Tensor = module.weight.grad
    return gradient.T if type(module).__name__ == "Conv1D" else gradient


def test_information_of_a_group_counts_what_its_parts_do_together():
    gradients = torch.tensor([[1.0, -1.0, 2.0, 2.0], [3.0, 1.0, 0.0, 0.0]])
    assert fisher_information(gradients, 1).tolist() == [5.0, 1.0, 2.0, 2.0]
    assert fisher_information(gradients, 2).tolist() == [8.0, 8.0]


@pytest.mark.parametrize("labels", [1, 4])
def test_what_nobody_reads_has_no_information_and_goes_first(labels):
    """Also of classifiers, by what they themselves say, and from inside inference mode."""
    model = tiny_bert(labels=labels)
    block, dead = blocks_of(model)[0], [5, 17, 40]
    with torch.no_grad():
        block.output.dense.weight[:, dead] = 0
    with torch.inference_mode():
        first = unit_gradients(model, tiny_batches(), ModelShape.from_model(model), seen_by(model))[0]
    again = unit_gradients(model, tiny_batches(), ModelShape.from_model(model), seen_by(model))[0]
    assert torch.equal(first["ffn_out"], again["ffn_out"])
    scores = fisher_information(first["ffn_out"], 1)
    assert scores[dead].max() == 0 < scores[[0, 1, 2]].min()
    library = calibrate(copy.deepcopy(model), tiny_batches(), tiny_space(model), importance="fisher")
    rows = library.tensors["0.intermediate.dense.permuted"][-len(dead) :]
    assert {tuple(row) for row in rows.tolist()} == {tuple(r) for r in block.intermediate.dense.weight[dead].tolist()}


def test_labels_of_several_classes_at_once_are_drawn_one_by_one():
    model = tiny_bert(labels=4)
    one = unit_gradients(model, tiny_batches(), ModelShape.from_model(model), seen_by(model))[0]["ffn_out"]
    model.config.problem_type = "multi_label_classification"
    several = unit_gradients(model, tiny_batches(), ModelShape.from_model(model), seen_by(model))[0]["ffn_out"]
    assert one.shape == several.shape
    assert not torch.equal(one, several)


def test_padding_and_other_samples_of_the_batch_change_nothing():
    model = tiny_bert()
    (batch,), shape = tiny_batches(count=1, size=4), ModelShape.from_model(model)
    longer = {key: torch.cat([value, torch.zeros_like(value[:, :3])], dim=1) for key, value in batch.items()}
    plain = unit_gradients(model, [batch], shape, seen_by(model))[0]
    padded = unit_gradients(model, [longer], shape, seen_by(model))[0]
    for role, gradients in plain.items():
        torch.testing.assert_close(padded[role], gradients, rtol=1e-4, atol=1e-6)


def test_a_model_without_finite_gradients_is_refused():
    model = tiny_bert()
    seen = seen_by(model)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[:] = float("inf")
    with pytest.raises(ValueError, match="gradients must be finite, but block 0"):
        unit_gradients(model, tiny_batches(), ModelShape.from_model(model), seen)
