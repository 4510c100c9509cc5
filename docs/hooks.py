"""Pages that are made from the project itself when the documentation is built."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of all options, made of the YAML files as they are."""
    files.append(File.generated(config, "reference/configuration.md", content=configuration()))
    return files


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
