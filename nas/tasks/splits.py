"""Cutting samples into disjoint splits that are the same in every run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from nas.tasks.data import Examples

Split = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
_ALIASES = {"dev": "validation", "valid": "validation", "eval": "validation", "training": "train", "testing": "test"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cut:
    """How large the splits are.

    Args:
        train: Most samples in train; None means all that are left.
        calibration, validation, test: Samples to cut when the source has no such split; a fraction below 1 is a share
            of the different samples. Splits that the source brings are cut down to a number given here.
        seed: Of the cut.

    Raises:
        ValueError: A size is neither a share in (0, 1) nor a number of samples, or the seed is no whole number.
    """

    train: int | float | None
    calibration: int | float
    validation: int | float
    test: int | float
    seed: int

    def __post_init__(self) -> None:
        for name in SPLITS:
            value = getattr(self, name)
            if not (value is None and name == "train") and not _is_size(value):
                raise ValueError(
                    f"`task.data.{name}` must be a number of samples, 1 or more, or a share of all of them, between 0 "
                    f"and 1, but got {value!r}."
                )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"`task.data.seed` must be a whole number, but got {self.seed!r}.")

    def __call__(self, given: Mapping[str, Examples], name: str) -> dict[str, Examples]:
        """Four disjoint splits of those that the source brings; samples that occur more than once are kept once.

        Args:
            given: ``train``, and whatever else there is.
            name: The source's, for messages.

        Raises:
            ValueError: There are too few samples.
        """
        seen: set[tuple[str, str]] = set()
        unique = {split: _without_repeats(given[split], seen) for split in reversed(SPLITS) if split in given}
        repeats = sum(map(len, given.values())) - sum(map(len, unique.values()))
        if repeats:
            _log.info("%s: %d samples that occur more than once were dropped.", name, repeats)
        splits = self._cut(unique, name)
        for split, examples in splits.items():
            if not len(examples):
                raise ValueError(f"{name}: split {split!r} must not be empty, but has no sample left.")
        return splits

    def _cut(self, unique: Mapping[str, Examples], name: str) -> dict[str, Examples]:
        total = sum(map(len, unique.values()))
        splits = {
            split: examples.take(_shuffled(examples, self.seed)[: self._most(split)])
            for split, examples in unique.items()
            if split != "train"
        }
        pool = unique["train"].take(_shuffled(unique["train"], self.seed))
        missing = [split for split in reversed(SPLITS) if split not in splits and split != "train"]
        needed = sum(self._size(split, total) for split in missing) + 1
        if len(pool) < needed:
            sizes = ", ".join(f"{split} {self._size(split, total)}" for split in missing)
            raise ValueError(
                f"{name}: the splits ({sizes}, and train) need at least {needed} different samples, but there are "
                f"{len(pool)}. Give more data or smaller splits; shares hold for any size: "
                + " ".join(f"task.data.{split}=0.2" for split in missing)
            )
        start = 0
        for split in missing:
            size = self._size(split, total)
            splits[split] = pool.take(range(start, start + size))
            start += size
        splits["train"] = pool.take(range(start, min(len(pool), start + self._size("train", total))))
        return {split: splits[split] for split in SPLITS}

    def _most(self, split: str) -> int | None:
        """What a split that the source brings is cut to: a number of samples; a share is of sources without it."""
        value = getattr(self, split)
        return int(value) if value is not None and value >= 1 else None

    def _size(self, split: str, total: int) -> int:
        value = getattr(self, split)
        if value is None:
            return total
        return max(1, round(value * total)) if value < 1 else int(value)


def _is_size(value: Any) -> bool:
    """Whether it is a share or a count; ``1.0`` could be either and is none, but ``1e3`` can only be a count."""
    if isinstance(value, float):
        return 0 < value < 1 or (value > 1 and value.is_integer())
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def named_splits(tables: Mapping[str, Any], splits: Mapping[str, str] | None, name: str) -> dict[str, Any]:
    """A source's tables under our names for splits; a source without splits is all train.

    Args:
        tables: By the source's names.
        splits: Our split -> the source's name for it, or None where the names say it.
        name: The source's, for messages.

    Raises:
        ValueError: A split is not there, or there is no train split.
    """
    if set(tables) == {""}:
        return {"train": tables[""]}
    if splits is not None:
        if missing := sorted(set(splits.values()) - set(tables)):
            raise ValueError(f"{name}: split {missing[0]!r} is not there; there are {listed(tables)}.")
        tables = {ours: tables[theirs] for ours, theirs in splits.items()}
    named = {_ALIASES.get(split, split): table for split, table in tables.items()}
    known = {split: table for split, table in named.items() if split in SPLITS}
    if "train" not in known:
        raise ValueError(
            f"{name}: there must be a train split, but there are {listed(tables)}. "
            "Say which one it is with `splits: {train: NAME}`."
        )
    return known


def check_split_names(splits: Mapping[str, str] | None) -> None:
    """Check that our names for splits are ours.

    Raises:
        ValueError: One is not.
    """
    if splits is not None and not isinstance(splits, Mapping):
        raise ValueError(
            f"`task.data.splits` must give the source's names, such as {{validation: dev_matched}}, but got {splits!r}."
        )
    for name in splits or {}:
        if name not in SPLITS:
            raise ValueError(f"`task.data.splits` must name {', '.join(SPLITS)}, but got {name!r}.")


def listed(names: Any) -> str:
    """Names in quotes, with commas between them."""
    return ", ".join(repr(str(name)) for name in names)


def _without_repeats(examples: Examples, seen: set[tuple[str, str]]) -> Examples:
    keep = []
    for position, key in enumerate(examples.keys()):
        if key not in seen:
            seen.add(key)
            keep.append(position)
    return examples.take(keep)


def _shuffled(examples: Examples, seed: int) -> list[int]:
    """Positions in the order of a hash of seed and text: an order that neither rows nor other samples change."""

    def digest(key: tuple[str, str]) -> bytes:
        return hashlib.blake2b("\0".join((str(seed), *key)).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    digests = [digest(key) for key in examples.keys()]  # noqa: SIM118  (Not a mapping.)
    return sorted(range(len(digests)), key=digests.__getitem__)
