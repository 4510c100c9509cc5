"""Trial slots: N workers finish exactly ``num_trials`` trials, whichever of them die on the way.

A trial is *abandoned* when it has failed without a reason: that is how dead workers' trials end, and nothing else does.
Slots are the first ``num_trials`` trials that are not abandoned. So the rule needs no counter that could go wrong: an
abandoned trial frees its slot by being abandoned, and a trial beyond the last slot is never evaluated.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nas.engine.locks import FileLock, is_held
from nas.engine.storage import Storage

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

NextTrial = Callable[[Sequence["FrozenTrial"]], Mapping[str, Any] | None]


def abandoned(trial: FrozenTrial) -> bool:
    """Whether the trial ended because its worker did."""
    return trial.state.name == "FAIL" and "reason" not in trial.user_attrs


def count_finished(trials: Sequence[FrozenTrial]) -> int:
    """How many slots are done: trials that ended, but for those whose workers died."""
    return sum(trial.state.is_finished() and not abandoned(trial) for trial in trials)


class Worker:
    """One process that evaluates trials, recognisable as dead by others.

    Its lock file is held as long as it lives, so that others on the machine see at once when it is gone.

    Args:
        directory: Where the lock files of workers on this machine are.
    """

    def __init__(self, directory: Path) -> None:
        self.host = socket.gethostname()
        self.name = f"{self.host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock = FileLock(directory.absolute() / f"{self.name}.lock")

    def __enter__(self) -> Self:
        """Show that this worker lives.

        Raises:
            OSError: The lock file cannot be made.
        """
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the others know that it is gone."""
        self._lock.release()
        self._lock.path.unlink(missing_ok=True)

    @property
    def signature(self) -> dict[str, str]:
        """What a trial remembers of its worker."""
        return {"name": self.name, "host": self.host, "pid": str(os.getpid()), "lock": str(self._lock.path)}


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker got: a trial, or the reason why there is none (``waiting`` for others, or ``done``)."""

    trial: Trial | None
    done: bool


class TrialSlots:
    """Hands out trials of one study.

    Args:
        study: The study, opened with the storage's backend.
        storage: The storage.
        num_trials: Slots in total, earlier runs' trials included.
        worker: This process.
        max_retries: How often a subnet whose worker died is tried again before it counts as failed.
        grace_s: Without a sign of life for so long, a worker on another machine counts as dead.
        clock: Gives seconds; tests pass their own.
    """

    def __init__(
        self,
        study: Study,
        storage: Storage,
        num_trials: int,
        worker: Worker,
        *,
        max_retries: int = 2,
        grace_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study = study
        self.storage = storage
        self.num_trials = num_trials
        self.worker = worker
        self.max_retries = max_retries
        self.grace_s = grace_s
        self._clock = clock
        self._signs: dict[int, tuple[Any, float]] = {}

    def claim(self, next_trial: NextTrial | None = None) -> Claim:
        """Take the next free slot; call it inside ``storage.claiming()``.

        Args:
            next_trial: Asked before the sampler is; may give the parameters and attributes (``{"params": ...,
                "user_attrs": ...}``) of a trial that must come next.
        """
        self._retry_abandoned()
        trials = self.study.get_trials(deepcopy=False)
        slots = [trial for trial in trials if not abandoned(trial)]
        taken = [trial for trial in slots[: self.num_trials] if trial.state.name != "WAITING"]
        if len(taken) >= self.num_trials:
            return Claim(None, done=all(trial.state.is_finished() for trial in taken))
        if len(slots) == len(taken) and next_trial is not None and (wanted := next_trial(trials)):
            self.study.enqueue_trial(dict(wanted["params"]), user_attrs=dict(wanted.get("user_attrs", {})))
        trial = self.study.ask()
        if not self.storage.locked and not self._has_slot(trial.number):
            self.study.tell(trial, state=_state("FAIL"))  # Another worker was faster; nothing was evaluated.
            return Claim(None, done=False)
        trial.set_user_attr("worker", self.worker.signature)
        return Claim(trial, done=False)

    def withdraw(self, trial: Trial, subnet: str) -> bool:
        """Give a trial back whose subnet another worker has just claimed, too; for storages without a lock.

        Of two workers that claim the same, at least the one that looks later sees the other, which may even have
        finished by then. Both may give it back; an enqueued subnet is kept by the earlier trial.
        """
        trials = self.study.get_trials(deepcopy=False)
        own = trials[trial.number]
        enqueued = "fixed_params" in own.system_attrs
        for other in trials:
            if other.user_attrs.get("subnet") != subnet or other.number == own.number:
                continue
            earlier = other.state.name == "RUNNING" and (other.number < own.number or not enqueued)
            if earlier or _evaluated_since(other, own):
                trial.set_user_attr("withdrawn", value=True)
                self.study.tell(trial, state=_state("FAIL"))
                return True
        return False

    def _has_slot(self, number: int) -> bool:
        trials = self.study.get_trials(deepcopy=False)
        return sum(not abandoned(other) for other in trials if other.number < number) < self.num_trials

    def _retry_abandoned(self) -> None:
        """End the trials of dead workers and queue their subnets again."""
        for trial in self.study.get_trials(deepcopy=False, states=(_state("RUNNING"),)):
            if self._is_dead(trial):
                self.give_up(trial)

    def give_up(self, trial: FrozenTrial) -> None:
        """End a running trial without a result and queue its subnet again, unless it was tried often enough.

        Nor is it queued where another trial has it: when a database is restarted while one worker claims, another may
        claim the same.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        backend = self.storage.backend
        retries = int(trial.user_attrs.get("retries", 0))
        last, elsewhere = retries >= self.max_retries, self._is_elsewhere(trial)
        try:
            if elsewhere:
                backend.set_trial_user_attr(trial._trial_id, "withdrawn", value=True)
            elif last:
                reason = f"the worker died {retries + 1} times while it evaluated this subnet"
                backend.set_trial_user_attr(trial._trial_id, "reason", reason)
            if not backend.set_trial_state_values(trial._trial_id, _state("FAIL")):
                return
        except (UpdateFinishedTrialError, RuntimeError):
            return  # Another worker, or the trial's own, was faster.
        params = trial.system_attrs.get("fixed_params") or (trial.params if "subnet" in trial.user_attrs else None)
        if (
            not (last or elsewhere) and params
        ):  # Without a whole proposal there is nothing to try again: the slot is simply free.
            attributes = {k: v for k, v in trial.user_attrs.items() if k in ("steps", "origin", "promoted_from")}
            attributes |= {"retries": retries + 1, "retry_of": trial.number}
            self.study.enqueue_trial(dict(params), user_attrs=attributes)

    def _is_elsewhere(self, trial: FrozenTrial) -> bool:
        """Whether another trial has found out, or is finding out, what this one's evaluation would."""
        subnet, steps = trial.user_attrs.get("subnet"), trial.user_attrs.get("steps", 0)
        return subnet is not None and any(
            other.user_attrs.get("subnet") == subnet and other.user_attrs.get("steps", 0) == steps
            for other in self.study.get_trials(deepcopy=False, states=(_state("RUNNING"), _state("COMPLETE")))
            if other.number != trial.number
        )

    def _is_dead(self, trial: FrozenTrial) -> bool:
        signature = trial.user_attrs.get("worker")
        if signature is None:
            # Workers sign under the lock, so whoever holds it sees an unsigned trial only of a dead one.
            return self.storage.locked or self._silent(trial, "unsigned")
        if signature["name"] == self.worker.name:
            # Who claims has no trial of its own; this one was lost with the connection.
            return True
        lock = Path(signature["lock"])
        if signature["host"] == self.worker.host and (self.storage.local or lock.exists()):
            return not is_held(lock)
        return self._silent(trial, trial.user_attrs.get("alive", 0))

    def _silent(self, trial: FrozenTrial, sign: Any) -> bool:
        """Whether a sign of life has not changed for the grace period, by this machine's clock alone."""
        before = self._signs.get(trial.number)
        if before is None or before[0] != sign:
            self._signs[trial.number] = (sign, self._clock())
            return False
        return self._clock() - before[1] > self.grace_s


def _evaluated_since(other: FrozenTrial, own: FrozenTrial) -> bool:
    """Whether the other's evaluation, at as many steps, ended after one's own trial was begun.

    What had ended before is proposed again only where nothing else is left.
    """
    ended = other.datetime_complete if other.state.name == "COMPLETE" else None
    same = other.user_attrs.get("steps") == own.user_attrs.get("steps")
    return same and ended is not None and own.datetime_start is not None and ended >= own.datetime_start


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]
