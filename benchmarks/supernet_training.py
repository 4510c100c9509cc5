"""Does training the supernet pay? Trained against calibrated, and against distilling the finalists for the same time.

MiniLM on movie sentences, the default space. Of each budget of processor time (one thread, so that it is the wall time
of a core that nobody else uses, however busy the machine is), either the supernet is trained, or four finalists are
distilled one by one, a quarter each. Subnets are judged by their cosine on test sentences; training sees none of these,
and no validation sentences either. Parts that an earlier run left in the root are not run again.

    python benchmarks/supernet_training.py --budgets 60 --batch 32
    python benchmarks/supernet_training.py --budgets 180 --batch 8
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Result

from nas.commands import plain
from nas.distillation.schedule import largest_reduced
from nas.distillation.supernet import train_supernet
from nas.distillation.supernet_settings import SupernetSettings
from nas.failures import compose_config
from nas.progress import Progress
from nas.workbench import Workbench
from search_spaces.library import Library
from search_spaces.subnet import SubnetConfig

NAME = "supernet_training"
TESTED = 500
# Heads and neurons of the four finalists: from nearly the teacher to a small one.
FINALISTS = ((10, 1344), (8, 960), (6, 768), (4, 384))


class Clock(Progress):
    """Notes the processor's time at every step."""

    def __init__(self, title: str) -> None:
        super().__init__(title, mode="quiet")
        self.times: list[float] = []

    def advance(self, steps: int = 1, *, text: str | None = None) -> None:
        """Note the time of a step."""
        super().advance(steps, text=text)
        self.times.append(time.process_time())

    @property
    def seconds_a_step(self) -> float:
        """Of the processor, but for the first step."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    @property
    def seconds(self) -> float:
        """Of the processor, all steps together."""
        return self.seconds_a_step * len(self.times)


class Study:
    """The supernet, its subnets, and what is done to them."""

    def __init__(self, data: Path, root: Path, batch_size: int) -> None:
        options = [f"root={root}", f"model.path={data / 'minilm'}", f"task.data.path={data / 'movie.csv'}"]
        options += [f"training.batch_size={batch_size}"]
        self.bench = Workbench(plain(compose_config("train", [*options, "torch_threads=1", "progress=plain"])))
        self.root = root

    @cached_property
    def subnets(self) -> dict[str, SubnetConfig]:
        """What is judged, by name."""
        space = self.bench.space
        block = space.teacher.blocks[0]
        found = {
            f"{heads} of 12 heads, FFN {ffn}": replace(
                space.teacher, blocks=(replace(block, heads=heads, kv_heads=heads, ffn=ffn),) * space.shape.num_blocks
            )
            for heads, ffn in FINALISTS
        }
        # Blocks are left out by every other draw: what is left of six of them is no subnet that anyone takes.
        drawn = space.sample(np.random.default_rng(7), 40)
        found |= {f"random {i}": s for i, s in enumerate([s for s in drawn if s.depth >= 4][:3])}
        assert largest_reduced(space) == next(iter(found.values()))
        return found | {"smallest": space.smallest}

    def judged(self, library: Library) -> dict[str, float]:
        """Cosines of all subnets with a library."""
        self.bench.supernet.use(library)
        found = {}
        for name, subnet in self.subnets.items():
            self.bench.supernet.activate(subnet)
            found[name] = self.cosine(self.bench.supernet.model)
        return found

    def cosine(self, model: torch.nn.Module) -> float:
        """Mean cosine to the teacher on the first test sentences."""
        task, teacher = self.bench.task, self.bench.evaluator.teacher
        cosines = []
        with torch.inference_mode():
            for rows in np.array_split(np.argsort(task.samples.lengths("test")[:TESTED]), TESTED // 50):
                own = task.outputs(model, task.samples.batch("test", rows))["embedding"]
                other = torch.from_numpy(np.array(teacher.main("test")["embedding"][rows]))
                cosines += torch.nn.functional.cosine_similarity(own, other, dim=-1).tolist()
        return float(np.mean(cosines))

    def trained(self, seconds: float, settings: SupernetSettings) -> dict[str, Any]:
        """Train the supernet for so much processor time, and judge."""
        bench, probe = self.bench, Clock("probe")
        train_supernet(bench.supernet, bench.library, bench.evaluator, replace(settings, steps=8), 0, probe)
        steps, clock = max(2, round(seconds / probe.seconds_a_step)), Clock("training")
        found = train_supernet(bench.supernet, bench.library, bench.evaluator, replace(settings, steps=steps), 0, clock)
        return {
            "cosines": self.judged(found.library), "steps": steps, "processor_seconds": clock.seconds,
            "guards": [dict(row) for row in found.history], "best_step": found.best_step,
        }  # fmt: skip

    def distilled(self, seconds: float) -> dict[str, Any]:
        """Distil each finalist for its share of so much processor time, and judge."""
        evaluator, cosines, steps, spent = self.bench.evaluator, {}, {}, 0.0
        self.bench.supernet.use(self.bench.library)
        for name, subnet in list(self.subnets.items())[: len(FINALISTS)]:
            probe, clock = Clock("probe"), Clock("distilling")
            evaluator.distil(subnet, steps=8, progress=probe)
            steps[name] = max(2, round(seconds / len(FINALISTS) / probe.seconds_a_step))
            cosines[name] = self.cosine(evaluator.distil(subnet, steps=steps[name], progress=clock))
            spent += clock.seconds
        return {"cosines": cosines, "steps": steps, "processor_seconds": spent}


def part(root: Path, name: str, make: Any) -> dict[str, Any]:
    """A part as an earlier run left it, or made now."""
    file = root / "parts" / f"{name}.json"
    if not file.is_file():
        started = time.monotonic()
        found = make() | {"load": list(os.getloadavg())}
        found["wall_seconds"] = time.monotonic() - started
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(name, json.dumps(found), file=sys.stderr, flush=True)
    read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return read


def rows(
    name: str, found: Mapping[str, Any], before: Mapping[str, float], context: Mapping[str, Any]
) -> Iterator[Result]:
    told = {key: value for key, value in found.items() if key != "cosines"}
    for subnet, cosine in found["cosines"].items():
        yield Result(
            f"cosine, {name}: {subnet}", cosine, "", TESTED, None, None,
            f"calibrated, untrained {before[subnet]:.4f}", {**context, **told},
        )  # fmt: skip


def main() -> int:
    arguments = common.parser(__doc__ or "")
    arguments.add_argument("--budgets", nargs="*", type=float, default=[180], help="seconds of one core")
    arguments.add_argument("--rates", nargs="*", type=float, default=[1e-4], help="peak learning rates")
    arguments.add_argument("--batch", type=int, default=8, help="sentences of one step")
    arguments.add_argument("--root", type=Path, default=common.ROOT / "runs" / NAME, help="folder of the caches")
    options = arguments.parse_args()
    data, root = options.data or common.ASSETS, options.root
    if missing := [name for name in ("minilm", "movie.csv") if not (data / name).exists()]:
        print(f"skipped: {data} lacks {missing[0]}; run `make assets`")
        return 0
    budgets = [10.0] if options.quick else options.budgets
    file = f"{NAME}_quick" if options.quick else NAME
    study = Study(data, root, options.batch)
    context = common.machine(threads=1, batch_size=options.batch, seed=0, niceness=os.nice(0))
    before = part(root, "calibrated", lambda: {"cosines": study.judged(study.bench.library)})
    results = list(rows("calibrated, untrained", before, before["cosines"], context))
    for budget in budgets:
        made: dict[str, Any] = {}
        for rate in options.rates:
            settings = SupernetSettings(learning_rate=rate, evaluate_every=None, patience=None, precision="fp32")
            made[f"supernet trained for {budget:g} s, batches of {options.batch}, rate {rate:g}"] = (
                lambda budget=budget, settings=settings: study.trained(budget, settings)
            )
        made[f"finalists distilled for {budget:g} s together, batches of {options.batch}"] = lambda budget=budget: (
            study.distilled(budget)
        )
        for name, make in made.items():
            results += rows(name, part(root, name.replace(" ", "_"), make), before["cosines"], context)
            path = common.write(file, common.merged(file, results, options.output), options.output)
    common.show(results)
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
