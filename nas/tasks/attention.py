"""Queries, keys and values of a model while it runs: what self-attention relations are computed of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from search_spaces.families import ModelFamily, blocks_of, family_of
from search_spaces.modeling_subnet import Absent

QUERIES, KEYS, VALUES = "queries", "keys", "values"
ATTENTION = (QUERIES, KEYS, VALUES)
# Whether tokens see only the tokens before them: beside the three in a model's outputs.
CAUSAL = "causal"


@contextmanager
def attention_outputs(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Where a model runs, a dictionary that it fills with outputs of its last block that has attention.

    These are ``queries``, ``keys`` and ``values``, ``(samples, tokens, width)``, all heads one after the other, as the
    projections give them: before positions turn them. Keys and values are narrower than queries where these share them.
    Beside them is ``causal``, whether tokens see only the tokens before them.

    Args:
        model: A `transformers` model of a known family, whose projections may be factored or elastic.
        names: Outputs that are wanted; without one of the three, the model is not touched.

    Raises:
        ValueError: No block has attention, or the family is unknown.
    """
    seen: dict[str, Tensor] = {}
    if not set(ATTENTION) & set(names):
        yield seen
        return
    family = family_of(model)
    block = last_with_attention(model)
    paths: dict[str, list[str]] = {}
    for name, path in zip(ATTENTION, (family.query, family.key, family.value), strict=True):
        paths.setdefault(path, []).append(name)
    handles = [
        block.get_submodule(path).register_forward_hook(_keep(held, seen, family)) for path, held in paths.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def last_with_attention(model: nn.Module) -> nn.Module:
    """The last block whose attention was not left out.

    Raises:
        ValueError: None has attention.
    """
    family = family_of(model)
    for block in reversed(blocks_of(model)):
        if not isinstance(block.get_submodule(family.attention), Absent):
            return block
    raise ValueError("distiller: `relations` must be 0 for a subnet without attention, but no block of one has any.")


def _keep(names: list[str], seen: dict[str, Tensor], family: ModelFamily) -> Callable[..., None]:
    def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        # One matrix for all three holds their rows one after the other, as many of each.
        seen.update(zip(names, output.chunk(len(names), dim=-1), strict=True))
        seen[CAUSAL] = torch.tensor(family.causal)

    return hook
