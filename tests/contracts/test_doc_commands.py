"""Every command of the README and the documentation is taken by the command line, and runs where a test can run it.

All are composed, so that every option exists. Those in code blocks are then executed on tiny models, in the order of
the pages, beginning with the README's first search; `tests.contracts.documented` makes them small. Only composed are
those that need other machines, GPUs, servers or packages that are not installed, or take long and are run elsewhere
(`documented.COMPOSED` lists them with their reasons), and what prose names between backticks: mostly no whole command.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nas.__main__ import COMMANDS, _opened, run
from nas.failures import compose_config
from tests.contracts.documented import make_places, place_of, shortened, why_composed

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = {"-m", "--multirun", "--help", "--debug"}
# Packages of Hydra's own that are not installed here.
FOREIGN = ("hydra/launcher=", "hydra.launcher.")


def in_blocks(text: str) -> list[str]:
    """Commands of a page's code blocks."""
    blocks = "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*", "", line) for line in blocks.splitlines() if line.startswith("nas ")]
    return [" ".join(line.split()) for line in lines]


def in_prose(text: str) -> list[str]:
    """Commands between backticks."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`(nas [^`]+)`", prose)]


def read_pages() -> dict[str, str]:
    """The pages' texts by name, the README first."""
    return {page.name: page.read_text(encoding="utf-8") for page in PAGES}


def commands() -> list[tuple[str, str]]:
    """Page and command line of every `nas` command in a code block or between backticks."""
    lines = [(page, line) for page, text in read_pages().items() for line in in_blocks(text) + in_prose(text)]
    return list(dict.fromkeys(lines))


def executed() -> list[tuple[str, str]]:
    """Page and command line of those that are run, each once."""
    first: dict[str, str] = {}
    for page, text in read_pages().items():
        for line in in_blocks(text):
            if line.split()[1] in COMMANDS and why_composed(line) is None:
                first.setdefault(line, page)
    return [(page, line) for line, page in first.items()]


def test_there_are_commands():
    assert len(commands()) > 20
    assert len(executed()) > 20


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
    config = compose_config(command, overrides)
    assert OmegaConf.to_yaml(config)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the pages' models and texts, with the studies that pages speak of: the README's, and a second."""
    root = tmp_path_factory.mktemp("documented")
    make_places(root)
    _, first = next((page, line) for page, line in executed() if line.startswith("nas search"))
    with contextlib.chdir(root / "encoder"):
        arguments = [word for word in shortened(first, "encoder") if word != "search.only=true"]
        assert run(arguments) == 0
        assert run([*arguments, "study=second", "search.only=true"]) == 0
        models = Path("runs", "first", "models")
        shutil.copytree(models / "first-1", models / "first-3")  # Exporting three takes three times as long.
    return root


@pytest.mark.parametrize(("page", "line"), executed(), ids=lambda value: value[:60])
def test_it_runs(page, line, places, monkeypatch):
    place = place_of(page, line)
    monkeypatch.chdir(places / place)
    assert run(shortened(line, place)) == 0
