"""How a supernet is trained: the schema of the node ``train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nas.distillation.acceleration import MixedPrecision, check_precision


@dataclass(frozen=True)
class SupernetSettings:
    """How a supernet is trained; batch size, warm-up and clipping are those of ``training``.

    Args:
        steps: Steps to train, or
        minutes: minutes to train, evaluations included; where both are given, whichever ends first.
        schedule: What varies when; see `nas.distillation.schedule.ElasticSchedule.of`.
        random_subnets: Random subnets of each step.
        large_subnet: Whether each step also trains the largest subnet that is not the teacher.
        learning_rate: AdamW's, at its peak.
        precision: Of forward passes; see `nas.distillation.acceleration.make_accelerator`.
        evaluate_every: Steps between two evaluations of the smallest, a middle and the largest reduced subnet on the
            validation split, the best of which is kept; None judges the start and the end, and keeps the end.
        patience: Evaluations without a better result after which the training ends; None never ends it early.
        checkpoint_every: Steps between two checkpoints; None writes none by steps.
        checkpoint_minutes: Minutes between two checkpoints; None writes none by time.

    Raises:
        ValueError: A number is out of range or of another kind, or there is no budget.
    """

    steps: int | None = 300
    minutes: float | None = None
    schedule: str | Sequence[str] | Mapping[str, float] = "all"
    random_subnets: int = 1
    large_subnet: bool = True
    learning_rate: float = 1e-4
    precision: MixedPrecision = "auto"
    evaluate_every: int | None = 50
    patience: int | None = 5
    checkpoint_every: int | None = None
    checkpoint_minutes: float | None = 5.0

    def __post_init__(self) -> None:
        for name in ("steps", "evaluate_every", "patience", "checkpoint_every"):
            if (value := getattr(self, name)) is not None:
                _whole(f"train.{name}", value, 1)
        _whole("train.random_subnets", self.random_subnets, 0)
        _positive("train.learning_rate", self.learning_rate)
        for name in ("minutes", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None:
                _positive(f"train.{name}", value)
        if not isinstance(self.large_subnet, bool):
            raise ValueError(f"`train.large_subnet` must be true or false, but got {self.large_subnet!r}.")
        if self.steps is None and self.minutes is None:
            raise ValueError("`train.steps` or `train.minutes` must be given, but both are null.")
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError(
                "`train.evaluate_every` must be a number of steps where `train.patience` is one "
                f"({self.patience}), but got null."
            )
        check_precision(self.precision)

    def identity(self) -> Mapping[str, Any]:
        """What the trained tensors depend on: when checkpoints are written is no part of it."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("checkpoint_")}


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be a whole number >= {least}, but got {value!r}.")


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be a number > 0, but got {value!r}.")
