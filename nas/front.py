"""`nas pareto`: a study's front for people, read from its storage without loading a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import build
from nas.engine.candidates import Candidate, candidates_of, nearest_to_feasible, pareto_front, pick, shown
from nas.engine.costs import ANALYTIC
from nas.engine.errors import InfeasibleError
from nas.engine.limits import Objectives, parse_limit
from nas.engine.pareto import check_pick
from nas.engine.storage import OpensStorage
from nas.reports.data import Report
from nas.reports.report import DATA_NAME
from nas.reports.tables import print_whole
from search_spaces.subnet import SubnetConfig

if TYPE_CHECKING:
    from rich.table import Table

PICKS = ("knee", "fastest", "smallest")


def print_pareto(config: Mapping[str, Any], directory: Path) -> None:
    """Print a study's front, or the member that is picked.

    Args:
        config: The resolved configuration of ``nas pareto``.
        directory: The study's folder.

    Raises:
        ValueError: The storage has no such study, the pick is unknown, or nothing is feasible.
    """
    from rich.console import Console

    chosen = config["pick"]
    if chosen is not None and not str(chosen).isdecimal():
        check_pick(chosen)
    _, front, objectives = read_front(storage_of(config, directory), str(config["study"]), directory)
    measured = measured_latencies(directory)
    console = Console()
    if chosen is None:
        members = shown(front, objectives, int(config["count"]))
        print_whole(front_table(members, front, objectives, measured, str(config["study"])), console)
        console.print(f"nas export study={config['study']} pick=knee   writes the best compromise again")
        return
    member = pick(front, objectives, chosen, config["under"] or None)
    print_whole(front_table([member], front, objectives, measured, str(config["study"])), console)
    print_whole(block_table(member.subnet), console)


def storage_of(config: Mapping[str, Any], directory: Path) -> OpensStorage:
    """Where the study is kept: as it was begun, where that is known and holds no password that was hidden."""
    path = directory / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8")).get("storage") if path.is_file() else None
    if not isinstance(stored, Mapping) or "***" in json.dumps(stored):
        stored = config["storage"]
    storage: OpensStorage = build(stored, "storage")
    return storage


def read_front(
    storage: OpensStorage, name: str, directory: Path
) -> tuple[list[Candidate], list[Candidate], Objectives]:
    """A study's candidates, its front, and the goals that its storage knows.

    Raises:
        ValueError: There is no such study, or nothing in it is feasible.
    """
    import optuna

    if not directory.is_dir():
        there = ", ".join(sorted(path.parent.name for path in directory.parent.glob("*/journal.log"))) or "none yet"
        raise ValueError(f"`study` must be one of those below {directory.parent} ({there}), but got {name!r}.")
    opened = storage.open(directory)
    try:
        study = optuna.load_study(study_name=name, storage=opened.backend)
        trials = study.get_trials(deepcopy=False)
        directions = ["maximize" if d.name == "MAXIMIZE" else "minimize" for d in study.directions]
        names = study.metric_names or [f"value {index}" for index in range(len(directions))]
    except KeyError:
        raise ValueError(
            f"{opened.described}: has no study {name!r}; a search begins it when the device is profiled."
        ) from None
    finally:
        opened.disconnect()
    objectives = Objectives(dict(zip(names, directions, strict=True)), _limits(study.user_attrs.get("context")))
    found = candidates_of(trials, objectives)
    front = pareto_front(found, objectives)
    if not front:
        ended = sum(trial.state.is_finished() for trial in trials)
        nearest = nearest_to_feasible(found)
        raise InfeasibleError(f"study {name!r}: none of its {ended} trials keeps to all constraints; {nearest}.")
    return found, front, objectives


def _limits(context: Any) -> dict[str, float | str]:
    """The constraints in numbers, as the search wrote them into its study: ``latency_ms <= 12``."""
    found: dict[str, float | str] = {}
    try:
        texts = [str(text).split(maxsplit=1) for text in json.loads(context)["constraints"].values()]
        for name, limit in texts:
            parse_limit(name, limit)
            found[name] = limit
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}  # Another program wrote the study, or an older one.
    return found


def measured_latencies(directory: Path) -> dict[SubnetConfig, dict[str, float]]:
    """What the study's finalists took on the device: subnet -> precision -> median ms."""
    path = directory / DATA_NAME
    if not path.is_file():
        return {}
    try:
        models = Report.load(path).models
    except ValueError as error:
        print(f"nas: nothing measured is shown, because {error}", file=sys.stderr)
        return {}
    found: dict[SubnetConfig, dict[str, float]] = {}
    for row in models:
        if row.measured is not None and row.role == "front":
            found.setdefault(row.subnet, {})[row.precision] = row.measured.p50_ms
    return found


