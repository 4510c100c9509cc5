"""Tokenised splits: texts become tokens once, and tokens become batches without padding waste."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.tasks.batching import Rows, by_length, shuffled
from nas.tasks.cache import Arrays, cached_arrays, content_key
from nas.tasks.data import Examples
from search_spaces.cost import Workload

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# What decides of a tokenizer's arrays without standing in its vocabulary file.
_AROUND_TOKENS = ("model_input_names", "truncation_side", "split_special_tokens")


@dataclass(frozen=True)
class TextSamples:
    """The splits of a task as token arrays.

    Args:
        examples: Texts by split.
        tokenizer: A tokenizer of `transformers`.
        max_length: Tokens kept of a text.
        label_ids: Labels by split, one row a sample, or None without labels.
        cache_dir: Where token arrays are kept between runs; None keeps them in memory only.
        words: Whether texts are words with one space between them, and tokens must know where a word begins.
    """

    examples: Mapping[str, Examples]
    tokenizer: PreTrainedTokenizerBase
    max_length: int = 128
    label_ids: Mapping[str, NDArray[Any]] | None = None
    cache_dir: str | Path | None = None
    words: bool = False
    _tokens: dict[str, Arrays] = field(default_factory=dict, init=False, repr=False, compare=False)

    def size(self, split: str) -> int:
        """How many samples a split has."""
        return len(self._split(split))

    def offsets(self, split: str) -> NDArray[np.int64]:
        """Where each sample's tokens begin among the split's, ``(samples + 1,)``."""
        return self.tokens(split)["offsets"]

    def lengths(self, split: str) -> NDArray[np.int64]:
        """Tokens of each sample, ``(samples,)``."""
        return np.diff(self.offsets(split))

    def changed(self, split: str, rows: Rows, change: Callable[[str], str]) -> TextSamples:
        """Some samples of a split with changed texts, as the same split of samples that keep nothing on disk."""
        some = self._split(split).take(rows)
        pairs = None if some.pairs is None else tuple(map(change, some.pairs))
        examples = {split: replace(some, texts=tuple(map(change, some.texts)), pairs=pairs)}
        return replace(self, examples=examples, label_ids=None, cache_dir=None)

    def with_labels(self, label_ids: Mapping[str, NDArray[Any]]) -> TextSamples:
        """The same samples with labels; what was tokenised stays so."""
        labelled = replace(self, label_ids=label_ids)
        labelled._tokens.update(self._tokens)
        return labelled

    def labels(self, split: str) -> NDArray[Any] | None:
        """The samples' labels, one row a sample, or None without labels."""
        return None if self.label_ids is None else self.label_ids[split]

    def groups(self, split: str) -> Mapping[str, tuple[str, ...]]:
        """Group column -> the samples' values in it."""
        return self._split(split).groups

    def fingerprint(self, split: str) -> str:
        """Name of a split's content as the model sees it: tokens, not labels."""
        tokens = self.tokens(split)
        return content_key(part for name in sorted(tokens) for part in (name, np.asarray(tokens[name]).tobytes()))

    def tokens(self, split: str) -> Arrays:
        """Token arrays of a split.

        Returns:
            ``input_ids (tokens,)``; ``offsets (samples + 1,)``; ``token_type_ids`` where the model has any; and, of
            words, ``words (tokens,)``: the word that a token begins, else -1.
        """
        if split not in self._tokens:
            examples = self._split(split)
            if self.cache_dir is None:
                self._tokens[split] = self._tokenise(examples)
            else:
                form = ("words" if self.words else "texts", "alone" if examples.pairs is None else "pairs")
                key = content_key(
                    ["tokens", self._tokenizer_text, str(self.max_length), *form]
                    + [text for key in examples.keys() for text in key]  # noqa: SIM118  (Not a mapping.)
                )

                def write(folder: Path) -> None:
                    for name, values in self._tokenise(examples).items():
                        np.save(folder / f"{name}.npy", values, allow_pickle=False)

                self._tokens[split] = cached_arrays(Path(self.cache_dir) / "tokens", key, write)
        return self._tokens[split]

    def order(self, split: str, batch_size: int) -> list[Rows]:
        """Rows of batches that hold every sample once, sorted by length so that hardly anything is padding."""
        return by_length(self.lengths(split), batch_size)

    def shuffled(self, split: str, batch_size: int, seed: int) -> Iterator[Rows]:
        """Rows of random batches without end: new epochs are shuffled anew, and batches hold samples of like length."""
        if not self.size(split):
            raise ValueError(f"split {split!r} must not be empty.")
        return shuffled(self.lengths(split), batch_size, seed)

    def batch(self, split: str, rows: Rows | Sequence[int]) -> dict[str, torch.Tensor]:
        """The model's inputs for these samples, padded to the longest: int64 tensors ``(samples, tokens)``."""
        import torch

        tokens = self.tokens(split)
        starts = tokens["offsets"][np.asarray(rows)]
        lengths = tokens["offsets"][np.asarray(rows) + 1] - starts
        columns = np.arange(int(lengths.max(initial=0)))
        mask = columns < lengths[:, None]
        places = np.where(mask, starts[:, None] + columns, 0)
        batch = {"input_ids": np.where(mask, tokens["input_ids"][places], self.tokenizer.pad_token_id or 0)}
        batch["attention_mask"] = mask
        if "token_type_ids" in tokens:
            batch["token_type_ids"] = np.where(mask, tokens["token_type_ids"][places], 0)
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in batch.items()}

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Every sample of a split once, as the model's inputs, sorted by length."""
        for rows in self.order(split, batch_size):
            yield self.batch(split, rows)

    def example_inputs(self, workload: Workload) -> dict[str, torch.Tensor]:
        """Inputs of a workload's sizes, ``(batch, sequence)``, filled with ordinary tokens: no padding, no accident."""
        import torch

        size = (workload.batch_size, workload.sequence_length)
        inputs = {"input_ids": ordinary_tokens(self.tokenizer, size)}
        inputs["attention_mask"] = torch.ones(size, dtype=torch.int64)
        if "token_type_ids" in self.tokenizer.model_input_names:
            inputs["token_type_ids"] = torch.zeros(size, dtype=torch.int64)
        return inputs

    @cached_property
    def _tokenizer_text(self) -> str:
        return tokenizer_text(self.tokenizer)

    def _split(self, split: str) -> Examples:
        if split not in self.examples:
            raise ValueError(f"`split` must be one of {', '.join(self.examples)}, but got {split!r}.")
        return self.examples[split]

    def _tokenise(self, examples: Examples) -> dict[str, NDArray[Any]]:
        texts: Any = [text.split(" ") for text in examples.texts] if self.words else list(examples.texts)
        encoded = self.tokenizer(
            texts,
            None if examples.pairs is None else list(examples.pairs),
            is_split_into_words=self.words,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
        )
        ids = [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
        arrays: dict[str, NDArray[Any]] = {
            "input_ids": np.concatenate(ids),
            "offsets": np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64),
        }
        if "token_type_ids" in encoded:
            arrays["token_type_ids"] = np.concatenate([np.asarray(r, dtype=np.int8) for r in encoded["token_type_ids"]])
        if self.words:
            arrays["words"] = np.concatenate([_word_starts(encoded.word_ids(row)) for row in range(len(ids))])
        return arrays


