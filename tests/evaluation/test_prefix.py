"""Subnets are judged from the first block that is not the teacher's, and judged alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.evaluation.evaluate import Evaluator
from nas.evaluation.prefix import TeacherPrefix
from nas.tasks.data import TextData
from nas.tasks.text import SentenceEmbedding
from search_spaces.calibrate import calibrate
from search_spaces.families import blocks_of
from search_spaces.subnet import SKIPPED, SubnetConfig
from search_spaces.supernet import Supernet
from tests.models import tiny_space
from tests.texts import texts, tiny_model_folder, write_lines

TOKENS = 32


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SentenceEmbedding:
    folder = tmp_path_factory.mktemp("task")
    data = TextData(write_lines(folder / "texts.txt", texts(110)), calibration=16, validation=40, test=20)
    model = tiny_model_folder(folder / "model")
    return SentenceEmbedding(model, data, TOKENS, neighbours=3, cache_dir=str(folder / "cache"))


@pytest.fixture(scope="module")
def supernet(task: SentenceEmbedding) -> Supernet:
    model = task.load_model()
    space = tiny_space(model, hidden_size=[16, 32])
    return Supernet(model, calibrate(model, list(task.batches("calibration", 8)), space), space)


def made(supernet: Supernet, task: SentenceEmbedding, **options: object) -> Evaluator:
    # Several batches, so that what is kept of each has to meet it again.
    return Evaluator(supernet, task, batch_size=16, precision="fp32", **options)  # type: ignore[arg-type]


@contextmanager
def counted(supernet: Supernet) -> Iterator[list[int]]:
    """Numbers of the blocks that run."""
    ran: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(supernet._blocks)
    ]
    yield ran
    for handle in handles:
        handle.remove()


def one_replaced(supernet: Supernet, at: int, seed: int) -> SubnetConfig:
    """The teacher's first blocks, then others."""
    teacher = supernet.space.teacher
    drawn = supernet.space.sample(np.random.default_rng(seed), 1)[0]
    return supernet.space.canonical(SubnetConfig(teacher.blocks[:at] + drawn.blocks[at:], drawn.hidden_size))


@settings(max_examples=20, deadline=None)
@given(at=st.integers(0, 3), seed=st.integers(0, 2**31), device=st.sampled_from(["fp32", "int8"]))
def test_what_is_kept_changes_no_metric(
    supernet: Supernet, task: SentenceEmbedding, at: int, seed: int, device: str
) -> None:
    subnet = one_replaced(supernet, at, seed)
    fresh, other = (made(supernet, task, device_precision=device) for _ in range(2))
    whole = fresh.evaluate(supernet.space.teacher)
    assert fresh.evaluate(subnet) == other.evaluate(subnet)
    assert fresh.evaluate(supernet.space.teacher) == whole


def test_the_teacher_s_first_blocks_run_once(supernet: Supernet, task: SentenceEmbedding) -> None:
    evaluator, teacher = made(supernet, task), supernet.space.teacher
    narrow = next(variant for variant in supernet.space.variants(1) if 0 < variant.heads < 4)
    for subnet, expected in (
        (teacher.with_block(1, narrow), {0, 1, 2}),  # Nothing is known yet.
        (teacher, {0, 1, 2}),
        (teacher.with_block(1, narrow), {1, 2}),
        (teacher.with_block(2, narrow), {2}),
        (teacher.with_block(2, SKIPPED), {1}),  # Some block has to run.
        (teacher.with_block(0, narrow), {0, 1, 2}),
        (SubnetConfig(teacher.with_block(2, narrow).blocks, 16), {0, 1, 2}),
        (teacher.with_block(2, narrow).on_device("int8"), {0, 1, 2}),
        (teacher, {2}),
    ):
        with counted(supernet) as ran:
            evaluator.evaluate(subnet)
        assert set(ran) == expected, subnet
    with counted(supernet) as ran:
        evaluator.evaluate(teacher.with_block(2, narrow), split="test")  # Other texts.
    assert set(ran) == {0, 1, 2}


