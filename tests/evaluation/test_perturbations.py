"""Perturbations against golden strings, and what they promise of every text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.evaluation.perturbations import KINDS, WORD_BY_WORD, perturb

TEXT = "I do not think that it's what you would expect, but we'll see: Cannot the Quick brown fox jump?"
GOLDEN = {
    "typos": {
        0.3: "I do not thnik tht it's what oyu would expect, but wwe'll see: Cannot the Quick brown fox jump?",
        1.0: "I do ont thnik tht iit's wat oyu woud exepct, btu wwe'll seee: Cannnot tthe uick bbrown ox jupm?",
    },
    "keyboard": {
        0.3: "J so not thimk that it'q wtat uou woulv expect, but we'll see: Camnot the Quick brown fix jukp?",
        1.0: "J so hot thimk ghat it'q wtat uou woulv exlect, hut we'lp aee: Camnot tue Qhick brlwn fix jukp?",
    },
    "case": {
        0.3: "I do NOT think that it's what you would EXPECT, but we'll see: Cannot the Quick brown fox jump?",
        1.0: "I DO NOT think that IT'S WHAT you would EXPECT, BUT WE'LL SEE: CANNOT THE qUICK BROWN FOX JUMP?",
    },
    "spacing": {
        0.3: "Ido not think that it's what you would expect, butwe'llsee: Cannot the Quick brown fo x jump?",
        1.0: "Ido no t th ink t hatit'swhat yo u woul dexpect,butwe'llsee:CannottheQuick br own fo xjump?",
    },
    "contractions": {
        0.3: "I do not think that it's what you would expect, but we will see: Cannot the Quick brown fox jump?",
        1.0: "I don't think that it's what you would expect, but we will see: Can't the Quick brown fox jump?",
    },
    "word_drop": {
        0.3: "do not that it's what you but we'll Cannot the Quick fox jump?",
        1.0: "fox",
    },
}
TEXTS = st.text(st.sampled_from("abcde XYZ'.,!do notI am can't  \n"), max_size=60)


@pytest.mark.parametrize(("kind", "strength"), [(kind, strength) for kind in GOLDEN for strength in GOLDEN[kind]])
def test_golden(kind: str, strength: float) -> None:
    assert perturb(TEXT, kind, strength) == GOLDEN[kind][strength]


def test_every_kind_has_golden_strings() -> None:
    assert set(GOLDEN) == set(KINDS)


@given(TEXTS, st.sampled_from(KINDS), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_nothing_changes_at_strength_0_and_the_seed_repeats(text: str, kind: str, seed: int) -> None:
    assert perturb(text, kind, 0.0, seed) == text
    assert perturb(text, kind, 0.6, seed) == perturb(text, kind, 0.6, seed)


@given(st.lists(st.sampled_from(["some", "words", "Don't", "stay", "x", "it's", "fox,"]), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None)
def test_a_stronger_change_includes_the_weaker(words: list[str]) -> None:
    text = " ".join(words)
    for kind in WORD_BY_WORD:
        weak, strong = (perturb(text, kind, strength).split(" ") for strength in (0.3, 0.8))
        assert len(weak) == len(strong) == len(words)
        for old, one, other in zip(words, weak, strong, strict=True):
            assert one in (old, other)
    kept = perturb(text, "word_drop", 0.8).split(" ")
    more = iter(perturb(text, "word_drop", 0.3).split(" "))
    assert all(word in more for word in kept)


@given(TEXTS, st.floats(0.1, 1.0))
@settings(max_examples=80, deadline=None)
def test_what_changes_word_by_word_keeps_the_spaces(text: str, strength: float) -> None:
    spaces = [character for character in text if character.isspace()]
    for kind in WORD_BY_WORD:
        assert [c for c in perturb(text, kind, strength) if c.isspace()] == spaces


@given(TEXTS)
@settings(max_examples=80, deadline=None)
def test_case_and_spacing_keep_the_letters(text: str) -> None:
    assert perturb(text, "case", 1.0).lower() == text.lower()
    assert perturb(text, "spacing", 1.0).replace(" ", "") == text.replace(" ", "")


def test_strength_is_the_share_of_words() -> None:
    words = [f"word{index}" for index in range(3000)]
    text = " ".join(words)
    for kind in ("typos", "keyboard"):
        changed = sum(old != new for old, new in zip(words, perturb(text, kind, 0.2).split(" "), strict=True))
        assert changed / 3000 == pytest.approx(0.2, abs=0.03)
    assert len(perturb(text, "word_drop", 0.2).split(" ")) / 3000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I do not know", "I don't know"),
        ("You WON'T", "You WILL NOT"),
        ("It isn't so, and that is that.", "It is not so, and that's that."),
        ("She'll go; let us stay", "She will go; let's stay"),
        ("donut notice", "donut notice"),
        ("", ""),
    ],
)
def test_contractions(text: str, expected: str) -> None:
    assert perturb(text, "contractions", 1.0) == expected


def test_words_of_other_alphabets_are_left_as_they_are() -> None:
    assert perturb("日本 語", "keyboard", 1.0) == "日本 語"


@pytest.mark.parametrize(("kind", "strength"), [("noise", 0.1), ("typos", 1.5), ("typos", -0.1)])
def test_mistakes(kind: str, strength: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        perturb("x", kind, strength)
