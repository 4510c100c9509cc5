"""The subnets by whose metric a supernet's training is steered: its smallest, a middle one, the largest reduced one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nas.distillation.acceleration import agreed
from nas.distillation.schedule import largest_reduced
from nas.evaluation.aspects import lower_is_better
from nas.evaluation.evaluate import evaluate_run
from nas.tasks.placement import moved

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nas.evaluation.evaluate import Evaluator
    from search_spaces.space import SearchSpace
    from search_spaces.subnet import SubnetConfig
    from search_spaces.supernet import Supernet


class Guards:
    """Judges the ends and the middle of a space on the validation split, in the first process alone.

    Args:
        supernet: Runs them.
        evaluator: Gives the task and the stored teacher outputs.
        space: Their space.
        accelerator: The processes, and the device that the supernet is on.
    """

    def __init__(self, supernet: Supernet, evaluator: Evaluator, space: SearchSpace, accelerator: Accelerator) -> None:
        uniform = space.uniform()
        found = {"smallest": space.smallest, "middle": uniform[len(uniform) // 2], "largest": largest_reduced(space)}
        if found["middle"] in (space.teacher, found["smallest"], found["largest"]):
            del found["middle"]
        self.subnets = found
        self._supernet, self._evaluator, self._accelerator = supernet, evaluator, accelerator
        task, teacher = evaluator.task, evaluator.teacher.main("validation")
        self._teacher = float(task.metrics("validation", teacher, teacher)[task.quality])
        self._sign = -1.0 if lower_is_better(task.quality, task) else 1.0

    def judge(self) -> dict[str, float]:
        """The task's main metric of each, the same in all processes."""
        main = self._accelerator.is_main_process
        found = [self._quality(subnet) if main else 0.0 for subnet in self.subnets.values()]
        return dict(zip(self.subnets, agreed(self._accelerator, found), strict=True))

    def score(self, judged: Mapping[str, float], untrained: Mapping[str, float]) -> float:
        """How much of each one's distance to the teacher is gone, a share, mean of all; below 0 it has grown.

        The smallest has far to go, and the others little to lose: a plain mean would not notice what they lose.
        """
        return sum(self._closed(judged[name], untrained[name]) for name in self.subnets) / len(self.subnets)

    def _closed(self, value: float, before: float) -> float:
        # Where there is no distance, a hundredth of the teacher's value stands for it.
        distance = max(self._sign * (self._teacher - before), 0.01 * abs(self._teacher), 1e-6)
        return self._sign * (value - before) / distance

    def _quality(self, subnet: SubnetConfig) -> float:
        evaluator, task, accelerator = self._evaluator, self._evaluator.task, self._accelerator
        self._supernet.activate(subnet)
        with accelerator.autocast():
            metrics = evaluate_run(
                lambda batch: task.outputs(self._supernet.model, moved(batch, accelerator.device)),
                task,
                evaluator.teacher,
                batch_size=evaluator.batch_size,
            )
        return float(metrics[task.quality])
