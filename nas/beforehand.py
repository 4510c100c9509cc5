"""What a search would stumble over late, told before anything is measured: goals, its first evaluations, finalists."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.evaluation.aspects import NamedMetrics
    from nas.searching import SearchBench
    from nas.workbench import Workbench


def check_search(stages: SearchBench) -> None:
    """Check goals and constraints, the options of the sensitivity table, and those of the finalists.

    Raises:
        ValueError: Something would fail later; the message names the option and its mend.
    """
    bench = stages.bench
    _ = bench.place  # Refused before anything is measured where there is none.
    if not stages.settings["only"]:
        check_finalists(bench)
    check_sensitivity(stages)
    check_meters(bench, {*stages.objectives.goals, *stages.objectives.constraints})
    if bench.extras is not None:
        check_extras(bench, bench.extras)


def check_sensitivity(stages: SearchBench) -> None:
    """Check that there are evaluations enough for the space's dimensions.

    Raises:
        ValueError: There are too few.
    """
    from nas.engine.sensitivity import least_evaluations

    asked, least = int(stages.settings["sensitivity_evaluations"]), least_evaluations(stages.bench.space)
    if 0 < asked < least:
        raise ValueError(
            f"`search.sensitivity_evaluations` must be at least {least} for this space (one for its largest subnet, "
            f"and one for each of its {least - 1} dimensions), or 0 for none, but got {asked}."
        )


def check_finalists(bench: Workbench) -> None:
    """Check what exporting and measuring a front will ask for, beyond kinds and ranges of options.

    Raises:
        ValueError: They are to be measured in another process, or there are too few calibration samples to refit them.
    """
    if bench.config["finalists"]["protocol"].get("isolate"):
        raise ValueError("`finalists.protocol.isolate` must be false: finalists are measured in this process.")
    check_recalibration(bench)


def check_recalibration(bench: Workbench) -> None:
    """Check that there are calibration samples enough to refit a finalist and to see whether that helps.

    Raises:
        ValueError: There are too few.
    """
    if not bench.config["finalists"]["recalibrate"]:
        return
    size = int(bench.config["calibrate"]["batch_size"])
    samples = bench.task.samples
    if len(samples.order("calibration", size)) < 2:
        raise ValueError(
            f"`finalists.recalibrate` must be false where the calibration split is one batch, but its "
            f"{samples.size('calibration')} samples are one of `calibrate.batch_size`={size}: lower that, raise "
            "`task.data.calibration`, or set finalists.recalibrate=false."
        )


def check_meters(bench: Workbench, names: Collection[str]) -> None:
    """Check that what goals and constraints name can be measured here.

    Raises:
        ValueError: A quantity is not among the profile's meters, or there is nothing to measure it with.
    """
    from latency_models.meters import find_energy_meter
    from nas.profiling import METERS

    asked = [name for name in METERS if name in names]
    meters = list(bench.config["profile"]["meters"])
    for name in asked:
        if name not in meters:
            raise ValueError(
                f"`profile.meters` must have {name!r}, because the objectives name it, but has {meters}: "
                f"profile.meters=[{','.join([*meters, name])}]"
            )
        if bench.device.transport != "local":
            raise ValueError(f"objectives: {name!r} is measured on this machine alone, but {bench.device.name} is not.")
    if "energy_mj" in asked and find_energy_meter(bench.device) is None:
        raise ValueError(
            "objectives: 'energy_mj' needs a counter of energy, but this machine has none that may be read (RAPL of "
            "CPUs, mostly by root alone; NVML of GPUs); name latency_ms or macs instead."
        )


def check_extras(bench: Workbench, extras: NamedMetrics) -> None:
    """Check that metrics beyond the task's own have a value: that of the teacher itself, on the validation split.

    Raises:
        ValueError: One has none; the message tells what can be asked for.
    """
    from nas.distillation.teacher import TeacherOutputs
    from nas.evaluation.evaluate import evaluate_model

    teacher = TeacherOutputs(
        bench.task, bench.distiller.needs, str(bench.cache), model=bench.teacher, place=bench.place
    )
    batches = len(bench.task.samples.order("validation", teacher.batch_size))
    with bench.stage("check metrics"), bench.progress("Checking metrics of the teacher", batches) as bar:
        teacher.prepare(["validation"], bar)
        found = evaluate_model(bench.teacher, bench.task, teacher, extras=extras, place=bench.place)
    if strange := [name for name in extras.names if not math.isfinite(found[name])]:
        raise ValueError(
            f"objectives: {strange[0]!r} must be a number, but is {found[strange[0]]} for the teacher on the "
            f"validation split; can be asked for: {', '.join(extras.available)}."
        )
