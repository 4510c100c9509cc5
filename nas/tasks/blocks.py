"""Running text as blocks of tokens: tokenised once, cut without overlap, split reproducibly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.tasks.batching import Rows, by_length, shuffled
from nas.tasks.cache import cached_arrays, content_key
from nas.tasks.data import Examples, TextData
from nas.tasks.samples import tokenizer_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# Tokens of one forward pass at most: more only costs memory.
_MOST_TOKENS = 8192
# Texts that are tokenised at a time.
_CHUNK = 10_000


@dataclass(frozen=True)
class BlockSamples:
    """The splits of running text as blocks of as many tokens each.

    Args:
        examples: The blocks by split; their texts are what their tokens say.
        blocks: Tokens by split, ``(blocks, block_size)``.
    """

    examples: Mapping[str, Examples]
    blocks: Mapping[str, NDArray[np.int32]]

    @property
    def max_length(self) -> int:
        """Tokens of a block."""
        return int(next(iter(self.blocks.values())).shape[1])

    def size(self, split: str) -> int:
        """How many blocks a split has."""
        return len(self.tokens(split))

    def tokens(self, split: str) -> NDArray[np.int32]:
        """A split's tokens, ``(blocks, block_size)``."""
        if split not in self.blocks:
            raise ValueError(f"`split` must be one of {', '.join(self.blocks)}, but got {split!r}.")
        return self.blocks[split]

    def offsets(self, split: str) -> NDArray[np.int64]:
        """Where each block's tokens begin among the split's, ``(blocks + 1,)``."""
        return np.arange(self.size(split) + 1, dtype=np.int64) * self.max_length

    def labels(self, split: str) -> None:
        """No labels: the tokens themselves are what is predicted."""

    def groups(self, split: str) -> Mapping[str, tuple[str, ...]]:
        """Running text has no groups."""
        return self.examples[split].groups

    def fingerprint(self, split: str) -> str:
        """Name of a split's content as the model sees it."""
        return content_key(["blocks", str(self.max_length), self.tokens(split).tobytes()])

    def order(self, split: str, batch_size: int) -> list[Rows]:
        """Rows of batches that hold every block once; batches of long blocks are smaller than asked for."""
        return by_length(self._lengths(split), min(batch_size, max(1, _MOST_TOKENS // self.max_length)))

    def shuffled(self, split: str, batch_size: int, seed: int) -> Iterator[Rows]:
        """Rows of random batches without end: new epochs are shuffled anew."""
        return shuffled(self._lengths(split), batch_size, seed)

    def batch(self, split: str, rows: Rows | Sequence[int]) -> dict[str, torch.Tensor]:
        """The model's inputs for these blocks: int64 tensors ``(blocks, block_size)``, all of them real tokens."""
        import torch

        ids = torch.from_numpy(self.tokens(split)[np.asarray(rows)].astype(np.int64))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Every block of a split once, as the model's inputs."""
        for rows in self.order(split, batch_size):
            yield self.batch(split, rows)

    def _lengths(self, split: str) -> NDArray[np.int64]:
        return np.zeros(self.size(split), dtype=np.int64)


def read_blocks(
    data: TextData,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    separator: str = "\n",
    cache_dir: str | Path | None = None,
) -> BlockSamples:
    """Read running text, and cut it into blocks and these into splits.

    Texts are joined in their order; what is left at the end of a split of the source, less than a block, is dropped. A
    tokenizer that puts a token before every text puts it before every block.

    Args:
        data: Where the text lies; its numbers of samples are numbers of blocks.
        tokenizer: A tokenizer of `transformers`.
        block_size: Tokens of a block.
        separator: What stands between two texts.
        cache_dir: Where tokens are kept between runs; None keeps them in memory only.

    Raises:
        FileNotFoundError, ValueError: As `TextData.read`, in blocks instead of texts; or a split's text has fewer
            tokens than a block.
    """
    prefix = _prefix(tokenizer)
    given: dict[str, Examples] = {}
    found: dict[str, NDArray[np.int32]] = {}
    for split, examples in data.given().items():
        stream = _tokens(examples.texts, tokenizer, separator, cache_dir)
        own = block_size - len(prefix)
        if len(stream) < own:
            raise ValueError(
                f"{data.name}: `block_size` must be at most the text's number of tokens, but split {split!r} has "
                f"{len(stream)} and a block {block_size}. Give more text or smaller blocks."
            )
        body = stream[: len(stream) // own * own].reshape(-1, own)
        start = np.broadcast_to(np.array(prefix, dtype=np.int32), (len(body), len(prefix)))
        found[split] = np.concatenate([start, body], axis=1)
        # What a block is known by when splits are cut, and blocks that occur twice are left out.
        keys = tuple(content_key([row.tobytes()]) for row in found[split])
        given[split] = Examples(keys, np.arange(len(keys), dtype=np.int64))
    places = {key: (split, row) for split, one in given.items() for row, key in enumerate(one.texts)}
    kept: dict[str, Examples] = {}
    blocks: dict[str, NDArray[np.int32]] = {}
    for split, some in data.cut(given, f"{data.name} in blocks of {block_size} tokens").items():
        blocks[split] = np.stack([found[source][row] for source, row in map(places.__getitem__, some.texts)])
        kept[split] = Examples(tuple(tokenizer.batch_decode(blocks[split])), some.rows)
    return BlockSamples(kept, blocks)


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before every text."""
    with_special, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    begin = next((at for at in range(len(with_special)) if with_special[at : at + len(bare)] == bare), 0)
    return list(with_special[:begin])


def _tokens(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, separator: str, cache_dir: str | Path | None
) -> NDArray[np.int32]:
    """All texts' tokens, one after the other."""

    def tokenise() -> NDArray[np.int32]:
        rows: list[Any] = []
        for start in range(0, len(texts), _CHUNK):
            some = [f"{text}{separator}" for text in texts[start : start + _CHUNK]]
            rows += tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])

    if cache_dir is None:
        return tokenise()
    key = content_key(["stream", tokenizer_text(tokenizer), separator, *texts])

    def write(folder: Path) -> None:
        np.save(folder / "input_ids.npy", tokenise(), allow_pickle=False)

    return np.asarray(cached_arrays(Path(cache_dir) / "tokens", key, write)["input_ids"])
