"""Quality metrics of taggers: a class a word, and the entities that tags spell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import POSITIVE, SHARE, Floats, Measure, Rows, macro_f1, ratio_of

_IGNORED = -100


def token_rows(student: Floats, teacher: Floats, labels: NDArray[np.int64], tags: tuple[str, ...]) -> Rows:
    """Rows of sentences whose words have a tag each.

    Args:
        student: Logits, ``(samples, tokens, tags)``.
        teacher: The reference's logits.
        labels: True tags, ``(samples, tokens)``; -100 where a token does not begin a word.
        tags: Their names; entities are read from names such as ``B-PER`` and ``I-PER``.

    Returns:
        For every sample: ``words``, and how many of them are ``correct`` and which ``agrees`` with the teacher's;
        ``kl`` summed over its words; ``entity_hits`` (twice the entities found) of ``entities`` (those that are there
        and those that were claimed), whose ratio is the entity-level F1; ``labels`` and ``chosen``.
    """
    from scipy.special import log_softmax, softmax

    real, chosen, reference = labels != _IGNORED, student.argmax(axis=2), teacher.argmax(axis=2)
    own, other = log_softmax(student, axis=2), log_softmax(teacher, axis=2)
    kl = (softmax(teacher, axis=2) * (other - own)).sum(axis=2)
    hits, entities = _entities(chosen, labels, tags)
    return {
        "labels": labels,
        "chosen": chosen,
        "words": real.sum(axis=1),
        "correct": ((chosen == labels) & real).sum(axis=1),
        "agrees": ((chosen == reference) & real).sum(axis=1),
        "kl": np.where(real, kl, 0.0).sum(axis=1),
        "entity_hits": hits,
        "entities": entities,
    }


def _entities(
    chosen: NDArray[np.int64], labels: NDArray[np.int64], tags: tuple[str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from seqeval.metrics.sequence_labeling import get_entities

    hits, entities = np.zeros(len(labels), dtype=np.int64), np.zeros(len(labels), dtype=np.int64)
    if not all(tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-") for tag in tags):
        return hits, entities  # Tags without spans, such as parts of speech.
    for row, (claimed, true) in enumerate(zip(chosen, labels, strict=True)):
        words = true != _IGNORED
        found, there = (set(get_entities([tags[tag] for tag in side[words]])) for side in (claimed, true))
        hits[row], entities[row] = 2 * len(found & there), len(found) + len(there)
    return hits, entities


def _tag_macro_f1(rows: Rows) -> float:
    real = rows["labels"] != _IGNORED
    return macro_f1({"labels": rows["labels"][real], "chosen": rows["chosen"][real]})


TOKENS = (
    ratio_of("entity_f1", "entity_hits", "entities", span=SHARE),
    ratio_of("accuracy", "correct", "words", span=SHARE),
    Measure("macro_f1", _tag_macro_f1, span=SHARE),
    ratio_of("agreement", "agrees", "words", agreement=True, span=SHARE),
    ratio_of("kl", "kl", "words", agreement=True, higher_is_better=False, span=POSITIVE),
)
