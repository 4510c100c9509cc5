"""An exported teacher is found again by all that its graph depends on, and by nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latency_models.backends.graph_template import GraphTemplate
from latency_models.backends.template_key import template_key
from latency_models.backends.template_store import read, stored_template, write
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs, prune_bert
from tests.models import tiny_bert

PLACES = ("linears", "boundaries", "shape", "root", "sizes", "repeats", "caches")


@pytest.fixture(scope="module")
def teacher():
    return Pooled(tiny_bert())


@pytest.fixture(scope="module")
def exported(teacher):
    return GraphTemplate.from_model(teacher, example_inputs(), POOLED_NAMES)


@pytest.fixture
def once(exported, monkeypatch):
    """Exports that take no time, and how many there were."""
    exports: list[Any] = []

    def from_model(*arguments: Any, **_: Any) -> GraphTemplate:
        exports.append(arguments)
        return exported

    monkeypatch.setattr(GraphTemplate, "from_model", from_model)
    return exports


def edited(template: GraphTemplate, changes: Mapping[str, Any] | None = None) -> bytes:
    pruned = prune_bert(tiny_bert(), **(changes or {"heads": [1, 2, 3], "ffn": [8, 24, 64], "ranks": [0, 3, 8]}))
    return bytes(template.edit(pruned.linear_weights, (1,)).SerializeToString(deterministic=True))


def test_a_stored_template_is_edited_as_the_exported_one(teacher, exported):
    again = read(write(exported, teacher), teacher)
    assert edited(again) == edited(exported)
    for name in PLACES:
        assert getattr(again, name) == getattr(exported, name), name


def test_the_file_holds_no_weights_of_the_teacher(teacher, exported):
    data = write(exported, teacher)
    for name, weight in teacher.named_parameters():
        array = weight.detach().numpy()
        if len(np.unique(array)) > 1:
            assert array.tobytes() not in data, name
            assert np.ascontiguousarray(array.T).tobytes() not in data, name


def test_a_read_template_does_not_follow_its_teacher_s_training(exported):
    teacher = Pooled(tiny_bert())
    template = read(write(exported, teacher), teacher)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(1.0)
    assert edited(template) == edited(exported)


def test_what_is_stored_is_not_exported_again(teacher, exported, once, tmp_path):
    path = tmp_path / "new" / "teacher.onnx"
    first = stored_template(path, teacher, example_inputs(), POOLED_NAMES)
    second = stored_template(path, teacher, example_inputs(), POOLED_NAMES)
    assert len(once) == 1
    assert first is exported
    assert edited(second) == edited(first)
    assert [file.name for file in path.parent.iterdir()] == ["teacher.onnx"]


def test_without_a_path_nothing_is_stored(teacher, once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        stored_template(None, teacher, example_inputs(), POOLED_NAMES)
    assert len(once) == 2
    assert not list(tmp_path.iterdir())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(cut=st.floats(0, 0.999), change=st.one_of(st.none(), st.binary(min_size=1, max_size=40)))
def test_a_damaged_file_is_named_and_written_anew(teacher, exported, once, tmp_path, caplog, cut, change):
    path, good = tmp_path / "teacher.onnx", write(exported, teacher)
    path.write_bytes(good[: int(cut * len(good))] + (change or b""))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert stored_template(path, teacher, example_inputs(), POOLED_NAMES) is exported
    assert f"{path} cannot be read" in caplog.text
    assert "is exported again" in caplog.text
    assert path.read_bytes() == good


def test_weights_that_the_teacher_does_not_have_are_refused(teacher, exported):
    data = write(exported, teacher)
    with pytest.raises(ValueError, match=r"no weight 'model.*token_type_embeddings.weight' of shape"):
        read(data, Pooled(tiny_bert(type_vocab_size=3)))


def test_a_graph_that_another_program_wrote_is_no_template(teacher, exported, tmp_path, once, caplog):
    path = tmp_path / "teacher.onnx"
    path.write_bytes(exported.edit({}).SerializeToString())
    with caplog.at_level(logging.WARNING):
        assert stored_template(path, teacher, example_inputs(), POOLED_NAMES) is exported
    assert "cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written_stops_nobody(teacher, exported, once, tmp_path, caplog):
    (tmp_path / "graphs").write_text("a file")
    with caplog.at_level(logging.WARNING):
        made = stored_template(tmp_path / "graphs" / "teacher.onnx", teacher, example_inputs(), POOLED_NAMES)
    assert made is exported
    assert "not kept for the next command" in caplog.text


def test_more_than_a_file_can_hold_is_not_stored(teacher, exported, once, tmp_path, monkeypatch):
    monkeypatch.setattr("latency_models.backends.template_store._MOST_BYTES", 1)
    stored_template(tmp_path / "teacher.onnx", teacher, example_inputs(), POOLED_NAMES)
    assert not list(tmp_path.iterdir())


# -- names ----------------------------------------------------------------------------------------------------------


def key(model: Any = None, inputs: Any = None, names: Any = POOLED_NAMES) -> str | None:
    return template_key(model or Pooled(tiny_bert()), inputs or example_inputs(), names)


def test_equal_teachers_have_one_name_whatever_texts_are_run():
    assert key() == key(Pooled(tiny_bert().eval())) == key(inputs=example_inputs(3, 9))


def test_what_decides_the_graph_is_in_its_name(monkeypatch):
    trained, otherwise, wider = Pooled(tiny_bert()), Pooled(tiny_bert()), Pooled(tiny_bert())
    with torch.no_grad():
        next(trained.parameters()).view(-1)[0] += 1e-3
    otherwise.model.config.layer_norm_eps = 1e-3
    wider.scale = 2.0
    half = {name: value.to(torch.int32) for name, value in example_inputs().items()}
    found = [key(), key(trained), key(otherwise), key(wider), key(inputs=half), key(names=["a", "b"])]
    monkeypatch.setattr("latency_models.backends.template_key.version", lambda name: "99.0")
    assert len({*found, key()}) == len(found) + 1


def test_where_a_model_lies_is_not_in_its_name():
    moved = Pooled(tiny_bert())
    moved.model.config._name_or_path = "/elsewhere"
    assert key(moved) == key()


@pytest.mark.parametrize("value", [lambda hidden: hidden, torch.zeros(2), object(), {"a": object()}])
def test_a_wrapper_that_cannot_be_told_has_no_name(value):
    model = Pooled(tiny_bert())
    model.secret = value
    assert key(model) is None


def test_a_model_with_hooks_has_no_name():
    model = Pooled(tiny_bert())
    model.model.register_forward_hook(lambda module, inputs, output: output)
    assert key(model) is None


def test_a_model_without_transformers_has_no_name():
    assert key(torch.nn.Linear(2, 2)) is None


def test_a_wrapper_of_another_code_has_another_name(tmp_path, monkeypatch):
    found = []
    for factor in (1, 2):
        text = f"from tests.latency_models.pruned import Pooled\n\nclass Mine(Pooled):\n    factor = {factor}\n"
        (tmp_path / "own_wrapper.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(__import__("sys").modules, "own_wrapper", raising=False)
        found.append(key(__import__("own_wrapper").Mine(tiny_bert())))
    assert None not in found
    assert found[0] != found[1]
