"""The command line: ``nas COMMAND [option=value ...]``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nas.failures import compose_config, fail, guarded, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS: dict[str, str] = {
    "devices": "list the devices of this machine and check each of them",
    "profile": "measure subnets on a device and fit its latency predictor",
    "bundle": "write what `nas profile` would measure as a folder for another machine",
    "calibrate": "prepare a teacher's compensated variants, without training",
    "train": "train the supernet's smaller levels against the teacher (optional)",
    "search": "search, export the best subnets and report: does whatever is missing",
    "pareto": "print a study's front and its best members, also while it is searched",
    "export": "write found subnets as transformers and ONNX folders, verified and measured",
    "evaluate": "print the report card of any model folder or ONNX file, beside its teacher",
    "compare": "print the report cards of several models side by side",
    "report": "draw a study's report again from what was stored",
    "dashboard": "show all studies in the browser, live",
    "doctor": "check this installation and say what to mend",
}
# What people want -> the commands for it, in the order in which they are met.
PURPOSES: dict[str, tuple[str, ...]] = {
    "find": ("search", "profile", "calibrate", "train"),
    "look": ("dashboard", "report", "pareto"),
    "deliver": ("export", "evaluate", "compare", "bundle"),
    "check": ("doctor", "devices"),
}

# Of ours and of Hydra's.
FLAGS = (
    *("--help", "-h", "--multirun", "-m", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i", "--run", "-r"),
    *("--config-dir", "-cd", "--hydra-help", "--experimental-rerun", "--shell-completion", "-sc"),
)
VALUED_FLAGS = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-dir", "-cd", "--experimental-rerun")
# Mappings whose keys are the user's own: Hydra would ask for a `+` before each of them.
OPEN_MAPPINGS = (
    *("objectives.constraints.", "objectives.goals.", "under."),
    *("device.options.", "space.overrides.", "space.round_to."),
)


def usage() -> str:
    """What ``nas`` alone says."""
    known = [(purpose, [name for name in names if name in COMMANDS]) for purpose, names in PURPOSES.items()]
    return "\n".join(
        [
            "nas: a pretrained transformer in, smaller ones out, measured faster on your device.",
            "",
            *(f"  {purpose:<9} {', '.join(names)}" for purpose, names in known),
            "",
            "Start with   nas search model.path=DIR task.data.path=FILE device=onnxruntime_cpu",
            "Options of   nas COMMAND --help       All commands   nas --help       Installation   nas doctor",
        ]
    )


def all_commands() -> str:
    """What ``nas --help`` says: every command in a line."""
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: nas COMMAND [option=value ...]",
            "",
            *lines,
            "",
            "nas COMMAND --help shows a command's options with their defaults; --debug shows tracebacks; --version.",
            "Exit codes: 0 done, 1 it failed, 2 a mistake in the command line, 130 stopped by Ctrl-C.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command ``nas``; exits with 0, 1 (failure) or 2 (a mistake of the user)."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments:
        print(usage())
        return 0
    if arguments[0] in ("--help", "-h", "help"):
        print(all_commands())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"hwnas {version('hwnas')}")
        return 0
    command, overrides = arguments[0], [_opened(text) for text in arguments[1:]]
    if command not in COMMANDS:
        from nas.config import suggestion

        return fail(f"unknown command {command!r}; known are {', '.join(COMMANDS)}.{suggestion(command, COMMANDS)}")
    return _run_command(command, overrides, debug=debug)


def _run_command(command: str, overrides: list[str], *, debug: bool) -> int:
    if unknown := [text for text in overrides if text.startswith("-") and text.partition("=")[0] not in FLAGS]:
        return fail(f"unknown flag {unknown[0]!r}; options are written name=value, `nas {command} --help` lists them.")
    pairs = zip(overrides, [*overrides[1:], "-"], strict=True)
    if bare := [flag for flag, value in pairs if flag in VALUED_FLAGS and (value.startswith("-") or "=" in value)]:
        return fail(f"{bare[0]} must be followed by its value, such as {bare[0]} NAME.")
    if {"--help", "-h"} & set(overrides):
        return _print_help(command, [o for o in overrides if o not in ("--help", "-h")])
    return guarded(lambda: _run_hydra(command, overrides), command, debug=debug)


def _opened(override: str) -> str:
    """An override of a mapping with free keys, written so that Hydra takes it whether the key is there or not."""
    whole = tuple(f"{name.removesuffix('.')}=" for name in OPEN_MAPPINGS)
    return f"++{override}" if override.startswith((*OPEN_MAPPINGS, *whole)) else override


def _run_hydra(command: str, overrides: list[str]) -> None:
    """Hand over to Hydra, which composes the configuration, makes the run's folder and knows ``-m`` and ``--cfg``."""
    import hydra

    from nas.config import conf_dir
    from nas.overrides import check_overrides
    from nas.records import passwords_aside
    from nas.sweeps import swept_keys

    # Errors come to us as exceptions, and not as Hydra's text with exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    flags, others = _flags_first(overrides)
    check_overrides(command, others)
    multirun = bool({"-m", "--multirun"} & set(flags))
    failures: list[Exception] = []
    swept = swept_keys(others) if multirun else None
    task = _task_function(command, failures, os.getpid(), swept)
    with _closing_logs(), passwords_aside(others) as recorded:
        # Otherwise Hydra names the job, and so its folder, after the file in which the task function is written.
        sys.argv = [f"nas {command}", *flags, f"hydra.job.name={command}", *recorded]
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(task)()
    for error in failures[:-1]:
        fail(one_line(error))
    if failures:
        raise failures[-1]


