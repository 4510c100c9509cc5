"""The search: claims trial slots, lets the objective evaluate, and records every end that a trial can have."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.engine.candidates import Candidate, candidates_of, pareto_front
from nas.engine.connection import ConnectionLostError, Heartbeat, patiently, storage_failed
from nas.engine.errors import SearchFailedError
from nas.engine.interrupts import Interruption, time_limit
from nas.engine.objective import Ended, Measured, Objective, Proposal, twin_of
from nas.engine.progress import Status, StatusBoard, Tracker
from nas.engine.rungs import Fidelities
from nas.engine.slots import TrialSlots, Worker, count_finished
from nas.engine.storage import JournalStorage, OpensStorage, Storage, hide_password
from nas.engine.study import StudySettings, WarmStarts, open_study

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


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
        fidelities: Distillation inside evaluations: rungs and who is promoted, or a pruner.
        max_failure_share: Above this share of failed trials, of at least five, the search stops.
        max_retries: How often a subnet whose worker died is tried again.
        trial_timeout_s: Seconds after which an evaluation fails, or None.
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
        warm_start: WarmStarts = (),
        context: Mapping[str, Any] | None = None,
        on_change: str = "refuse",
        fidelities: Fidelities | None = None,
        max_failure_share: float = 0.3,
        max_retries: int = 2,
        trial_timeout_s: float | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        if num_trials < 1:
            raise ValueError(f"`num_trials` must be at least 1, but got {num_trials}.")
        if not 0 < max_failure_share <= 1:
            raise ValueError(f"`max_failure_share` must be in (0, 1], but got {max_failure_share}.")
        self.directory = Path(directory)
        self.objective = objective
        self.num_trials = num_trials
        self.storage = storage or JournalStorage()
        self.fidelities = fidelities or Fidelities()
        self.settings = StudySettings(
            name, objective, sampler, self.fidelities.pruner, warm_start, num_trials, context or {}, on_change
        )
        self.max_failure_share = max_failure_share
        self.max_retries = max_retries
        self.trial_timeout_s = trial_timeout_s
        self.trackers = tuple(trackers)
        self.name = name
        self.complete = False
        self._interruption = Interruption()
        self._failures: list[str] = []
        self._finished = 0

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return self._interruption.asked

    def run(self) -> list[Candidate]:
        """Evaluate until all slots are finished; Ctrl-C stops after the running trial.

        Returns:
            All candidates of the study; `candidates.pareto_front` gives the best of them.

        Raises:
            StudyChangedError: The study was begun with something else.
            SearchFailedError: Too many trials failed, or the storage cannot be written.
        """
        study, opened = self.begin()
        with _explained(opened), Worker(opened.workers) as worker:
            slots = TrialSlots(study, opened, self.num_trials, worker, max_retries=self.max_retries)
            with self._interruption.watched():
                self._loop(study, opened, slots)
            trials = patiently(lambda: study.get_trials(deepcopy=False), opened.lost)
        self.complete = count_finished(trials) >= self.num_trials
        return self._found(trials)

    def watch(self, busy: Callable[[bool], bool]) -> list[Candidate]:
        """Let others evaluate, and tell trackers of every trial that ends.

        Args:
            busy: Asked twice a second, with whether Ctrl-C was pressed, whether anybody is still at work.

        Returns:
            All candidates of the study.

        Raises:
            SearchFailedError: The storage cannot be read.
        """
        study, opened = self.begin()
        with _explained(opened), self._interruption.watched():
            trials = patiently(lambda: study.get_trials(deepcopy=False), opened.lost)
            told = {trial.number for trial in trials if trial.state.is_finished()}
            board = StatusBoard(self.objective.objectives, self.num_trials, count_finished(trials))
            at_work = True
            while at_work:
                at_work = busy(self.interrupted)
                trials = patiently(lambda: study.get_trials(deepcopy=False), opened.lost)
                for trial in trials:
                    if trial.state.is_finished() and trial.number not in told:
                        told.add(trial.number)
                        self._tell(trial, board(trials))
                if at_work:
                    time.sleep(0.5)
        self.complete = count_finished(trials) >= self.num_trials
        return self._found(trials)

    def _tell(self, trial: FrozenTrial, status: Status) -> None:
        for tracker in self.trackers:
            tracker.trial_finished(trial, status)

    def _found(self, trials: Sequence[FrozenTrial]) -> list[Candidate]:
        found = candidates_of(trials, self.objective.objectives)
        front = pareto_front(found, self.objective.objectives)
        for tracker in self.trackers:
            tracker.search_finished(front)
        return found

    def begin(self) -> tuple[Study, Storage]:
        """Open the storage and begin or continue the study, without evaluating anything.

        Raises:
            StudyChangedError: The study was begun with something else.
            SearchFailedError: The storage cannot be opened or written.
        """
        try:
            opened = self.storage.open(self.directory)
        except OSError as error:
            raise SearchFailedError(
                f"search: the study's storage cannot be opened: {hide_password(str(error))}."
            ) from error
        with _explained(opened):
            study = patiently(lambda: open_study(opened, self.settings), opened.lost)
        self.name = study.study_name
        return study, opened

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _loop(self, study: Study, opened: Storage, slots: TrialSlots) -> None:
        trials = patiently(lambda: study.get_trials(deepcopy=False), opened.lost)
        board = StatusBoard(self.objective.objectives, self.num_trials, count_finished(trials))
        while not self.interrupted:
            trial, proposal, done = patiently(lambda: self._claim(opened, slots), opened.lost)
            if done:
                return
            if trial is None or proposal is None:
                # Others are at work on the last slots; one of them may yet die.
                time.sleep(0.2 if opened.local else 1.0)
                continue
            beat = nullcontext() if opened.local else Heartbeat(opened.backend, trial._trial_id)
            try:
                with beat:
                    ended = self._evaluate(study, opened, trial, proposal)
            except KeyboardInterrupt:
                slots.give_up(study.get_trials(deepcopy=False)[trial.number])
                raise
            patiently(lambda t=trial, e=ended: self._end(study, t, e), opened.lost)  # type: ignore[misc]
            if self.trackers:
                trials = patiently(lambda: study.get_trials(deepcopy=False), opened.lost)
                self._tell(trials[trial.number], board(trials))
            self._stop_on_failures()

    def _claim(self, opened: Storage, slots: TrialSlots) -> tuple[Trial | None, Proposal | None, bool]:
        """A trial with its proposal, or neither; and whether all slots are finished."""
        from optuna.exceptions import UpdateFinishedTrialError

        promote = self.fidelities.promotions(self.objective.objectives)
        try:
            with opened.claiming():
                claim = slots.claim(promote)
                if claim.trial is None:
                    return None, None, claim.done
                proposal = self.objective.propose(claim.trial, self.fidelities.first)
                if not opened.locked and slots.withdraw(claim.trial, proposal.subnet.to_json()):
                    return None, None, False
                return claim.trial, proposal, False
        except UpdateFinishedTrialError:
            return None, None, False  # Another worker took this one for dead while the connection was lost.

    def _evaluate(self, study: Study, opened: Storage, trial: Trial, proposal: Proposal) -> Ended:
        """Find out how a trial ends; what is evaluated is not yet written."""
        if proposal.infeasible:
            return Ended(pruned=True)
        try:
            if self.fidelities.pruner is None:
                # A lost connection is waited for outside the limit: it is not the evaluation's fault.
                twin = patiently(lambda: twin_of(study, proposal), opened.lost)
                with time_limit(self.trial_timeout_s):
                    return Ended(self.objective.measure(proposal, twin))
            with time_limit(self.trial_timeout_s):
                return self._evaluate_in_rungs(study, opened, trial, proposal)
        except ConnectionLostError:
            raise
        except Exception as error:
            if storage_failed(error) and not isinstance(error, OSError):
                raise
            # Whatever an evaluation dies of, the search goes on.
            return Ended(reason=hide_password(f"{type(error).__name__}: {error}".strip()[:500]))

    def _evaluate_in_rungs(self, study: Study, opened: Storage, trial: Trial, proposal: Proposal) -> Ended:
        """Evaluate rung after rung, and let the pruner end what does not promise."""
        measured: Measured | None = None
        for steps in self.fidelities.steps:
            rung = replace(proposal, steps=steps)
            twin = patiently(lambda r=rung: twin_of(study, r), opened.lost)  # type: ignore[misc]
            measured = self.objective.measure(rung, twin)
            patiently(lambda m=measured, s=steps: trial.report(m.values[0], s), opened.lost)  # type: ignore[misc]
            if steps != self.fidelities.steps[-1] and patiently(trial.should_prune, opened.lost):
                return Ended(measured, pruned=True)
        return Ended(measured)

    def _end(self, study: Study, trial: Trial, ended: Ended) -> None:
        """Write how a trial ended; may be repeated after a lost connection."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            if ended.measured is not None:
                self.objective.record(trial, ended.measured, pruned=ended.pruned)
            if ended.reason:
                trial.set_user_attr("reason", ended.reason)
                study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            elif ended.pruned or ended.measured is None:
                study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            else:
                study.tell(trial, list(ended.measured.values), skip_if_finished=True)
        except UpdateFinishedTrialError:
            pass  # It was written before the connection was lost, or another worker took this one for dead.
        if ended.reason:
            self._failures.append(ended.reason)
        self._finished += ended.reason != "" or ended.measured is not None

    def _stop_on_failures(self) -> None:
        failed = len(self._failures)
        if failed >= 5 and failed > self.max_failure_share * self._finished:
            reason, count = Counter(self._failures).most_common(1)[0]
            raise SearchFailedError(
                f"search: {failed} of {self._finished} evaluations failed, more than `max_failure_share` "
                f"{self.max_failure_share:.0%}. The commonest reason ({count} times): {reason}"
            )


@contextmanager
def _explained(opened: Storage) -> Generator[None, None, None]:
    """Say of an error of the storage what it means for the study; connections are closed in the end."""
    try:
        yield
    except Exception as error:
        if not storage_failed(error):
            raise
        raise SearchFailedError(
            f"search: {opened.described} cannot be written: {hide_password(str(error))}. "
            "What was recorded is safe; make room or permit writing, and run the same command again."
        ) from error
    finally:
        opened.disconnect()
