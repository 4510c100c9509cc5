"""The command line's options as they are written, checked before Hydra composes anything of them or makes a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nas.config import ConfigError, conf_dir
from nas.engine.storage import hide_password
from nas.option_kinds import shown

_MEND = "quote it for the shell, close every bracket, and put texts with signs in quotes of their own: name='\"a=b\"'"


def check_overrides(command: str, texts: Sequence[str]) -> None:
    """Refuse what is no option, what is chosen from no group, and a root that is no folder's name.

    Args:
        command: Whose options they are.
        texts: ``name=value`` each.

    Raises:
        ConfigError: The message names the option.
    """
    for text in texts:
        name, values = _parsed(command, text)
        for value in values:
            if name == "root" and (not isinstance(value, str) or not value):
                raise ConfigError(f"`root` must be a folder, such as root=runs, but got {shown(value)}.")
            if (conf_dir() / name).is_dir():
                _check_choice(name, value)


def known_files(group: str) -> list[str]:
    """What a group's files are called, those of the project."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _parsed(command: str, text: str) -> tuple[str, list[Any]]:
    """An option's name and its values: several where it is swept, none where it is taken away."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    written = f"options are written name=value, but got {hide_password(text)!r}"
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        if "=" not in text:
            raise ConfigError(f"{written}; `nas {command} --help` lists them.") from None
        raise ConfigError(f"{written}, whose value cannot be read: {_MEND}.") from None
    if not override.key_or_group:
        raise ConfigError(f"{written}; `nas {command} --help` lists them.")
    if override.is_delete():
        return override.key_or_group, []
    value = override._value  # `value` would turn sweeps into texts.
    return override.key_or_group, list(value.list) if isinstance(value, ChoiceSweep) else [value]


def _check_choice(group: str, value: Any) -> None:
    names = value if isinstance(value, list) else [value]
    nothing = group == "experiment" and value is None  # The one that may be left out.
    if not nothing and not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"`{group}` must be one of {', '.join(known_files(group))}, or the name of a file of your own in "
            f"--config-dir, but got {shown(value)}."
        )
