"""One pass over unlabelled data, and out of it everything that pruning without training needs.

The result is a `Library`: for every width level of every block the compensated projections, and for every level that
the space factorises the whitened factors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from search_spaces.families import FAMILIES, blocks_of, family_of
from search_spaces.fisher import Gradients, unit_gradients
from search_spaces.importance import Importance
from search_spaces.layout import layouts
from search_spaces.library import LIBRARY_VERSION, Library
from search_spaces.observe import observe, passes
from search_spaces.residual_fit import fit_residual, read_places
from search_spaces.space import SearchSpace
from search_spaces.variants import BlockVariants


@torch.inference_mode()
def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    space: SearchSpace,
    *,
    importance: Importance = "obs",
    max_gb: float = 4.0,
    on_batch: Callable[[int], None] | None = None,
    on_block: Callable[[int], None] | None = None,
) -> Library:
    """Build the library of a teacher for a space.

    Args:
        model: The teacher, a `transformers` model of a known family.
        batches: Inputs of the model; ``attention_mask`` tells which tokens count, other keys go to the model.
        space: Which levels and ranks to prepare.
        importance: In which order units are kept; see `unit_order`.
        max_gb: Refuse to build a larger library.
        on_batch: Called with the number of batches seen; a large model sees them several times (`passes`).
        on_block: Called with the number of blocks prepared; again for every width of the residual stream below the
            teacher's.

    Raises:
        ValueError: No token was seen, or too few, a weight or activation is not finite, or the library would be too
            large.
    """
    check_size(space, max_gb)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            of = getattr(model.config, "name_or_path", "") or "teacher"
            raise ValueError(f"{of}: weights must be finite, but {name!r} holds NaN or infinity.")
    tensors: dict[str, Tensor] = {}
    family, rows, batches, places = family_of(model), 0, list(batches), []
    for group in passes(space.shape):
        seen = dict(zip(group, observe(model, batches, group, on_batch), strict=True))
        gradients: list[Gradients] = [{} for _ in group]
        if importance == "fisher":
            gradients = unit_gradients(model, batches, space.shape, seen)
        for (index, observed), of_gates in zip(seen.items(), gradients, strict=True):
            block, rows = blocks_of(model)[index], observed.both("qkv").count
            variants = BlockVariants(index, block, family, space, observed, importance, of_gates)
            try:
                tensors |= variants.tensors()
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise ValueError(
                    f"calibration must see more than {rows} tokens, which are too few to fit block {index} of hidden "
                    f"size {space.shape.hidden_size}. Give more of them, with `task.data.calibration`."
                ) from error
            places += read_places(block, family, observed) if space.narrower else []
            if on_block:
                on_block(index + 1)
    if space.narrower:
        tensors |= fit_residual(model, batches, space, places, importance, on_block)
    metadata = {
        "version": LIBRARY_VERSION,
        "importance": importance,
        "space": json.dumps(space.to_dict(), sort_keys=True),
        "rows": str(rows),
    }
    return Library(tensors, metadata)


def count_steps(space: SearchSpace, batches: int) -> int:
    """How often `calibrate` will call ``on_batch`` and ``on_block`` together."""
    return batches * len(passes(space.shape)) + space.shape.num_blocks * (1 + len(space.narrower))


def library_gb(space: SearchSpace) -> float:
    """How large the library of a space will be, in GB (10^9 bytes) of fp32."""
    family = next(row for row in FAMILIES if row.name == space.shape.family)
    numbers = 0
    for index, full in enumerate(space.teacher.blocks):
        for path, whole in layouts(family, space.shape, full).items():
            numbers += 0 if whole.writes else whole.inputs * whole.outputs
            for width in space.widths(whole.dimension, index):
                layout = layouts(family, space.shape, width)[path]
                inputs, outputs = layout.inputs, layout.outputs
                numbers += inputs * outputs if whole.writes and inputs < whole.inputs else 0
                numbers += space.largest_rank(layout.rank_dimension, index, inputs, outputs) * (inputs + outputs)
    shape = space.shape
    # A map at each of two places in every block and one in the end; norms are small beside them.
    numbers += sum((2 * shape.num_blocks + 1) * shape.hidden_size * size for size in space.narrower)
    return 4 * numbers / 1e9


def check_size(space: SearchSpace, max_gb: float) -> None:
    """Refuse a space whose library would be too large.

    Raises:
        ValueError: It would be larger than ``max_gb``.
    """
    if (size := library_gb(space)) > max_gb:
        raise ValueError(
            f"`calibrate.max_gb` must be at least the library's {size:.2f} GB, but got {max_gb}; "
            "raise it or give the space fewer levels."
        )