def front_table(
    members: Sequence[Candidate],
    front: Sequence[Candidate],
    objectives: Objectives,
    measured: Mapping[SubnetConfig, Mapping[str, float]],
    study: str,
) -> Table:
    """Members of a front with predicted and, for finalists, measured values; picks by name."""
    from rich.table import Table
    from rich.text import Text  # Brackets in plain strings would be taken for markup.

    picks: dict[int, list[str]] = {}
    for name in PICKS:
        picks.setdefault(pick(front, objectives, name).number, []).append(name)
    asked = dict.fromkeys([*objectives.goals, *objectives.constraints])
    names = [name for name in asked if name not in front[0].predicted]
    costs = [name for name in front[0].predicted if name not in ANALYTIC or (name in asked and name == "weight_mb")]
    precisions = sorted({precision for row in measured.values() for precision in row})
    distilled = any(member.steps for member in members)
    headings = [
        "trial",
        *(_wanted(name, name, objectives) for name in names),
        *(_wanted(name, f"{name} [low, high]", objectives) for name in costs),
        _wanted("parameters", "parameters", objectives),
        _wanted("macs", "MACs", objectives),
        *(["steps"] if distilled else []),
        *(f"measured {precision} ms" for precision in precisions),
        "pick",
    ]
    table = Table(title=f"Pareto front of {study}: {len(members)} of {len(front)} members")
    for heading in headings:
        table.add_column(Text(heading), justify="left" if heading in ("trial", "pick") else "right")
    for member in members:
        took = measured.get(member.subnet, {})
        table.add_row(
            str(member.number),
            *(f"{member.numbers[name]:.4g}" if name in member.numbers else "-" for name in names),
            *(_interval(member.predicted[name]) for name in costs),
            f"{member.number_of('parameters') / 1e6:.3g} M",
            f"{member.number_of('macs') / 1e6:.4g} M",
            *([str(member.steps)] if distilled else []),
            *(f"{took[precision]:.4g}" if precision in took else "-" for precision in precisions),
            ", ".join(picks.get(member.number, [])),
        )
    return table


def _wanted(name: str, title: str, objectives: Objectives) -> str:
    """A heading with what was asked for under its name: ``latency_ms [low, high], min, <= 12``."""
    direction, limit = objectives.goals.get(name, ""), objectives.constraints.get(name, "")
    return ", ".join(part for part in (title, direction[:3], str(limit)) if part)


def block_table(subnet: SubnetConfig) -> Table:
    """An architecture, block by block."""
    from rich.table import Table

    ranks = ("rank_qkv", "rank_attention_out", "rank_ffn_in", "rank_ffn_out")
    used = [name for name in ranks if any(getattr(block, name) for block in subnet.blocks)]
    title = f"{subnet.depth} blocks are left, hidden size {subnet.hidden_size}"
    table = Table("block", "heads", "ffn", *used, "precision", title=title)
    for index, block in enumerate(subnet.blocks):
        if block.skipped:
            table.add_row(str(index), "skipped", *[""] * (len(used) + 2))
            continue
        sizes = (str(getattr(block, name) or "dense") for name in used)
        table.add_row(str(index), str(block.heads), str(block.ffn), *sizes, block.precision)
    return table


def _interval(values: tuple[float, float, float]) -> str:
    value, lower, upper = values
    return f"{value:.4g}" if lower == upper else f"{value:.4g} [{lower:.4g}, {upper:.4g}]"
