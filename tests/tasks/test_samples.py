"""Tokens and batches: nothing lost, little padded, the same in every run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.tasks.data import Examples
from nas.tasks.samples import TextSamples
from search_spaces.cost import Workload
from tests.texts import texts, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXTS = texts(50)


def samples(lines: list[str] = TEXTS, **changes: Any) -> TextSamples:
    examples = {"train": Examples(tuple(lines), np.arange(len(lines)))}
    return TextSamples(examples, TOKENIZER, **changes)


@given(st.lists(st.integers(0, 49), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_batches_equal_what_the_tokenizer_pads(rows: list[int]) -> None:
    expected = TOKENIZER([TEXTS[row] for row in rows], padding=True, return_tensors="pt")
    batch = samples().batch("train", rows)
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_pairs_have_token_types() -> None:
    examples = Examples(("w1 w2", "w3"), np.arange(2), pairs=("w4", "w5 w6 w7"))
    batch = TextSamples({"test": examples}, TOKENIZER).batch("test", [0, 1])
    expected = TOKENIZER(["w1 w2", "w3"], ["w4", "w5 w6 w7"], padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_texts_are_cut_to_the_longest_allowed() -> None:
    assert int(samples(max_length=6).lengths("train").max()) == 6


@given(st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_order_holds_every_sample_once_by_length(batch_size: int) -> None:
    some = samples()
    order = some.order("train", batch_size)
    assert sorted(np.concatenate(order)) == list(range(50))
    assert (np.diff(some.lengths("train")[np.concatenate(order)]) >= 0).all()


def test_shuffled_batches_repeat_by_seed_and_pad_little() -> None:
    some = samples(texts(640, seed=3))
    first, again, other = (list(islice(some.shuffled("train", 16, seed), 80)) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert sorted(np.concatenate(first[:40])) == list(range(640))
    assert (np.concatenate(first[:40]) != np.concatenate(first[40:])).any()
    lengths = some.lengths("train")
    padded = sum(int(lengths[rows].max()) * len(rows) for rows in first[:40])
    assert padded / lengths.sum() < 1.15


def test_shuffled_batches_of_a_small_split() -> None:
    rows = next(samples(TEXTS[:3]).shuffled("train", 32, 0))
    assert sorted(rows) == [0, 1, 2]


def test_tokens_are_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = samples(cache_dir=tmp_path).tokens("train")["input_ids"]
    monkeypatch.setattr(TextSamples, "_tokenise", lambda *_: pytest.fail("tokenised again"))
    assert np.array_equal(samples(cache_dir=tmp_path).tokens("train")["input_ids"], first)
    monkeypatch.undo()
    shorter = samples(cache_dir=tmp_path, max_length=5)
    assert shorter.fingerprint("train") != samples(cache_dir=tmp_path).fingerprint("train")
    assert samples(TEXTS[1:], cache_dir=tmp_path).size("train") == 49
    assert len(list((tmp_path / "tokens").iterdir())) == 2
    samples(TEXTS[1:], cache_dir=tmp_path).tokens("train")
    assert len(list((tmp_path / "tokens").iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_input_names", ["input_ids", "attention_mask"]),
        ("truncation_side", "left"),
        ("split_special_tokens", True),
    ],
)
def test_tokenizers_of_one_vocabulary_do_not_take_each_others_tokens(tmp_path: Path, name: str, value: Any) -> None:
    lines = ["w1 [SEP] w2 w3 w4 w5 w6", *TEXTS]
    samples(lines, cache_dir=tmp_path, max_length=6).tokens("train")
    other = tiny_tokenizer()
    setattr(other, name, value)
    examples = {"train": Examples(tuple(lines), np.arange(len(lines)))}
    kept, fresh = (TextSamples(examples, other, max_length=6, cache_dir=place) for place in (tmp_path, None))
    assert set(kept.tokens("train")) == set(fresh.tokens("train"))
    assert ("token_type_ids" in kept.batch("train", [0])) == (name != "model_input_names")
    assert np.array_equal(kept.tokens("train")["input_ids"], fresh.tokens("train")["input_ids"])


def test_a_pair_with_an_empty_text_is_not_a_text_alone(tmp_path: Path) -> None:
    alone = {"test": Examples(("w1 w2",), np.arange(1))}
    pair = {"test": Examples(("w1 w2",), np.arange(1), pairs=("",))}
    lengths = [int(TextSamples(some, TOKENIZER, cache_dir=tmp_path).lengths("test")[0]) for some in (alone, pair)]
    assert lengths == [4, 5]


def test_fingerprint_is_of_content_not_of_place(tmp_path: Path) -> None:
    assert samples(cache_dir=tmp_path).fingerprint("train") == samples().fingerprint("train")


def test_example_inputs_have_the_workload_sizes_and_ordinary_tokens() -> None:
    inputs = samples().example_inputs(Workload(batch_size=3, sequence_length=20))
    assert {name: tuple(values.shape) for name, values in inputs.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (3, 20)
    )
    assert int(inputs["input_ids"].min()) >= 5
    assert bool((inputs["attention_mask"] == 1).all())


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="`split` must be one of train, but got 'holdout'"):
        samples().size("holdout")
