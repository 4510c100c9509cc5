"""The search: claims trial slots, lets the objective evaluate, and records every end that a trial can have."""

from __future__ import annotations

import json
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from nas.engine.allocate import WarmStart
from nas.engine.candidates import Candidate, candidates_of, pareto_front
from nas.engine.errors import SearchFailedError, StudyChangedError, differences
from nas.engine.objective import Objective, Proposal
from nas.engine.progress import StatusBoard, Tracker
from nas.engine.slots import Claim, NextTrial, TrialSlots, Worker, abandoned
from nas.engine.storage import JournalStorage, Storage, hide_password

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler


class OpensStorage(Protocol):
    """`JournalStorage`, `DatabaseStorage`, `ProxyStorage`."""

    def open(self, directory: Path) -> Storage:
        """Open the storage for a run folder."""


class Search:
    """One study, begun or continued.

    Args:
        directory: The run folder: the journal, the workers' locks.
        name: The study's name in its storage.
        objective: Proposes, evaluates and records.
        sampler: An Optuna sampler, already bound to the space; see `samplers.bind`.
        num_trials: Trials in total, those of earlier runs and other workers included.
        storage: Where the study is kept.
        warm_start: Subnets to evaluate first, or a function that finds them, called only when the study is begun.
        context: Plain data that a continued study must have been begun with: task, device, workload, and the like. The
            space, the goals and the constraints are added to it.
        on_change: ``refuse`` to continue a study of another context, or begin a ``new`` one under a fresh name.
        max_failure_share: Above this share of failed trials, of at least five, the search stops.
        max_retries: How often a subnet whose worker died is tried again.
        trial_timeout_s: Seconds after which an evaluation fails, or None.
        promote: Asked before the sampler is for a trial that must come next; `rungs.Rungs` is one.
        trackers: Hear of every trial.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        directory: Path | str,
        name: str,
        objective: Objective,
        sampler: BaseSampler,
        num_trials: int,
        *,
        storage: OpensStorage | None = None,
        warm_start: Sequence[WarmStart] | Callable[[], Sequence[WarmStart]] = (),
        context: Mapping[str, Any] | None = None,
        on_change: str = "refuse",
        max_failure_share: float = 0.3,
        max_retries: int = 2,
        trial_timeout_s: float | None = None,
        promote: NextTrial | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        if num_trials < 1:
            raise ValueError(f"`num_trials` must be at least 1, but got {num_trials}.")
        if not 0 < max_failure_share <= 1:
            raise ValueError(f"`max_failure_share` must be in (0, 1], but got {max_failure_share}.")
        if on_change not in ("refuse", "new"):
            raise ValueError(f"`on_change` must be refuse or new, but got {on_change!r}.")
        self.directory = Path(directory)
        self.name = name
        self.objective = objective
        self.sampler = sampler
        self.num_trials = num_trials
        self.storage = storage or JournalStorage()
        self.warm_start = warm_start
        self.context = context or {}
        self.on_change = on_change
        self.max_failure_share = max_failure_share
        self.max_retries = max_retries
        self.trial_timeout_s = trial_timeout_s
        self.promote = promote
        self.trackers = tuple(trackers)
        self.interrupted = False
        self._failures: list[str] = []
        self._finished = 0

    def run(self) -> list[Candidate]:
        """Evaluate until all slots are finished; Ctrl-C stops after the running trial.

        Returns:
            All candidates of the study; `candidates.pareto_front` gives the best of them.

        Raises:
            StudyChangedError: The study was begun with something else.
            SearchFailedError: Too many trials failed, or the storage cannot be written.
        """
        try:
            opened = self.storage.open(self.directory)
            worker = Worker(self.directory / "workers")
            worker.start()
        except OSError as error:
            raise SearchFailedError(f"search: the study's storage cannot be opened: {_plain(error)}.") from error
        try:
            study = self._study(opened)
            slots = TrialSlots(study, opened, self.num_trials, worker, max_retries=self.max_retries)
            with self._interruptible():
                self._loop(study, opened, slots)
            found = candidates_of(study.get_trials(deepcopy=False), self.objective.objectives)
        except OSError as error:
            raise SearchFailedError(
                f"search: {opened.described} cannot be written: {_plain(error)}. "
                "What was recorded is safe; make room or permit writing, and run the same command again."
            ) from error
        finally:
            worker.stop()
        front = pareto_front(found, self.objective.objectives)
        for tracker in self.trackers:
            tracker.search_finished(front)
        return found

    # -- beginning --------------------------------------------------------------------------------------------------

    def _study(self, opened: Storage) -> Study:
        """The study of this name, begun where it is missing."""
        import optuna
        from optuna.exceptions import ExperimentalWarning

        context = self._full_context()
        name = self.name
        with opened.claiming():
            existing = {study.study_name for study in optuna.get_all_study_summaries(opened.backend)}
            while name in existing:
                study = optuna.load_study(study_name=name, storage=opened.backend, sampler=self.sampler)
                changed = differences(json.loads(study.user_attrs.get("context", "{}")), context)
                if not changed:
                    break
                if self.on_change == "refuse":
                    raise StudyChangedError(
                        f"study {name!r} was begun with other settings:\n  " + "\n  ".join(changed[:12]) + "\n"
                        "Give it another name to begin a new one, or set `on_change=new`."
                    )
                stem, _, number = name.rpartition("-")
                name = f"{stem}-{int(number) + 1}" if stem and number.isdigit() else f"{name}-2"
            else:
                study = optuna.create_study(
                    storage=opened.backend,
                    study_name=name,
                    sampler=self.sampler,
                    directions=self.objective.objectives.directions,
                )
                study.set_user_attr("context", json.dumps(context, sort_keys=True))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    study.set_metric_names(list(self.objective.objectives.goals))
            if "warm_started" not in study.user_attrs:
                self._enqueue(study)
            if study.user_attrs.get("num_trials") != self.num_trials:
                study.set_user_attr("num_trials", self.num_trials)  # For whoever watches from outside.
        self.name = name
        return study

    def _full_context(self) -> dict[str, Any]:
        objectives = self.objective.objectives
        context = {
            **self.context,
            "space": self.objective.space.to_dict(),
            "goals": dict(objectives.goals),
            "constraints": {limit.name: str(limit) for limit in self.objective.limits},
        }
        plain: dict[str, Any] = json.loads(hide_password(json.dumps(context, default=str)))
        return plain

    def _enqueue(self, study: Study) -> None:
        starts = self.warm_start() if callable(self.warm_start) else self.warm_start
        for start in list(starts)[: self.num_trials]:
            params = self.objective.space.parameters(start.subnet)
            study.enqueue_trial(params, user_attrs={"origin": start.origin}, skip_if_exists=True)
        study.set_user_attr("warm_started", value=True)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _loop(self, study: Study, opened: Storage, slots: TrialSlots) -> None:
        trials = study.get_trials(deepcopy=False)
        already = sum(trial.state.is_finished() and not abandoned(trial) for trial in trials)
        board = StatusBoard(self.objective.objectives, self.num_trials, already)
        while not self.interrupted:
            with opened.claiming():
                claim: Claim = slots.claim(self.promote)
                proposal = self.objective.propose(claim.trial) if claim.trial is not None else None
            if claim.done:
                return
            if claim.trial is None or proposal is None:
                time.sleep(0.2)  # Others are at work on the last slots; one of them may yet die.
                continue
            try:
                self._evaluate(study, claim.trial, proposal)
            except KeyboardInterrupt:
                slots.give_up(study.get_trials(deepcopy=False)[claim.trial.number])
                raise
            if self.trackers:
                trials = study.get_trials(deepcopy=False)
                status = board(trials)
                for tracker in self.trackers:
                    tracker.trial_finished(trials[claim.trial.number], status)
            self._stop_on_failures()

    def _evaluate(self, study: Study, trial: Trial, proposal: Proposal) -> None:
        """Bring one trial to its end."""
        from optuna.trial import TrialState

        if proposal.infeasible:
            study.tell(trial, state=TrialState.PRUNED)
            return
        try:
            with _time_limit(self.trial_timeout_s):
                measured = self.objective.measure(study, proposal)
        except Exception as error:  # noqa: BLE001 - whatever an evaluation dies of, the search goes on
            reason = f"{type(error).__name__}: {error}".strip()[:500]
            self._failures.append(reason)
            trial.set_user_attr("reason", hide_password(reason))
            study.tell(trial, state=TrialState.FAIL)
        else:
            self.objective.record(trial, measured)
            study.tell(trial, list(measured.values), skip_if_finished=True)
        self._finished += 1

    def _stop_on_failures(self) -> None:
        failed = len(self._failures)
        if failed >= 5 and failed > self.max_failure_share * self._finished:
            reason, count = Counter(self._failures).most_common(1)[0]
            raise SearchFailedError(
                f"search: {failed} of {self._finished} evaluations failed, more than `max_failure_share` "
                f"{self.max_failure_share:.0%}. The commonest reason ({count} times): {reason}"
            )

    @contextmanager
    def _interruptible(self) -> Generator[None, None, None]:
        """The first Ctrl-C only sets a flag; the second stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(_number: int, _frame: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _time_limit(seconds: float | None) -> Generator[None, None, None]:
    """Raise TimeoutError in the main thread after so many seconds; elsewhere there is no limit."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the evaluation took longer than `trial_timeout_s` {seconds:g}")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _plain(error: OSError) -> str:
    return hide_password(str(error))
