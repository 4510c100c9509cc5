"""Whether a model decides alike whoever is spoken of: identity terms are exchanged, and nothing else.

Counterfactual token fairness (Garg et al. 2019, arXiv 1809.10610): a text that names one group is read again with the
terms of every other. What a text means may change with them; the user's list says which terms stand for each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import SHARE, Measure, Rows, ratio_of


@dataclass(frozen=True)
class Substitution:
    """Terms by group; terms at the same place stand for each other.

    Args:
        terms: Group -> its terms, as many in each: ``{women: [she, her, woman], men: [he, his, man]}``; a text is one
            term: ``{women: mom, men: dad}``. A term that stands at several places of one group is read as the first of
            them.

    Raises:
        ValueError: Groups are no names of lists, there are fewer than two, they differ in length, or two share a term.
    """

    terms: Mapping[str, Sequence[str] | str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", _lists(self.terms))
        if len(self.terms) < 2:
            raise ValueError(f"`terms` must name at least 2 groups, but names {len(self.terms)}.")
        lengths = {group: len(terms) for group, terms in self.terms.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            found = ", ".join(f"{length} of {group}" for group, length in lengths.items())
            raise ValueError(f"`terms` must be as many in every group, but there are {found}.")
        owners: dict[str, str] = {}
        for group, terms in self.terms.items():
            for term in terms:
                if not str(term).strip():
                    raise ValueError(f"`terms` must not be empty, but one of {group!r} is.")
                if owners.setdefault(str(term).lower(), group) != group:
                    raise ValueError(f"`terms` must belong to one group, but {term!r} is in two.")

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(self.terms)

    def mentions(self, text: str) -> bool:
        """Whether a text has any of the terms, as whole words."""
        return self._pattern.search(text) is not None

    def __call__(self, text: str, group: str) -> str:
        """The text with every term replaced by the group's own; capitals stay where they are."""

        def other(match: re.Match[str]) -> str:
            term = str(self.terms[group][self._places[match[0].lower()]])
            if match[0].isupper() and len(match[0]) > 1:
                return term.upper()
            return term[0].upper() + term[1:] if match[0][0].isupper() else term

        return self._pattern.sub(other, text)

    @cached_property
    def _places(self) -> dict[str, int]:
        places: dict[str, int] = {}
        for terms in self.terms.values():
            for place, term in enumerate(terms):
                places.setdefault(str(term).lower(), place)
        return places

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._places, key=len, reverse=True)
        return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)


def _lists(terms: Any) -> dict[str, tuple[str, ...]]:
    """Terms by group, each group's as a list."""
    form = "{women: [she, her], men: [he, his]}"
    if not isinstance(terms, Mapping):
        raise ValueError(f"`evaluation.fairness.terms` must be terms by group, such as {form}, but got {terms!r}.")
    found = {}
    for group, own in terms.items():
        listed = [own] if isinstance(own, str) else own
        if not isinstance(listed, list | tuple) or any(isinstance(term, list | tuple | Mapping) for term in listed):
            raise ValueError(
                f"`evaluation.fairness.terms` must list every group's terms, such as {form}, but {group!r} is {own!r}."
            )
        found[str(group)] = tuple(map(str, listed))
    return found


def substitution_rows(by_group: Sequence[Rows]) -> Rows:
    """Rows of the same texts under every group's terms, compared.

    Args:
        by_group: Rows of a classifier, one table a group, in the same order of texts.

    Returns:
        For every text, ``flips``: whether its decision depends on the group; ``distance``: the mean total variation
        distance of its probabilities between two groups, in [0, 1].
    """
    chosen = np.stack([np.asarray(rows["chosen"]).reshape(len(rows["chosen"]), -1) for rows in by_group])
    flips = (chosen != chosen[0]).any(axis=(0, 2)).astype(np.float64)
    distances = [
        _total_variation(by_group[first], by_group[second])
        for first in range(len(by_group))
        for second in range(first + 1, len(by_group))
    ]
    return {"flips": flips, "distance": np.mean(distances, axis=0)}


def _total_variation(first: Rows, second: Rows) -> NDArray[np.float64]:
    difference = np.abs(first["probabilities"] - second["probabilities"])
    # Several labels have a distribution each, of which a probability is one half.
    return np.asarray(difference.mean(axis=1) if first["labels"].ndim == 2 else difference.sum(axis=1) / 2)


COUNTERFACTUAL: tuple[Measure, ...] = (
    ratio_of("flip_rate", "flips", higher_is_better=False, span=SHARE),
    ratio_of("counterfactual_gap", "distance", higher_is_better=False, span=SHARE),
)