def _flags_first(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and overrides: Hydra takes these in one piece only, people write as they think."""
    flags: list[str] = []
    overrides: list[str] = []
    for before, text in zip(["", *texts], texts, strict=False):
        is_value = before in VALUED_FLAGS and "=" not in text
        (flags if is_value or text.startswith("-") else overrides).append(text)
    return flags, overrides


@contextmanager
def _closing_logs() -> Iterator[None]:
    """Close the log file that Hydra leaves open: who calls `run` may live longer than the command."""
    root = logging.getLogger()
    before = set(root.handlers)
    try:
        yield
    finally:
        for handler in set(root.handlers) - before:
            root.removeHandler(handler)
            handler.close()


def _task_function(
    command: str, failures: list[Exception], parent: int, swept: list[str] | None = None
) -> Callable[[DictConfig], Any]:
    """What Hydra runs as a job; a sweep's other jobs go on when one fails.

    Args:
        command: The command's name.
        failures: Takes what jobs raise: Hydra would print lines of its own above ours.
        parent: The process that reads the list. A launcher's other processes raise, and the launcher tells.
        swept: Options that a sweep varies; None outside of sweeps.
    """

    def task_function(config: DictConfig) -> Any:
        from nas import commands
        from nas.options import check_models, check_options
        from nas.records import hide_recorded

        try:
            hide_recorded()
            if command == "compare":
                check_models(config)  # Before the teacher is read out of it.
            check_options(command, commands.plain(config))
            if swept is not None and command == "search":
                commands.give_own_study(config, swept)
            return getattr(commands, command)(config)
        except Exception as error:
            if os.getpid() != parent:
                raise
            failures.append(error)
            return None

    return task_function


def _print_help(command: str, overrides: list[str]) -> int:
    from omegaconf import OmegaConf

    from nas.config import conf_dir
    from nas.overrides import check_overrides, known_files

    def show() -> None:
        check_overrides(command, _flags_first(overrides)[1])
        config = compose_config(command, overrides)
        text = OmegaConf.to_yaml(config)
        groups = sorted(path.name for path in conf_dir().iterdir() if path.is_dir() and path.name in config)
        print(f"nas {command}: {COMMANDS[command]}.\n\nGroups (choose with group=name):")
        for group in [*groups, *(["experiment"] if command == "search" else [])]:
            print(f"  {group}: {', '.join(known_files(group))}")
        print("\nOptions and their defaults (override with name=value; ??? must be given):\n")
        print("\n".join(f"  {line}" for line in text.splitlines()))
        print("\n-m sweeps over comma-separated values; --cfg job prints the configuration; --debug shows tracebacks.")

    return guarded(show, command, debug=False)


if __name__ == "__main__":
    main()
