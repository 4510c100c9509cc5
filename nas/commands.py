"""The commands: one function each, from a resolved configuration to an exit without error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.workbench import Workbench

if TYPE_CHECKING:
    from omegaconf import DictConfig


def devices(config: DictConfig) -> None:
    """List the devices of this machine, each with a short check."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from latency_models.discovery import find_devices

    table = Table("device", "state", "check ms", "fingerprint", title="Devices")
    for found in find_devices(check_seconds=float(config["check_seconds"])):
        check = "-" if found.check_ms is None else f"{found.check_ms:.3f}"
        known = "-" if found.problem else found.device.fingerprint_id
        # What to install has brackets, which the table would take for markup.
        table.add_row(found.device.name, escape(found.problem or "ready"), check, known)
    Console().print(table)


def profile(config: DictConfig) -> None:
    """Measure subnets on the device, fit its predictor, and print the scorecard."""
    from latency_models.backends.base import check_installed
    from nas.measuring import DeviceBench
    from nas.scorecard import print_profile

    bench = Workbench(plain(config))
    check_installed(bench.device)
    print_profile(DeviceBench(bench))


def bundle(config: DictConfig) -> None:
    """Write what `nas profile` would measure as a folder for another machine."""
    from nas.elsewhere import Elsewhere, check_elsewhere
    from nas.measuring import DeviceBench

    bench = Workbench(plain(config))
    check_elsewhere(bench.device, "A bundle")
    wanted = bench.config["directory"]
    directory, manifest = Elsewhere(DeviceBench(bench)).write(Path(wanted) if wanted else None)
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6
    print(f"{directory}  {len(manifest['subnets'])} subnets, {size:.0f} MB; {directory / 'README.txt'} says what to do")


def calibrate(config: DictConfig) -> None:
    """Prepare the compensated variants of a teacher."""
    bench = Workbench(plain(config))
    library = bench.library
    print(f"{bench.library_path}  {library.size}")


def train(config: DictConfig) -> None:
    """Train the supernet's smaller levels against the teacher, which stays as it is."""
    from nas.training import SupernetTraining

    SupernetTraining(Workbench(plain(config))).run()


def search(config: DictConfig) -> None:
    """Search, export the best subnets, measure them and report: does whatever is missing."""
    from latency_models.backends.base import check_installed
    from nas.config import build
    from nas.engine.storage import hide_password
    from nas.failures import one_line
    from nas.finishing import Finish
    from nas.measuring import DeviceBench
    from nas.redrawing import report_found
    from nas.searching import SearchBench
    from nas.smoke import make_smoke_assets

    bench = Workbench(plain(config))
    if bench.config["study"] == "smoke":
        make_smoke_assets(bench.root / "smoke")
    check_installed(bench.device)
    stages = SearchBench(bench, DeviceBench(bench))
    stages.storage.check()
    found = stages.run()
    stages.directory.mkdir(parents=True, exist_ok=True)  # Of a study in a database there may be none yet.
    text = hide_password(json.dumps(bench.config, indent=1, sort_keys=True))
    (stages.directory / "config.json").write_text(text + "\n", encoding="utf-8")
    if bench.config["search"]["only"]:
        study = stages.directory.name
        print(f"{len(found.candidates)} subnets, {len(found.front)} of them on the front: nas pareto study={study}")
        return
    with stages.undisturbed():
        found_report = Finish(stages).run(found)
        if bench.config["finalists"]["cards"]:
            from nas.cards import study_cards

            try:
                study_cards(bench, stages.directory)
            except Exception as error:  # noqa: BLE001 - what is searched, exported and measured is reported anyway
                bench.say(f"There are no report cards, because writing them failed: {one_line(error)}")
    report_found(found_report, stages.directory, bench.root, build(bench.config["storage"], "storage"), bench.mode)


def give_own_study(config: DictConfig, swept: Sequence[str]) -> None:
    """Name the study of a sweep's job after what the sweep varies; where journals are the default's, they share one."""
    from hydra.core.hydra_config import HydraConfig

    from nas.engine.journal import JOURNAL
    from nas.sweeps import study_of_job

    data = plain(config)
    config["study"] = study_of_job(str(config["study"]), swept, data, dict(HydraConfig.get().runtime.choices))
    if data["storage"].get("path") == JOURNAL:
        config["storage"]["shared"] = True


def pareto(config: DictConfig) -> None:
    """Print a study's Pareto front, also while it is searched."""
    from nas.front import print_pareto
    from nas.studies import study_directory

    bench = Workbench(plain(config))
    print_pareto(bench.config, study_directory(bench))


def export(config: DictConfig) -> None:
    """Export a study's subnet by name, without searching: verified, judged, and measured beside its teacher."""
    from nas.exporting import Export
    from nas.measuring import DeviceBench
    from nas.searching import SearchBench

    bench = Workbench(_with_study(plain(config)))
    exported = Export(SearchBench(bench, DeviceBench(bench))).run()
    print(exported.directory)