def tokenizer_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """A tokenizer's content: what a cache of tokens knows it by.

    Beside the vocabulary and its rules these are what `transformers` adds around them: which arrays a model reads (BERT
    and DistilBERT share a vocabulary, not ``token_type_ids``), and which end of a text is cut.
    """
    around = {name: getattr(tokenizer, name, None) for name in _AROUND_TOKENS}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = {name: value for name, value in tokenizer.init_kwargs.items() if name != "name_or_path"}
        return json.dumps(
            [type(tokenizer).__name__, around, rules, tokenizer.get_vocab()], sort_keys=True, default=repr
        )
    settings = json.loads(backend.to_str())
    # Both are state that every call of the tokenizer changes, not content.
    settings.pop("truncation", None)
    settings.pop("padding", None)
    return json.dumps([around, settings], sort_keys=True)


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase, size: tuple[int, int]) -> torch.Tensor:
    """Random tokens that are not special ones, int64 ``(batch, sequence)``, the same in every run."""
    import torch

    special = set(tokenizer.all_special_ids)
    ordinary = np.array([i for i in range(len(tokenizer)) if i not in special], dtype=np.int64)
    return torch.from_numpy(ordinary[np.random.default_rng(0).integers(0, len(ordinary), size)])


def _word_starts(word_ids: Sequence[int | None]) -> NDArray[np.int32]:
    before = [None, *word_ids[:-1]]
    starts = [-1 if own is None or own == last else own for own, last in zip(word_ids, before, strict=True)]
    return np.array(starts, dtype=np.int32)
