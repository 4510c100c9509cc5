"""What Hydra records of a run, without the passwords of storages.

Hydra writes all options into the folder of its run before anything of ours runs. URLs with a password on the command
line are therefore moved into the environment first; those that come from elsewhere, as from a user's own YAML, are
hidden as soon as the job starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_URL, _URL_FROM = "storage.url", "storage.url_from"


@contextmanager
def passwords_aside(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Within this context the environment holds the storage's URL, where the overrides hold one with a password.

    Args:
        overrides: Of one command line.

    Yields:
        The others. A sweep's choice of several URLs stays: an environment variable holds one.
    """
    from nas.engine.storage import URL_VARIABLE, hide_password

    values = {text.partition("=")[0].lstrip("+"): text.partition("=")[2].strip("'\"") for text in overrides}
    url, variable = values.get(_URL, ""), values.get(_URL_FROM) or URL_VARIABLE
    if hide_password(url) == url or "," in url:
        yield list(overrides)
        return
    before = os.environ.get(variable)
    os.environ[variable] = url
    try:
        yield [text for text in overrides if text.partition("=")[0].lstrip("+") != _URL]
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def hide_recorded() -> None:
    """Take the passwords of storages out of what Hydra has recorded of the running job, and of its sweep."""
    from hydra.core.hydra_config import HydraConfig

    from nas.engine.storage import hide_recorded_passwords

    settings = HydraConfig.get()
    run = Path(settings.runtime.output_dir)
    sweep = [run.parent] if settings.mode is not None and settings.mode.name == "MULTIRUN" else []
    hide_recorded_passwords([run / str(settings.output_subdir), *sweep])
