"""Students with a narrower residual stream learn their teacher's states through projections that are thrown away."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from nas.distillation.losses import Distiller, state_difference
from nas.distillation.projections import Compared, fit_projections, narrower, parts
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings, distil
from nas.tasks.text import SentenceEmbedding
from search_spaces.calibrate import calibrate
from search_spaces.checkpoint import save_subnet
from search_spaces.subnet import SKIPPED, SubnetConfig
from search_spaces.supernet import Supernet
from tests.models import tiny_space

FAST = TrainSettings(learning_rate=3e-3, batch_size=8, precision="fp32")
NARROW, FULL = 6, 16


@pytest.fixture(scope="module")
def supernet(embedding: SentenceEmbedding) -> Supernet:
    model = embedding.load_model()
    space = tiny_space(model, hidden_size=[16, 32])
    return Supernet(model, calibrate(model, list(embedding.batches("calibration", 8)), space), space)


@pytest.fixture(scope="module")
def teacher(embedding: SentenceEmbedding) -> TeacherOutputs:
    return TeacherOutputs(embedding, ("hidden", "hidden_states"))


def narrow(supernet: Supernet) -> SubnetConfig:
    return SubnetConfig(supernet.space.teacher.blocks, 16)


def made_states(seed: int, blocks: int = 3, last: int = FULL) -> Iterator[Compared]:
    """A teacher's states, and a student's of which they are linear functions."""
    generator = torch.Generator().manual_seed(seed)
    widths = [NARROW] * (blocks - 1) + [last]
    truth = [torch.randn(width, FULL, generator=generator) for width in widths]
    while True:
        states = [torch.randn(4, 9, width, generator=generator) for width in widths]
        mask = torch.rand(4, 9, generator=generator) < 0.7
        for state in states:
            state[~mask] = 1e3
        wanted = torch.stack([state @ matrix + 1.0 for state, matrix in zip(states, truth, strict=True)])
        wanted[:, ~mask] = -1e3
        outputs = {"inner_states": torch.stack(states[:-1]), "hidden": states[-1]}
        yield outputs, {"hidden_states": wanted, "hidden": wanted[-1]}, mask


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_what_is_a_linear_function_is_found_whatever_stands_at_padding(seed: int) -> None:
    batches = made_states(seed, last=NARROW)
    projections = fit_projections(batches, ["hidden", "hidden_states"], None)
    outputs, targets, mask = next(batches)
    found = projections(outputs)
    assert mask is not None
    for name in ("hidden", "hidden_states"):
        assert found[name].shape == targets[name].shape
        assert state_difference(found[name], targets[name], mask).item() < 1e-3
    assert narrower(outputs, targets)


def test_states_that_are_wide_enough_stay_as_they_are() -> None:
    outputs, targets, mask = next(made_states(0))
    projections = fit_projections(iter([(outputs, targets, mask)] * 2), ["hidden_states"], None)
    found = projections(outputs)
    assert torch.equal(found["hidden_states"][-1], outputs["hidden"])
    # Two maps with a shift each.
    assert sum(parameter.numel() for parameter in projections.parameters()) == 2 * FULL * (NARROW + 1)
    assert not narrower(found | {"inner_states": found["hidden_states"][:-1]}, targets)
    assert parts(["embedding", "hidden_states"]) == {"embedding", "inner_states", "hidden"}


def test_blocks_say_with_which_states_they_are_compared() -> None:
    whole = itertools.islice(made_states(0, last=NARROW), 8)
    fewer = [({**own, "inner_states": own["inner_states"][1:]}, targets, mask) for own, targets, mask in whole]
    outputs, targets, mask = fewer[0]
    for blocks, close in (((1, 2), True), ((0, 2), False)):
        found = fit_projections(fewer, ["hidden_states"], blocks)(outputs)["hidden_states"]
        assert (state_difference(found, targets["hidden_states"][[1, 2]], mask).item() < 1e-2) == close
    with pytest.raises(ValueError, match="`blocks` must name 2 of the teacher's blocks, but names 3"):
        fit_projections(fewer, ["hidden_states"], None)


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 2), (0, 1), (1,)])
def test_a_narrower_student_learns_states_and_stays_plain(
    embedding: SentenceEmbedding, teacher: TeacherOutputs, supernet: Supernet, kept: tuple[int, ...], tmp_path: Path
) -> None:
    subnet = narrow(supernet)
    for block in set(range(3)) - set(kept):
        subnet = subnet.with_block(block, SKIPPED)
    before, model = supernet.extract(subnet), supernet.extract(subnet)
    state = torch.get_rng_state()
    loss = Distiller(hidden_states=1.0)
    trained = distil(model, embedding, teacher, loss, FAST, steps=40, blocks=subnet.kept)
    assert sum(trained.losses[-5:]) < 0.8 * sum(trained.losses[:5])
    # Saying the mean costs 1: projections begin well. Behind a gap the last state, which needs none, begins far.
    assert trained.losses[0] < 0.8 or len(kept) < 3
    assert torch.equal(torch.get_rng_state(), state)
    assert form(model) == form(before)
    for name, saved in (("before", before), ("after", model)):
        save_subnet(saved, subnet, supernet.space.shape, tmp_path / name)
    assert written(tmp_path / "after") == written(tmp_path / "before")


def form(model: nn.Module) -> dict[str, object]:
    parameters = {name: values.shape for name, values in model.named_parameters()}
    return parameters | {name: type(module) for name, module in model.named_modules()}


def written(folder: Path) -> dict[str, object]:
    """Files by name, with their text or the names and shapes of their tensors."""
    found: dict[str, object] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                found[file.name] = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        else:
            found[file.name] = file.read_bytes()
    return found


def test_projections_are_trained_with_the_student(
    embedding: SentenceEmbedding, teacher: TeacherOutputs, supernet: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def spy(*arguments: object) -> object:
        projections = fit_projections(*arguments)  # type: ignore[arg-type]
        made.append((projections, [parameter.detach().clone() for parameter in projections.parameters()]))
        return projections

    monkeypatch.setattr("nas.distillation.train.fit_projections", spy)
    model = supernet.extract(narrow(supernet))
    distil(model, embedding, teacher, Distiller(embedding=1.0, hidden_states=0.3), FAST, steps=3)
    ((projections, before),) = made
    parameters = list(projections.parameters())
    assert [tuple(parameter.shape) for parameter in parameters] == [(32, 16), (32,)] * 2
    assert not any(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))
    # A student of full width has none.
    distil(supernet.extract(supernet.space.teacher), embedding, teacher, Distiller(hidden_states=1.0), FAST, steps=1)
    assert len(made) == 1


def test_the_same_seed_gives_the_same_weights(
    embedding: SentenceEmbedding, teacher: TeacherOutputs, supernet: Supernet
) -> None:
    models = [supernet.extract(narrow(supernet)) for _ in range(2)]
    loss = Distiller(hidden_states=1.0)
    first, again = (distil(model, embedding, teacher, loss, FAST, steps=3).losses for model in models)
    assert first == again
