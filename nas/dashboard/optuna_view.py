"""Optuna's own dashboard beside the pages, on the same storages, which it may read but not change."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any, NoReturn

from optuna.storages import BaseStorage

if TYPE_CHECKING:
    from optuna.study import StudyDirection
    from optuna.study._frozen import FrozenStudy
    from optuna.trial import FrozenTrial, TrialState
    from starlette.types import ASGIApp

    from nas.dashboard.watch import Watch


class ReadOnlyStorage(BaseStorage):
    """Several storages as one, for programs that know one only; every change is refused.

    Args:
        watch: Knows the storages; those that it finds later appear here too.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._known: list[tuple[int, int]] = []  # Our id -> place of the storage, and the study's id in it.

    def get_all_studies(self) -> list[FrozenStudy]:
        """All studies of all storages, their ids made unique."""
        import copy

        found = []
        for place, backend in enumerate(self.watch.backends()):
            for study in backend.get_all_studies():
                own = copy.copy(study)
                if (place, study._study_id) not in self._known:
                    self._known.append((place, study._study_id))
                own._study_id = self._known.index((place, study._study_id))
                found.append(own)
        return found

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - as Optuna declares it
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """All trials of a study."""
        backend, own = self._at(study_id)
        return backend.get_all_trials(own, deepcopy=deepcopy, states=states)

    def get_study_id_from_name(self, study_name: str) -> int:
        """The id of the first study of that name.

        Raises:
            KeyError: There is none.
        """
        for study in self.get_all_studies():
            if study.study_name == study_name:
                return study._study_id
        raise KeyError(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """The name of a study."""
        backend, own = self._at(study_id)
        return backend.get_study_name_from_id(own)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """The directions of a study."""
        backend, own = self._at(study_id)
        return backend.get_study_directions(own)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """The user attributes of a study."""
        backend, own = self._at(study_id)
        return backend.get_study_user_attrs(own)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """The system attributes of a study."""
        backend, own = self._at(study_id)
        return backend.get_study_system_attrs(own)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Never needed by a program that only shows studies."""
        raise KeyError(trial_id)

    def _at(self, study_id: int) -> tuple[BaseStorage, int]:
        if study_id >= len(self._known):
            self.get_all_studies()
        if not 0 <= study_id < len(self._known):
            raise KeyError(study_id)
        place, own = self._known[study_id]
        return self.watch.backends()[place], own

    def _refuse(self, *_arguments: Any, **_named: Any) -> NoReturn:
        raise RuntimeError("The dashboard shows studies; it does not change them.")

    create_new_study = delete_study = set_study_user_attr = set_study_system_attr = _refuse
    create_new_trial = set_trial_param = set_trial_state_values = set_trial_intermediate_value = _refuse
    set_trial_user_attr = set_trial_system_attr = _refuse


def optuna_app(watch: Watch) -> ASGIApp:
    """Optuna's own dashboard as a web application.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to mend that.
    """
    try:
        from a2wsgi import WSGIMiddleware
        from optuna_dashboard import wsgi
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"`dashboard.optuna=true` needs {error.name}: pip install 'hwnas[dashboard]'."
        ) from error
    app: ASGIApp = WSGIMiddleware(wsgi(ReadOnlyStorage(watch)))  # type: ignore[assignment]
    return app