@pytest.mark.parametrize(("share", "expected"), [(2.0, {2}), (1.0, {2}), (0.99, {2}), (0.49, {0, 1, 2})])
def test_no_more_is_kept_than_may_be(
    supernet: Supernet, task: SentenceEmbedding, share: float, expected: set[int]
) -> None:
    sizes = []
    for rows in task.samples.order("validation", 16):
        ids = task.samples.batch("validation", rows)["input_ids"]
        sizes.append(ids.numel() * supernet.shape.hidden_size * 4)
    evaluator, teacher = made(supernet, task), supernet.space.teacher
    evaluator._prefix = TeacherPrefix(supernet, limit_bytes=int(share * 2 * sum(sizes)))
    evaluator.evaluate(teacher)
    narrow = next(variant for variant in supernet.space.variants(2) if 0 < variant.heads < 4)
    with counted(supernet) as ran:
        found = evaluator.evaluate(teacher.with_block(2, narrow))
    assert set(ran) == expected
    assert found == made(supernet, task).evaluate(teacher.with_block(2, narrow))


def test_what_runs_the_model_again_is_given_the_whole_of_it(supernet: Supernet, task: SentenceEmbedding) -> None:
    def twice(run, split, outputs, teacher, batch_size=64):  # type: ignore[no-untyped-def]
        again = run(task.samples.batch("test", [0, 1, 2]))["embedding"]
        return {"sum": float(again.sum())}

    evaluator, teacher = made(supernet, task, extras=twice), supernet.space.teacher
    subnet = one_replaced(supernet, 2, 5)
    expected = made(supernet, task, extras=twice).evaluate(subnet)
    evaluator.evaluate(teacher)
    assert evaluator.evaluate(subnet) == expected


def test_a_run_that_is_broken_off_leaves_nothing(
    supernet: Supernet, task: SentenceEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator, teacher = made(supernet, task), supernet.space.teacher
    batch, seen = type(task.samples).batch, []

    def interrupted(*arguments: object) -> object:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return batch(*arguments)  # type: ignore[arg-type]

    evaluator.evaluate(teacher, split="test")
    with monkeypatch.context() as patch:
        patch.setattr(type(task.samples), "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluator.evaluate(teacher)
    assert not any(block._forward_pre_hooks for block in blocks_of(supernet.model))
    assert evaluator._prefix._read == {}
    subnet = one_replaced(supernet, 2, 3)
    for split in ("validation", "test"):
        assert evaluator.evaluate(subnet, split=split) == made(supernet, task).evaluate(subnet, split=split)


def test_what_was_judged_is_what_stays_active(supernet: Supernet, task: SentenceEmbedding) -> None:
    evaluator, subnet = made(supernet, task), one_replaced(supernet, 2, 3)
    evaluator.evaluate(supernet.space.teacher)
    evaluator.evaluate(subnet)
    assert supernet.active == subnet
    assert len(blocks_of(supernet.model)) == subnet.depth


def test_off_the_processor_nothing_is_kept(supernet: Supernet, task: SentenceEmbedding) -> None:
    """What the hook is given there cannot be had here: tensors without storage stand for it."""
    prefix, teacher = TeacherPrefix(supernet), supernet.space.teacher
    with prefix.activated(teacher, "validation"):
        for block in blocks_of(supernet.model):
            for hook in block._forward_pre_hooks.values():
                hook(block, (torch.zeros(2, 3, 4, device="meta"),), {})
    evaluator = made(supernet, task)
    expected = evaluator.evaluate(teacher)
    evaluator._prefix = prefix
    assert evaluator.evaluate(teacher) == expected


def test_other_batches_are_refused(supernet: Supernet, task: SentenceEmbedding) -> None:
    evaluator, subnet = made(supernet, task), one_replaced(supernet, 2, 3)
    evaluator.evaluate(supernet.space.teacher)
    evaluator.batch_size = 8
    with pytest.raises(RuntimeError, match="batches must be the ones that the teacher was judged on"):
        evaluator.evaluate(subnet)
    assert supernet.active == subnet
