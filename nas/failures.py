"""What the command line says when something fails: one clear line, and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE_ERROR, FAILURE, STOPPED = 2, 1, 130
_WHERE = "(--debug shows where)"


def guarded(action: Callable[[], None], command: str, *, debug: bool) -> int:
    """Run, and turn exceptions into one clear line and an exit code.

    Args:
        action: What is run.
        command: Of which command.
        debug: Let exceptions but Ctrl-C through, with their traceback.
    """
    try:
        action()
    except KeyboardInterrupt:
        return fail("stopped by Ctrl-C; run the same command again to continue.", code=STOPPED)
    except Exception as error:
        if debug:
            raise
        return fail(*_told(error, command))
    return 0


def _told(error: Exception, command: str) -> tuple[str, int]:
    """What is said of an exception, and the exit code."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_override(command, error), USAGE_ERROR
    if isinstance(error, ValueError):
        from nas.config import said_of

        return f"{' '.join(said_of(error).split())}  {_WHERE}", USAGE_ERROR
    if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError | ModuleNotFoundError):
        return f"{one_line(error)}  {_WHERE}", USAGE_ERROR
    if isinstance(error, RuntimeError | OSError):
        return f"{one_line(error)}  {_WHERE}", FAILURE
    if isinstance(error, YAMLError):
        return f"a configuration file must be valid YAML, but: {one_line(error)}", USAGE_ERROR
    # What nobody foresaw is mostly a value of a wrong kind, and no reason to show people a traceback.
    kind = "Has an option or a file a value of the wrong kind, such as a text where a list belongs?"
    reason = f"{type(error).__name__}: {one_line(error).rstrip('.')}"
    return f"{reason}. {kind} If not, please report it.  {_WHERE}", FAILURE


def fail(message: str, code: int = USAGE_ERROR) -> int:
    """Print a message for people, and give the exit code back."""
    print(f"nas: {message}", file=sys.stderr)
    return code


def one_line(error: BaseException) -> str:
    """An exception's text in one line, with the file where the system names one."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}; is the path right, and may it be written?"
    return " ".join(str(error).split()) or type(error).__name__


def _explain_override(command: str, error: Exception) -> str:
    """A wrong override in one line, with the nearest right name."""
    from nas.config import suggestion
    from nas.overrides import known_files

    text = " ".join(str(error).split())
    if found := re.search(r"Could not override '([^']+)'", text):
        known = sorted(_option_names(command))
        hint = suggestion(found[1], known)
        if found[1] in known:  # What is wrong is around it or inside.
            key = re.search(r"Key '([^']*)' (?:is )?not in", text)
            hint = f" There is no {key[1]!r}." if key else " Another option takes its block away."
        return f"unknown option {found[1]!r}.{hint}  `nas {command} --help` lists all options."
    if found := re.search(r"Could not (?:find|load) '([\w/]+)/([^/']+)'", text):
        group, name = found[1], found[2]
        # Hydra knows those of --config-dir, too.
        told = re.search(rf"Available options in '{group}': (.*?) Config search path", text)
        options = told[1].split() if told else known_files(group)
        return f"unknown {group} {name!r}; known are {', '.join(options)}.{suggestion(name, options)}"
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        name = getattr(error, "full_key", None) or found[1]
        return f"`{name}` must be given, for example: nas {command} {name}=VALUE"
    return text


def _option_names(command: str) -> set[str]:
    """Full names of all the options of a command."""
    from omegaconf import DictConfig, OmegaConf

    def names(node: Any, prefix: str) -> set[str]:
        if not isinstance(node, DictConfig):
            return {prefix}
        inner = (names(node._get_node(key), f"{prefix}.{key!s}" if prefix else str(key)) for key in node)
        return set().union(*inner, {prefix} if prefix else set())

    config = compose_config(command, [])
    OmegaConf.set_struct(config, value=False)
    return names(config, "")


def compose_config(command: str, overrides: list[str]) -> DictConfig:
    """A command's configuration, as Hydra composes it."""
    from hydra import compose, initialize_config_dir

    from nas.config import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name=command):
        return compose(command, overrides=overrides)
