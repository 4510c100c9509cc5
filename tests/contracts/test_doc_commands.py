"""Every command of the README and the documentation is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nas.__main__ import COMMANDS, _compose, _opened

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = {"-m", "--multirun", "--help", "--debug"}
# Packages of Hydra's own that are not installed here.
FOREIGN = ("hydra/launcher=", "hydra.launcher.")


def commands() -> list[tuple[str, str]]:
    """Page and command line of every `nas` command in a code block or between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
        lines = [line for line in blocks.splitlines() if line.startswith("nas ")]
        inline = [
            " ".join(code.split())
            for code in re.findall(r"`(nas [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        ]
        found += [(page.name, re.sub(r"\s+#.*", "", line)) for line in [*lines, *inline]]
    return list(dict.fromkeys(found))


def test_there_are_commands():
    assert len(commands()) > 20


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: value[:60])
def test_the_command_line_takes_it(page, line):
    command, *words = shlex.split(line)[1:]
    if command == "COMMAND":
        return
    if command in ("--help", "--version"):
        return
    assert command in COMMANDS, f"{page}: {line}"
    overrides = [
        _opened(word) for word in words if word not in FLAGS and word != "..." and not word.startswith(FOREIGN)
    ]
    sweep = "-m" in words
    if sweep:
        overrides = [re.sub(r"^([\w.+]+=[^\[]*?),.*", r"\1", word) for word in overrides]
    config = _compose(command, overrides)
    assert OmegaConf.to_yaml(config)
