"""One study in its storage: begun, or continued with the settings that it was begun with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nas.engine.allocate import WarmStart
from nas.engine.errors import StudyChangedError, differences
from nas.engine.objective import Objective
from nas.engine.storage import Storage, hide_password

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

WarmStarts = Sequence[WarmStart] | Callable[[], Sequence[WarmStart]]


@dataclass(frozen=True)
class StudySettings:
    """What a study is begun with.

    Args:
        name: Its name in the storage.
        objective: Proposes and evaluates.
        sampler: Bound to the space.
        pruner: For studies of one goal, else None.
        warm_start: Subnets to evaluate first, or a function that finds them, called only when the study is begun.
        num_trials: Trials in total; the warm start is at most as many.
        context: Plain data that a continued study must have been begun with.
        on_change: ``refuse`` or ``new``.

    Raises:
        ValueError: ``on_change`` is neither, or a pruner is given for several goals.
    """

    name: str
    objective: Objective
    sampler: BaseSampler
    pruner: BasePruner | None = None
    warm_start: WarmStarts = ()
    num_trials: int = 1
    context: Mapping[str, Any] = field(default_factory=dict)
    on_change: str = "refuse"

    def __post_init__(self) -> None:
        if self.on_change not in ("refuse", "new"):
            raise ValueError(f"`search.on_change` must be refuse or new, but got {self.on_change!r}.")
        goals = len(self.objective.objectives.goals)
        if self.pruner is not None and goals > 1:
            raise ValueError(
                f"`pruner` must be null where there are several goals (here {goals}): use `rungs`, which promote the "
                "trials of a whole front."
            )

    def full_context(self) -> dict[str, Any]:
        """The context with the space, the goals and the constraints; passwords are hidden."""
        objective = self.objective
        context = {
            **self.context,
            "space": objective.space.to_dict(),
            "goals": dict(objective.objectives.goals),
            "constraints": {limit.name: str(limit) for limit in objective.limits},
        }
        plain: dict[str, Any] = json.loads(hide_password(json.dumps(context, default=str)))
        return plain


def open_study(opened: Storage, settings: StudySettings) -> Study:
    """The study of this name, begun where it is missing, with its warm start enqueued.

    Raises:
        StudyChangedError: It was begun with something else, and that is to be refused.
    """
    import optuna

    context = settings.full_context()
    name = settings.name
    with opened.claiming():
        existing = set(optuna.get_all_study_names(opened.backend))
        while name in existing:
            study = optuna.load_study(
                study_name=name, storage=opened.backend, sampler=settings.sampler, pruner=settings.pruner
            )
            changed = differences(json.loads(study.user_attrs.get("context", "{}")), context)
            if not changed:
                break
            if settings.on_change == "refuse":
                raise StudyChangedError(
                    f"study {name!r} was begun with other settings: {'; '.join(changed[:12])}. "
                    "Give `study` another name to begin a new one, or set `search.on_change=new`."
                )
            name = _next_name(name)
        else:
            study = _begin(opened, name, settings, context)
        if "warm_started" not in study.user_attrs:
            _enqueue(study, settings)
        if study.user_attrs.get("num_trials") != settings.num_trials:
            study.set_user_attr("num_trials", settings.num_trials)
    return study


def _next_name(name: str) -> str:
    stem, _, number = name.rpartition("-")
    return f"{stem}-{int(number) + 1}" if stem and number.isdigit() else f"{name}-2"


def _begin(opened: Storage, name: str, settings: StudySettings, context: Mapping[str, Any]) -> Study:
    import optuna
    from optuna.exceptions import ExperimentalWarning

    objectives = settings.objective.objectives
    study = optuna.create_study(
        storage=opened.backend,
        study_name=name,
        sampler=settings.sampler,
        pruner=settings.pruner,
        directions=objectives.directions,
        load_if_exists=not opened.locked,  # Where nothing is locked, another worker may just have begun it.
    )
    study.set_user_attr("context", json.dumps(context, sort_keys=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(objectives.goals))
    return study


def _enqueue(study: Study, settings: StudySettings) -> None:
    starts = settings.warm_start() if callable(settings.warm_start) else settings.warm_start
    for start in list(starts)[: settings.num_trials]:
        params = settings.objective.space.parameters(start.subnet)
        study.enqueue_trial(params, user_attrs={"origin": start.origin}, skip_if_exists=True)
    study.set_user_attr("warm_started", value=True)
