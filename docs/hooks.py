"""Pages that are made from the project itself when the documentation is built."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# A line of a page that is replaced by measured rows: {results NAME: start of their claims}
_RESULTS = re.compile(r"^\{results (\w+): (.*)\}$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of all options, made of the YAML files as they are."""
    files.append(File.generated(config, "reference/configuration.md", content=configuration()))
    return files


def on_page_markdown(markdown: str, **_: Page | MkDocsConfig | Files) -> str:
    """Put measured rows where a page asks for them."""
    return _RESULTS.sub(lambda found: results(found[1], found[2].split(" | ")), markdown)


def results(name: str, starts: Sequence[str]) -> str:
    """Rows of ``benchmarks/results/NAME.json`` whose claims begin so, as a table.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no such row.
    """
    rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    found = [row for row in rows if row["claim"].startswith(tuple(starts))]
    if not found:
        raise ValueError(f"benchmarks/results/{name}.json: has no claim that begins with {' or '.join(starts)}.")
    lines = ["| measured | value | range | n |", "|---|---|---|---|"]
    for row in found:
        spread = " to ".join(f"{row[end]:.4g}" for end in ("low", "high") if row[end] is not None)
        side = (row.get("context") or {}).get("side", "")
        claim = row["claim"] if side in row["claim"] else f"{row['claim']}: {side}"
        lines.append(f"| {claim} | {row['value']:.4g} {row['unit']} | {spread} | {row['n']} |")
    return "\n".join(lines)


def configuration() -> str:
    """Every YAML file below `conf/`, commands first."""
    conf = ROOT / "conf"
    parts = [
        "# Configuration\n",
        (
            "Every option with its default, as the files of `conf/` say it. `nas COMMAND --help` shows them put "
            "together; override any with `name=value`, choose a group's file with `group=name`.\n"
        ),
        "## Commands\n",
    ]
    parts += [_block(path, path.stem) for path in sorted(conf.glob("*.yaml"))]
    for group in sorted(path for path in conf.iterdir() if path.is_dir()):
        parts.append(f"## {group.name}\n")
        parts += [_block(path, f"{group.name}={path.stem}") for path in sorted(group.glob("*.yaml"))]
    return "\n".join(parts)


def _block(path: Path, title: str) -> str:
    return f"### `{title}`\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```\n"