def evaluate(config: DictConfig) -> None:
    """Judge a model folder or an ONNX file against its teacher, and print its report card."""
    from nas.cards import JudgeBench, chosen_form, write_cards
    from nas.reports.compare import print_card

    bench = Workbench(plain(config))
    judging, shown = JudgeBench(bench), chosen_form(bench)
    cards = judging.cards([judging.subject(str(bench.config["candidate"] or bench.config["model"]["path"]))])
    folders = write_cards(cards, bench)
    if shown == "json":
        print(json.dumps(cards[0].to_dict(), indent=1))
    elif shown == "markdown":
        print((folders[0] / "model_card.md").read_text(encoding="utf-8"))
    else:
        print_card(cards[0], sys.stdout)
    bench.say(f"Report card: {folders[0] / 'model_card.md'}, {folders[0] / 'metrics.json'}")


def compare(config: DictConfig) -> None:
    """Judge several models against one teacher, and print their report cards side by side."""
    from nas.cards import JudgeBench, chosen_form, write_cards
    from nas.reports.compare import comparison_csv, comparison_markdown, print_comparison
    from nas.subjects import told_apart

    bench = Workbench(plain(config))
    judging, shown = JudgeBench(bench), chosen_form(bench)
    paths = [str(path) for path in bench.config["models"]]
    cards = judging.cards([judging.subject(*found) for found in zip(paths, told_apart(paths), strict=True)])
    folders = write_cards(cards, bench)
    directory = folders[0].parent
    (directory / "comparison.csv").write_text(comparison_csv(cards), encoding="utf-8")
    (directory / "comparison.md").write_text(comparison_markdown(cards), encoding="utf-8")
    if shown == "json":
        print(json.dumps([card.to_dict() for card in cards], indent=1))
    elif shown == "markdown":
        print(comparison_markdown(cards))
    else:
        print_comparison(cards, sys.stdout)
    bench.say(f"Report cards: {directory}")


def report(config: DictConfig) -> None:
    """Draw the report of a study, or one of several, again from what was stored."""
    from nas.config import build
    from nas.redrawing import find_studies, redraw
    from nas.reports.stored import stored_report
    from nas.studies import plain_name

    options = plain(config)
    given = options["study"] if isinstance(options["study"], list) else [options["study"]]
    wanted = [plain_name(name) for name in given]
    root = Path(options["root"])
    watch, studies = find_studies(root, build(options["storage"], "storage"), wanted)
    if len(studies) == 1:
        if studies[0].problem:
            raise ValueError(studies[0].problem)
        directory = studies[0].facts.directory or root / wanted[0]
        redraw(stored_report(studies[0]), directory, watch, studies[0], options["progress"])
        return
    from nas.reports.comparison import write_comparison

    files = write_comparison(studies, options["directory"] or root / "reports" / "+".join(wanted))
    print(f"Report: {files.html}")


def doctor(config: DictConfig) -> None:
    """Check this installation and say what to mend."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nas.config import build
    from nas.doctor import count_states, examine

    options = plain(config)
    table, checks = Table("check", "state", "found", "what mends it", title_justify="left"), []
    colours = {"ok": "green", "note": "yellow", "problem": "red"}
    for check in examine(Path(options["root"]), build(options["storage"], "storage"), float(options["check_seconds"])):
        checks.append(check)
        table.add_row(Text(check.name), Text(check.state, colours[check.state]), Text(check.found), Text(check.mend))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # Nothing in a file or a pipe is 80 columns wide.
    console.print(table)
    counts = count_states(checks)
    print(f"{counts['ok']} ok, {counts['note']} notes, {counts['problem']} problems")
    if counts["problem"]:
        raise RuntimeError(f"doctor: {counts['problem']} problems; the table says what mends them.")


def dashboard(config: DictConfig) -> None:
    """Show all studies in the browser, live, until Ctrl-C."""
    from nas.config import build, construct
    from nas.dashboard.serve import ServeSettings, serve
    from nas.dashboard.watch import Watch

    options = plain(config)
    settings: ServeSettings = construct(ServeSettings, options["dashboard"], "dashboard")
    watch = Watch(options["root"], build(options["storage"], "storage"), settings.refresh_s)
    serve(watch, settings, lambda text: print(text, flush=True))


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain data.

    Raises:
        omegaconf.errors.MissingMandatoryValue: A value that must be given is not.
    """
    from omegaconf import OmegaConf

    data = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _with_study(config: dict[str, Any]) -> dict[str, Any]:
    """A study's own configuration, with the few options that exporting it has."""
    from nas.redrawing import no_study
    from nas.studies import study_directory

    directory = study_directory(Workbench(config))
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(no_study(directory.parent, directory.name, _with_config(directory.parent)))
    stored = json.loads(path.read_text(encoding="utf-8"))
    own = ("root", "study", "progress", "torch_threads", "torch_device", "pick", "under", "directory")
    return {**stored, **{key: config[key] for key in (*own, "format", "precision", "distil", "temperature", "measure")}}


def _with_config(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/config.json"))
