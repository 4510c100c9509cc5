"""The demo's study as benchmarks use it: its stages, the members of its front, and measurements of their exports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from latency_models.measurement import Measurement
    from nas.engine.candidates import Candidate
    from nas.exporting import Export
    from nas.measuring import DeviceBench

PROTOCOL = {"warmup_seconds": 0.2, "burst": 3, "min_visits": 15, "target": 0.005, "max_seconds": 3.0, "retries": 0}
TEXTS = 300
MEMBERS = 10


def stages(options: Any) -> Export:
    """The study's stages, as `nas export` has them."""
    from hydra import compose, initialize_config_dir

    from nas import commands
    from nas.config import conf_dir
    from nas.exporting import Export
    from nas.measuring import DeviceBench
    from nas.searching import SearchBench
    from nas.workbench import Workbench

    overrides = [f"root={options.root}", f"study={options.study}", "torch_threads=1", "progress=plain"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="export"):
        config = commands._with_study(commands.plain(compose("export", overrides=overrides)))
    bench = Workbench(config)
    return Export(SearchBench(bench, DeviceBench(bench)))


def device_bench(
    options: Any, device: str, subnets: int = 36, judges: int = 8, space: str | None = None
) -> DeviceBench:
    """The stages of `nas profile` for one device, on the study's model and texts, in its space or another one."""
    from hydra import compose, initialize_config_dir

    from nas.commands import plain
    from nas.config import conf_dir
    from nas.measuring import DeviceBench
    from nas.workbench import Workbench

    study = json.loads((options.root / options.study / "config.json").read_text(encoding="utf-8"))
    overrides = [
        f"root={options.root}",
        f"device={device}",
        f"model.path={study['model']['path']}",
        f"task.data.path={study['task']['data']['path']}",
        *([] if space is None else [f"space={space}"]),
        "torch_threads=1",
        "progress=plain",
        "profile.transfer=false",
        f"profile.num_subnets={12 if options.quick else subnets}",
        f"profile.held_out={4 if options.quick else judges}",
        f"profile.active.start={12 if options.quick else 24}",
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="profile"):
        config = plain(compose("profile", overrides=overrides))
    own = study["space"] if space is None else config["space"]
    return DeviceBench(Workbench({**config, "task": study["task"], "space": own}))


def front(export: Export) -> Sequence[Candidate]:
    """Members of the study's front, spread along it, with near ones where it has too few."""
    from nas.engine.candidates import shown

    found = export.stages.stored()
    members = list(shown(found.front, export.stages.objectives, MEMBERS))
    rest = [candidate for candidate in found.candidates if candidate not in members]
    return [*members, *rest][:MEMBERS]


def latencies(
    export: Export, jobs: Mapping[Any, Callable[..., Any]], reference: Callable[..., Any], options: Any, **changes: Any
) -> dict[Any, Measurement]:
    """Measurements of models, interleaved with one another and with a reference."""
    from latency_models.profiler import Profiler

    inputs = export._inputs(1)
    settings = {**PROTOCOL, "chunk_size": len(jobs) + 1, **changes}
    if options.quick:
        settings |= {"min_visits": 5, "max_seconds": 0.3}
    profiler = Profiler(**settings)
    return dict(profiler.measure([(key, job(inputs)) for key, job in jobs.items()], reference(inputs)))


def embeddings(export: Export, device: Any, file: Path, count: int = TEXTS) -> np.ndarray[Any, Any]:
    """Embeddings of the first test sentences, one at a time, ``(sentences, hidden)``."""
    from nas.export.quality import RuntimeModel

    task = export.bench.task
    model = RuntimeModel(device, file, task.output_names)
    rows = task.samples.order("test", 1)[:: max(1, task.samples.size("test") // count)]
    found = [task.outputs(model, task.samples.batch("test", row))["embedding"].numpy() for row in rows]
    return np.concatenate(found)
