"""Small, reproducible changes of English text that people would read past: typos, case, spacing, contractions.

Every word draws its own fate from a hash of seed, kind and text, and is changed where its draw is below the strength:
so a text is changed alike in every data set and order, and a stronger change includes the weaker one. The catalogue
follows TextFlint (Gui et al. 2021, arXiv 2103.11441) and CheckList (Ribeiro et al. 2020, arXiv 2005.04118).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: "".join(
        _ROWS[other][at]
        for other in (row - 1, row, row + 1)
        if 0 <= other < len(_ROWS)
        for at in range(column - 1, column + 2)
        if 0 <= at < len(_ROWS[other]) and _ROWS[other][at] != letter
    )
    for row, letters in enumerate(_ROWS)
    for column, letter in enumerate(letters)
}
# Only forms that say the same either way; "he's" may be "he has" and is left alone, "won't" is the one odd spelling.
_CONTRACTIONS = {
    **{f"{verb} not": f"{verb}n't" for verb in ("do", "does", "did", "is", "are", "was", "were", "has", "have", "had")},
    **{f"{verb} not": f"{verb}n't" for verb in ("would", "could", "should", "must", "need")},
    "can not": "can't", "cannot": "can't", "will not": "won't", "I am": "I'm", "let us": "let's",
    **{f"{who} are": f"{who}'re" for who in ("you", "we", "they")},
    **{f"{who} will": f"{who}'ll" for who in ("I", "you", "he", "she", "it", "we", "they", "that", "there")},
    **{f"{who} have": f"{who}'ve" for who in ("I", "you", "we", "they")},
    **{f"{who} is": f"{who}'s" for who in ("that", "what", "there", "here", "where")},
}  # fmt: skip
_EXPANSIONS = {short: long for long, short in reversed(_CONTRACTIONS.items())}
_FORMS = re.compile(
    rf"\b({'|'.join(sorted(map(re.escape, {**_CONTRACTIONS, **_EXPANSIONS}), key=len, reverse=True))})\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Draw:
    """A word's fate: whether it is changed (below the strength), and two numbers in [0, 1) that say how."""

    fate: float
    where: float
    how: float


def perturb(text: str, kind: str, strength: float, seed: int = 0) -> str:
    """A text with some of its words changed.

    Args:
        text: Any text; words are what spaces separate.
        kind: One of `KINDS`.
        strength: Share of the words that are changed, on average; of contractions, of the places that can be.
        seed: Of the draw.

    Raises:
        ValueError: The kind is unknown, or the strength is not a share.
    """
    if kind not in KINDS:
        raise ValueError(f"`kinds` must be among {', '.join(KINDS)}, but got {kind!r}.")
    if not 0 <= strength <= 1:
        raise ValueError(f"`strengths` must be shares between 0 and 1, but got {strength!r}.")
    return _CHANGES[kind](text, strength, _generator(text, kind, seed))


def _generator(text: str, kind: str, seed: int) -> random.Random:
    data = f"{seed}\0{kind}\0{text}".encode("utf-8", "surrogatepass")
    # `random()` of this generator is the same in all versions of Python; nothing else of it is used.
    return random.Random(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))  # noqa: S311


def _draw(generator: random.Random) -> _Draw:
    return _Draw(generator.random(), generator.random(), generator.random())


def _words(change: Callable[[str, _Draw], str]) -> Callable[[str, float, random.Random], str]:
    """What changes words one by one, and leaves the spaces between them."""

    def changed(text: str, strength: float, generator: random.Random) -> str:
        parts = re.split(r"(\s+)", text)
        draws = [_draw(generator) for _ in parts[::2]]
        parts[::2] = [
            change(word, draw) if word and draw.fate < strength else word
            for word, draw in zip(parts[::2], draws, strict=True)
        ]
        return "".join(parts)

    return changed


def _at(share: float, places: int) -> int:
    return min(int(share * places), places - 1)


def _typo(word: str, draw: _Draw) -> str:
    """One slip inside the word: two letters swapped, one left out, or one doubled."""
    places = [at for at in range(len(word) - 1) if word[at].isalpha() and word[at + 1].isalpha()]
    if len(word) < 3 or not places:
        return word
    at = places[_at(draw.where, len(places))]
    if draw.how < 1 / 3:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at + 1 :] if draw.how < 2 / 3 else word[:at] + word[at] + word[at:]


def _keyboard(word: str, draw: _Draw) -> str:
    """One letter replaced by one beside it on a QWERTY keyboard."""
    places = [at for at, letter in enumerate(word) if letter.lower() in _NEIGHBOURS]
    if not places:
        return word
    at = places[_at(draw.where, len(places))]
    near = _NEIGHBOURS[word[at].lower()]
    letter = near[_at(draw.how, len(near))]
    return word[:at] + (letter.upper() if word[at].isupper() else letter) + word[at + 1 :]


def _case(word: str, draw: _Draw) -> str:
    """The word in capitals, in small letters, or with its case turned round."""
    return (str.upper, str.lower, str.swapcase)[_at(draw.how, 3)](word)


def _spacing(text: str, strength: float, generator: random.Random) -> str:
    """A space lost between two words, or one slipped into a word."""
    words, pieces = text.split(" "), []
    for index, word in enumerate(words):
        draw, space = _draw(generator), " " if index else ""
        if draw.fate < strength and draw.how < 0.5:
            space = ""
        elif draw.fate < strength and len(word) > 1:
            at = 1 + _at(draw.where, len(word) - 1)
            word = f"{word[:at]} {word[at:]}"  # noqa: PLW2901
        pieces += [space, word]
    return "".join(pieces)


def _word_drop(text: str, strength: float, generator: random.Random) -> str:
    """Words left out; one always stays."""
    words = text.split(" ")
    draws = [_draw(generator).fate for _ in words]
    kept = [word for word, fate in zip(words, draws, strict=True) if fate >= strength]
    return " ".join(kept or [words[max(range(len(words)), key=draws.__getitem__)]])


def _contractions(text: str, strength: float, generator: random.Random) -> str:
    """``do not`` as ``don't`` and the other way round."""

    def change(match: re.Match[str]) -> str:
        found, draw = match[0], _draw(generator)
        if draw.fate >= strength:
            return found
        other = _other_form(found)
        if found.isupper() and len(found) > 1:
            return other.upper()
        return other[0].upper() + other[1:] if found[0].isupper() else other

    return _FORMS.sub(change, text)


def _other_form(found: str) -> str:
    for forms in (_CONTRACTIONS, _EXPANSIONS):
        for form, other in forms.items():
            if form.lower() == found.lower():
                return other
    raise AssertionError(found)


_CHANGES: Mapping[str, Callable[[str, float, random.Random], str]] = {
    "typos": _words(_typo),
    "keyboard": _words(_keyboard),
    "case": _words(_case),
    "spacing": _spacing,
    "contractions": _contractions,
    "word_drop": _word_drop,
}
KINDS: tuple[str, ...] = tuple(_CHANGES)
# Those after which a text has the words that it had, one by one: others would break a tag a word.
WORD_BY_WORD: tuple[str, ...] = ("typos", "keyboard", "case")
