"""Is there a subnet with blocks of int8 and of fp32 that no subnet with all its blocks in int8 dominates?

MiniLM on ONNX Runtime's CPU, one thread, batch 1, 128 tokens. Two searches with as many trials each: one chooses every
block's precision beside its sizes (`space=width_rank_precision`), the other has all blocks in int8; they share latency
predictor and evaluations. Of the mixed members on the front of both, some are measured, beside the best of the all-int8
ones - of either search - that are predicted to be no slower, and the next slower ones. Quality is the cosine of the
quantised graphs' embeddings to the teacher's on texts that neither calibration nor search saw, text by text.

    python benchmarks/mixed_precision.py                # continues where an earlier run stopped
    python benchmarks/mixed_precision.py --no-measuring  # the part that needs no quiet machine
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import Result
from numpy.typing import NDArray

from latency_models.measurement import Measurement, speedup
from nas.engine.candidates import Candidate, pareto_front, shown
from nas.searching import SearchBench
from search_spaces.subnet import SubnetConfig

Floats = NDArray[np.float64]
MIXED, INT8 = "mixed", "int8"
# An all-int8 subnet counts as no slower than a mixed one up to this share of its latency: against the mixed one.
TOLERANCE = 0.01
RESAMPLES = 2000


def main() -> int:
    arguments = common.parser(__doc__)
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs", help="folder of the studies")
    arguments.add_argument("--trials", type=int, default=100, help="trials of each search")
    arguments.add_argument("--members", type=int, default=6, help="mixed members that are measured")
    arguments.add_argument("--no-measuring", action="store_true", help="search and judge only")
    options = arguments.parse_args()
    data = options.data or common.ASSETS
    if not (data / "movie.csv").is_file() or not (data / "minilm").is_dir():
        print(f"skipped: {data} lacks minilm or movie.csv; run `make assets`")
        return 0
    trials = 30 if options.quick else options.trials
    mixed = stages(MIXED, trials, data, options.root)
    int8 = stages(INT8, trials, data, options.root)
    # Latency is of sizes and precisions, whichever space proposed them.
    int8.costs = mixed.costs
    found = [*candidates(mixed), *candidates(int8)]
    members, rivals = to_measure(mixed, found, 2 if options.quick else options.members)
    near = neighbours(mixed, found)
    if options.no_measuring:
        for subnet in [*(member.subnet for member in members), *rivals, *teachers(mixed).values()]:
            judged(mixed, subnet)
        return 0
    context = {**common.machine(), "trials": trials, "evaluated": len(found), "seed": 0}
    results = [*compare(mixed, members, rivals, context), replace(near, context=context)]
    common.show(results)
    print(common.write("mixed_precision_quick" if options.quick else "mixed_precision", results, options.output))
    return 0


def stages(arm: str, trials: int, data: Path, root: Path) -> SearchBench:
    """The stages of one search."""
    from hydra import compose, initialize_config_dir

    from nas.commands import plain
    from nas.config import conf_dir
    from nas.measuring import DeviceBench
    from nas.workbench import Workbench

    overrides = [
        f"root={root}", f"study=precision-{arm}", f"model.path={data / 'minilm'}",
        f"task.data.path={data / 'movie.csv'}", "task.data.validation=400", "task.data.test=1000",
        "space=width_rank_precision", "device=onnxruntime_cpu",
        '+objectives.constraints.quality=">= 0.8"', f"search.num_trials={trials}", "search.sensitivity_evaluations=90",
        "profile.num_subnets=48", "profile.held_out=12", "torch_threads=1", "progress=plain",
    ]  # fmt: skip
    if arm == INT8:
        overrides.append("space.choices.precision=[int8]")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        bench = Workbench(plain(compose("search", overrides=overrides)))
    return SearchBench(bench, DeviceBench(bench))


def candidates(arm: SearchBench) -> list[Candidate]:
    """Search, and give everything that keeps to the constraints."""
    arm.directory.mkdir(parents=True, exist_ok=True)
    return [candidate for candidate in arm.run().candidates if candidate.feasible]


def kind(subnet: SubnetConfig) -> str:
    """``int8``, ``fp32`` or ``mixed``: what the blocks that are left have."""
    found = {subnet.blocks[index].precision for index in subnet.kept}
    return found.pop() if len(found) == 1 else MIXED


def to_measure(
    arm: SearchBench, found: Sequence[Candidate], count: int
) -> tuple[list[Candidate], dict[SubnetConfig, Candidate]]:
    """Mixed members spread along the front of everything, and the all-int8 subnets that could dominate them."""
    unique = list({candidate.subnet: candidate for candidate in found}.values())
    front = pareto_front(unique, arm.objectives)
    print(
        f"front of {len(unique)}: " + ", ".join(f"{sum(kind(c.subnet) == k for c in front)} {k}" for k in (MIXED, INT8))
    )
    members = shown([c for c in front if kind(c.subnet) == MIXED], arm.objectives, count)
    whole = arm.bench.space.teacher.on_device("int8")
    rest = pareto_front([c for c in unique if kind(c.subnet) == INT8], arm.objectives)
    quality, rivals = arm.bench.task.quality, {c.subnet: c for c in rest if c.subnet == whole}
    for member in members:
        limit = member.number_of("latency_ms") * (1 + TOLERANCE)
        faster = [c for c in rest if c.number_of("latency_ms") <= limit]
        slower = [c for c in rest if c.number_of("latency_ms") > limit]
        for near in (faster and max(faster, key=lambda c: c.number_of(quality)), slower and slower[0]):
            if near:
                rivals[near.subnet] = near
    return members, rivals


def neighbours(arm: SearchBench, found: Sequence[Candidate], count: int = 4) -> Result:
    """Fast all-int8 members with one block in fp32: what a search passes by, evaluated all the same, not measured."""
    rest = pareto_front([c for c in found if kind(c.subnet) == INT8], arm.objectives)
    fastest = arm.costs.of(teachers(arm)[INT8])["latency_ms"][0]
    bases = shown([c for c in rest if c.number_of("latency_ms") < fastest], arm.objectives, count)
    free, evaluated = 0, 0
    for base in bases:
        for index in base.subnet.kept:
            block = replace(base.subnet.blocks[index], precision="fp32")
            subnet = arm.bench.space.canonical(base.subnet.with_block(index, block))
            metrics = arm.cache.get(subnet, 0)
            if metrics is None:
                metrics = arm.evaluate(subnet, 0)
                arm.cache.put(subnet, 0, metrics)
            latency = arm.costs.of(subnet)["latency_ms"][0]
            quality = max(c.metrics["cosine"] for c in rest if c.number_of("latency_ms") <= latency)
            free, evaluated = free + (metrics["cosine"] > quality), evaluated + 1
    title = "all-int8 members faster than the int8 teacher with one block in fp32: not dominated, as predicted"
    return Result(title, free, "", evaluated)


def compare(
    arm: SearchBench, members: Sequence[Candidate], rivals: Mapping[SubnetConfig, Candidate], context: dict[str, Any]
) -> list[Result]:
    """Measure and judge all of them, and hold every mixed one against the all-int8 ones."""
    from latency_models.profiler import Profiler

    chosen = {**{member.subnet: member for member in members}, **rivals}
    wholes, whole = teachers(arm), arm.bench.space.teacher
    every = list(dict.fromkeys([*chosen, *wholes.values()]))
    profiler = Profiler(min_visits=12, max_seconds=3.0, chunk_size=len(every), retries=0)
    jobs = [(subnet, arm.device.job(subnet)) for subnet in every]
    measured: dict[SubnetConfig, Measurement] = dict(profiler.measure(jobs, arm.device.job(whole)))
    found = {subnet: judged(arm, subnet) for subnet in every}
    cosines = {subnet: deployed for subnet, (deployed, _) in found.items()}
    results = [
        described(chosen[subnet], measured[subnet], cosines[subnet], context)
        for subnet in sorted(chosen, key=lambda s: measured[s].corrected)
    ]
    gains = [beaten(member.subnet, list(rivals), measured, cosines, context) for member in members]
    above = [gain for gain in gains if gain.low is not None and gain.low > 0]
    anchor = f"{len(above)} with a 95 % interval above 0"
    free = sum(gain.value > 0 for gain in gains)
    return [
        simulated(found.values(), context),
        *(teacher_speed(arm, n, measured[subnet], cosines[subnet], context) for n, subnet in wholes.items()),
        *results,
        *gains,
        Result("mixed members that no all-int8 one dominates", free, "", len(gains), anchor=anchor, context=context),
    ]


def teachers(arm: SearchBench) -> dict[str, SubnetConfig]:
    """The teacher with all its blocks in a precision."""
    return {INT8: arm.bench.space.teacher.on_device("int8"), "int4": arm.bench.space.teacher.on_device("int4")}


def judged(arm: SearchBench, subnet: SubnetConfig) -> tuple[Floats, float]:
    """Cosine of every test text's embedding to the teacher's, as the device's graph computes it at batch 1.

    And beside it the mean that a search would see, of the supernet. Both are kept in the study's folder.
    """
    from nas.evaluation.evaluate import onnx_run, predict
    from nas.tasks.task import main_output

    file = arm.directory / "judged" / f"{hashlib.sha256(subnet.to_json().encode()).hexdigest()[:16]}.npz"
    if not file.is_file():
        task = arm.bench.task
        run = onnx_run(arm.device.graph(subnet).SerializeToString(), task)
        name = main_output(task)
        found = predict(run, task, "test", batch_size=1)[name].astype(np.float64)
        teacher = arm.bench.evaluator.teacher.main("test")[name].astype(np.float64)
        products = (found * teacher).sum(axis=1)
        products /= np.linalg.norm(found, axis=1) * np.linalg.norm(teacher, axis=1)
        seen = arm.bench.evaluator.evaluate(subnet, split="test")[task.quality]
        file.parent.mkdir(exist_ok=True)
        np.savez(file, cosines=products, seen=seen)
    with np.load(file, allow_pickle=False) as kept:
        return kept["cosines"], float(kept["seen"])


def teacher_speed(
    arm: SearchBench, precision: str, measured: Measurement, cosines: Floats, context: dict[str, Any]
) -> Result:
    """What a precision alone gains: the teacher's blocks in it, against the fp32 teacher beside it."""
    ratio = speedup(measured)
    assert ratio is not None
    sizes = [
        arm.device.graph(subnet).ByteSize() / 1e6
        for subnet in (arm.bench.space.teacher, arm.bench.space.teacher.on_device(precision))
    ]
    anchor = f"cosine {cosines.mean():.4f}; {sizes[1]:.1f} MB of {sizes[0]:.1f} MB in fp32"
    return Result(
        f"teacher with {precision} blocks against fp32",
        ratio.value,
        "x",
        measured.n,
        ratio.low,
        ratio.high,
        anchor,
        context,
    )


