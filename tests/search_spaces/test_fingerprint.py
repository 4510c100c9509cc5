"""What caches know a model by."""

from __future__ import annotations

import copy

from search_spaces.library import model_fingerprint, model_hash
from tests.models import tiny_bert


def test_a_fingerprint_sees_weights_and_settings_but_no_place() -> None:
    model, weights = tiny_bert(), tiny_bert(seed=1)
    other = copy.deepcopy(model)
    other.config._name_or_path = "elsewhere"
    assert model_fingerprint(other) == model_fingerprint(model)
    other.config.hidden_act = "relu"
    assert model_hash(other) == model_hash(model)
    assert len({model_fingerprint(one) for one in (model, other, weights)}) == 3
