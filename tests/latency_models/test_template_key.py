"""The name of an exported teacher tells all that its graph depends on, and nothing else."""

from __future__ import annotations

import importlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from latency_models.backends.template_key import template_key
from tests.latency_models.pruned import POOLED_NAMES, Pooled, example_inputs
from tests.models import tiny_bert


def key(model: Any = None, inputs: Any = None, names: Any = POOLED_NAMES) -> str | None:
    return template_key(model or Pooled(tiny_bert()), inputs or example_inputs(), names)


def test_equal_teachers_have_one_name_whatever_texts_are_run():
    assert key() == key(Pooled(tiny_bert().train())) == key(inputs=example_inputs(3, 9))
    assert key() is not None


def with_buffer(value: int) -> Pooled:
    model = Pooled(tiny_bert())
    model.register_buffer("kept", torch.tensor([value]), persistent=False)
    return model


def test_what_decides_the_graph_is_in_its_name(monkeypatch):
    trained, otherwise, wider, scaled, attending = (Pooled(tiny_bert()) for _ in range(5))
    with torch.no_grad():
        next(trained.parameters()).view(-1)[0] += 1e-3
    otherwise.model.config.layer_norm_eps = 1e-3
    wider.scale = 2.0
    scaled.model.encoder.layer[0].scaling = 3.0
    attending.model.config._attn_implementation_internal = "another"
    half = {name: value.to(torch.int32) for name, value in example_inputs().items()}
    models = [trained, otherwise, wider, scaled, attending, with_buffer(1), with_buffer(2)]
    found = [key(), *map(key, models), key(inputs=half), key(names=["a", "b"])]
    monkeypatch.setattr("latency_models.backends.template_key.version", lambda name: "99.0")
    found.append(key())
    assert None not in found
    assert len(set(found)) == len(found)


def test_where_a_model_lies_and_how_it_attends_when_it_runs_are_not_in_its_name():
    moved, eager = Pooled(tiny_bert()), Pooled(tiny_bert())
    moved.model.config._name_or_path = "/elsewhere"
    eager.model.config._attn_implementation_internal = "eager"
    assert key(moved) == key(eager) == key()


@pytest.mark.parametrize("value", [lambda hidden: hidden, torch.zeros(2), object(), {"a": object()}])
def test_a_wrapper_that_cannot_be_told_has_no_name(value):
    model = Pooled(tiny_bert())
    model.secret = value
    assert key(model) is None


@dataclass
class Options:
    scale: float = 1.0


def test_a_wrapper_s_plain_data_are_told():
    found = set()
    for value in ([1, 2], (2, 1), {"a": None}, Options(), Options(2.0), True):
        model = Pooled(tiny_bert())
        model.options = value
        found.add(key(model))
    assert None not in found
    assert len(found) == 6


def test_hooks_that_compute_have_no_name_and_those_that_look_do_not_count():
    model = Pooled(tiny_bert())
    hook = model.model.register_forward_hook(lambda module, inputs, output: output)
    assert key(model) is None
    hook.remove()
    looks = lambda module, inputs, output: None  # noqa: E731
    looks.__module__ = "transformers.utils.output_capturing"
    model.model.register_forward_hook(looks)
    assert key(model) == key()


def test_a_forward_of_its_own_has_no_name():
    model = Pooled(tiny_bert())
    model.model.forward = model.model.forward
    assert key(model) is None


def test_a_model_without_transformers_has_no_name():
    assert key(torch.nn.Linear(2, 2)) is None


def written(folder: Path, base: int, *, age: float = 1e6) -> Any:
    """A wrapper in a file of its own, whose forward is its base class's in another file, both imported anew."""
    folder.mkdir(exist_ok=True)
    texts = {
        "own_base": f"from tests.latency_models.pruned import Pooled\n\nclass Base(Pooled):\n    factor = {base}\n",
        "own_wrapper": "from own_base import Base\n\nclass Mine(Base):\n    pass\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
        os.utime(folder / f"{name}.py", (time.time() - age,) * 2)
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module("own_wrapper").Mine


def test_a_wrapper_s_code_and_its_base_class_s_are_in_its_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "a"))
    first = key(written(tmp_path / "a", 1)(tiny_bert()))
    monkeypatch.syspath_prepend(str(tmp_path / "b"))
    second = key(written(tmp_path / "b", 2)(tiny_bert()))
    assert None not in (first, second)
    assert first != second


def test_code_that_was_written_while_this_process_ran_has_no_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "c"))
    assert key(written(tmp_path / "c", 1, age=-100)(tiny_bert())) is None


def test_code_that_is_gone_has_no_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "d"))
    model = written(tmp_path / "d", 1)(tiny_bert())
    (tmp_path / "d" / "own_base.py").unlink()
    assert key(model) is None
