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
from latency_models.backends.template_store import find_template, keep_template, read, write
from latency_models.device import Device
from latency_models.subnet_compiler import SubnetCompiler
from search_spaces.calibrate import calibrate
from search_spaces.supernet import Supernet
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs, prune_bert
from tests.models import tiny_batches, tiny_bert, tiny_space

PLACES = ("linears", "boundaries", "shape", "root", "sizes", "repeats", "caches")


@pytest.fixture(scope="module")
def teacher():
    return Pooled(tiny_bert())


@pytest.fixture(scope="module")
def exported(teacher):
    return GraphTemplate.from_model(teacher, example_inputs(), POOLED_NAMES)


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


def test_what_is_kept_is_found(teacher, exported, tmp_path):
    path = tmp_path / "new" / "teacher.template"
    assert find_template(path, teacher) is None
    keep_template(exported, teacher, path)
    found = find_template(path, teacher)
    assert found is not None
    assert edited(found) == edited(exported)
    assert [file.name for file in path.parent.iterdir()] == ["teacher.template"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(place=st.floats(0, 0.999), change=st.one_of(st.none(), st.integers(1, 255), st.binary(max_size=40)))
def test_a_damaged_file_is_named_and_not_read(teacher, exported, tmp_path, caplog, place, change):
    """Cut off, one byte changed, or something else behind the cut."""
    path, good = tmp_path / "teacher.template", write(exported, teacher)
    at = int(place * len(good))
    rest = bytes([good[at] ^ change]) + good[at + 1 :] if isinstance(change, int) else change or b""
    path.write_bytes(good[:at] + rest)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert find_template(path, teacher) is None
    assert f"{path} cannot be read (it is damaged, or was not written here); the teacher is exported" in caplog.text


def test_weights_that_the_teacher_does_not_have_are_refused(teacher, exported):
    data = write(exported, teacher)
    with pytest.raises(ValueError, match=r"no weight 'model.*token_type_embeddings.weight' of shape"):
        read(data, Pooled(tiny_bert(type_vocab_size=3)))


def test_a_graph_that_another_program_wrote_is_no_template(teacher, exported, tmp_path, caplog):
    path = tmp_path / "teacher.template"
    path.write_bytes(exported.edit({}).SerializeToString())
    with caplog.at_level(logging.WARNING):
        assert find_template(path, teacher) is None
    assert "was not written here" in caplog.text


def test_a_folder_that_cannot_be_written_stops_nobody(teacher, exported, tmp_path, caplog):
    (tmp_path / "graphs").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert find_template(tmp_path / "graphs" / "teacher.template", teacher) is None
        keep_template(exported, teacher, tmp_path / "graphs" / "teacher.template")
    assert "not kept for the next command" in caplog.text


def test_more_than_a_file_can_hold_is_not_kept(teacher, exported, tmp_path, monkeypatch):
    monkeypatch.setattr("latency_models.backends.template_store._MOST_BYTES", 1)
    keep_template(exported, teacher, tmp_path / "teacher.template")
    assert not list(tmp_path.iterdir())


# -- compilers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def once(exported, monkeypatch):
    """Exports that take no time, and how many there were."""
    exports: list[Any] = []

    def from_model(*arguments: Any, **_: Any) -> GraphTemplate:
        exports.append(arguments)
        return exported

    monkeypatch.setattr(GraphTemplate, "from_model", from_model)
    return exports


def compiler(folder: Any) -> SubnetCompiler:
    model = tiny_bert()
    space = tiny_space(model)
    supernet = Supernet(model, calibrate(model, tiny_batches(), space), space)
    device = Device("cpu", "onnxruntime")
    return SubnetCompiler(device, supernet, example_inputs(), POOLED_NAMES, deployable=Pooled, templates=folder)


def test_the_next_compiler_does_not_export(once, exported, tmp_path):
    first, second = compiler(tmp_path), compiler(tmp_path)
    assert not first.find_template()
    assert first.template is exported
    assert second.find_template()
    assert second.find_template()
    assert edited(second.template) == edited(compiler(tmp_path).template) == edited(exported)
    assert len(once) == 1
    assert [file.suffix for file in tmp_path.iterdir()] == [".template"]


def test_a_damaged_file_is_written_anew(once, exported, tmp_path, caplog):
    assert compiler(tmp_path).template is exported
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    assert compiler(tmp_path).template is exported
    assert len(once) == 2
    assert file.read_bytes() == good


def test_without_a_folder_nothing_is_kept(once, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [compiler(None).find_template() for _ in range(2)] == [False, False]
    assert [compiler(None).template for _ in range(2)] == [exported, exported]
    assert len(once) == 2
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_cannot_be_told_is_exported_each_time(once, exported, tmp_path, monkeypatch):
    monkeypatch.setattr("latency_models.backends.template_key.template_key", lambda *_: None)
    assert [compiler(tmp_path).template for _ in range(2)] == [exported, exported]
    assert len(once) == 2
    assert not list(tmp_path.iterdir())
