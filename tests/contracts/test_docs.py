"""The documentation names only what exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`((?:nas|latency_models|search_spaces|conf|tests|benchmarks)/[\w./-]*)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+\.md)\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_noun_lives_where_the_architecture_says() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|.*\| `([\w/]+)\.py` \|$", text, re.MULTILINE)
    assert len(rows) >= 20
    for nouns, path in rows:
        module = importlib.import_module(path.replace("/", "."))
        for noun in re.findall(r"`(\w+)`", nouns):
            assert getattr(module, noun, None) is not None, f"{noun} is not in {path}.py"


def test_the_changelog_and_the_citation_know_the_version() -> None:
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"version: {version[1]}" in (ROOT / "CITATION.cff").read_text()
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