def simulated(found: Iterable[tuple[Floats, float]], context: dict[str, Any]) -> Result:
    """How far quality in the supernet, as a search judges it, is from that of the exported graphs, relative to it."""
    shares = [100 * abs(seen / deployed.mean() - 1) for deployed, seen in found]
    title = "largest relative difference of cosine in the supernet from the exported graphs'"
    return Result(title, max(shares), "%", len(shares), min(shares), max(shares), "target 0.5 %", context)


def described(candidate: Candidate, measured: Measurement, cosines: Floats, context: dict[str, Any]) -> Result:
    """One measured subnet."""
    precisions = [candidate.subnet.blocks[index].precision for index in candidate.subnet.kept]
    return Result(
        f"{kind(candidate.subnet)} subnet of trial {candidate.number}: latency",
        measured.corrected,
        "ms",
        measured.n,
        measured.minimum,
        measured.p90,
        f"cosine {cosines.mean():.4f}",
        {
            **context,
            "cosine": float(cosines.mean()),
            "validation cosine": candidate.metrics["cosine"],
            "predicted ms": candidate.number_of("latency_ms"),
            "fp32 teacher ms": measured.reference_level,
            "precisions": precisions,
            "subnet": candidate.subnet.to_dict(),
        },
    )


def beaten(
    subnet: SubnetConfig,
    rivals: Sequence[SubnetConfig],
    measured: Mapping[SubnetConfig, Measurement],
    cosines: Mapping[SubnetConfig, Floats],
    context: dict[str, Any],
) -> Result:
    """How far a mixed subnet's cosine is above that of the best all-int8 one that is no slower."""
    own = measured[subnet].corrected
    able = [rival for rival in rivals if measured[rival].corrected <= own * (1 + TOLERANCE)]
    best = max(able, key=lambda rival: cosines[rival].mean(), default=None)
    difference = cosines[subnet] - (cosines[best] if best is not None else 0.0)
    generator = np.random.default_rng(0)
    means = generator.choice(difference, size=(RESAMPLES, len(difference))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    rival = "none is as fast" if best is None else f"{cosines[best].mean():.4f} at {measured[best].corrected:.2f} ms"
    return Result(
        f"cosine of the mixed subnet at {own:.2f} ms above the best all-int8 one that is no slower",
        float(difference.mean()),
        "",
        len(difference),
        float(low),
        float(high),
        rival,
        {**context, "cosine": float(cosines[subnet].mean())},
    )


if __name__ == "__main__":
    sys.exit(main())
