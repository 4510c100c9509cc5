"""Training the supernet's smaller levels by the sandwich rule, against the teacher's stored outputs.

Every step trains the smallest subnet and random ones, and adds up their gradients (Yu et al. 2020, arXiv 2003.11142);
the largest subnet needs none, because it runs the teacher's own tensors, which stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from search_spaces.library import Library
from search_spaces.subnet import SubnetConfig
from search_spaces.supernet import Supernet

if TYPE_CHECKING:
    from nas.evaluation.evaluate import Evaluator
    from nas.progress import Progress


@dataclass(frozen=True)
class TrainedSupernet:
    """A trained library, and the main metric of a uniform subnet of middle size before and after."""

    library: Library
    before: float
    after: float


def train_supernet(
    supernet: Supernet,
    library: Library,
    evaluator: Evaluator,
    settings: Mapping[str, Any],
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainedSupernet:
    """Train a copy of a calibrated library.

    Args:
        supernet: Runs the subnets; it uses the trained tensors afterwards.
        library: The calibrated variants; left as they are.
        evaluator: Gives the loss, the stored teacher outputs and the task.
        settings: ``steps``, ``random_subnets`` and ``learning_rate``.
        seed: Of the order of samples and of the random subnets.
        progress: Told of every step.

    Raises:
        ValueError: A setting is not positive.
        FloatingPointError: The loss is not finite any more.
    """
    for name in ("steps", "learning_rate"):
        if not settings[name] > 0:
            raise ValueError(f"`train.{name}` must be > 0, but got {settings[name]}.")
    task, space, steps = evaluator.task, supernet.space, int(settings["steps"])
    middle = space.uniform()[len(space.uniform()) // 2]
    before = evaluator.evaluate(middle)[task.quality]
    tensors = {
        name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in library.tensors.items()
    }
    supernet.use(Library(tensors, library.metadata))
    trainable = [tensor for tensor in tensors.values() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=float(settings["learning_rate"]), weight_decay=0.0)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    generator = np.random.default_rng(seed)
    rows = task.samples.shuffled("train", evaluator.training.batch_size, seed)
    for _ in range(steps):
        chosen = [space.smallest, *space.sample(generator, int(settings["random_subnets"]))]
        loss = _step(supernet, evaluator, chosen, next(rows))
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss must stay finite, but is {loss}; lower `train.learning_rate` ({settings['learning_rate']})."
            )
        torch.nn.utils.clip_grad_norm_([t for t in trainable if t.grad is not None], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress.advance(text=f"loss {loss:.4f}")
    trained = Library({name: t.detach() for name, t in tensors.items()}, {**library.metadata, "trained": str(steps)})
    supernet.use(trained)
    return TrainedSupernet(trained, before, evaluator.evaluate(middle)[task.quality])


def _step(supernet: Supernet, evaluator: Evaluator, subnets: list[SubnetConfig], rows: Any) -> float:
    """Gradients of all the subnets on one batch, added up; the mean loss."""
    task = evaluator.task
    batch = evaluator.teacher.inputs("train", rows)
    targets = evaluator.teacher.batch("train", rows)
    total = 0.0
    for subnet in subnets:
        supernet.activate(subnet.plain)  # Rounding has no gradients.
        outputs = task.outputs(supernet.model, batch, evaluator.distiller.needs)
        loss = evaluator.distiller(outputs, targets, batch, subnet.kept) / len(subnets)
        if loss.requires_grad:  # The largest subnet is the teacher itself: there is nothing to train in it.
            loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total
