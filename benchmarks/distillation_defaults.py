"""The study behind the defaults of short distillation: loss, learning rate, batches, steps.

MiniLM without labels on movie sentences: a calibrated subnet with half of the encoder's parameters (6 heads, FFN 768 in
every block) is distilled for 60 or 120 steps and judged on 1,000 validation sentences. Settings that an earlier run
measured are kept (`--fresh` measures everything again), so that the study can be run in pieces.

    python benchmarks/distillation_defaults.py --quick          # the defaults and their neighbours
    python benchmarks/distillation_defaults.py --minutes 30
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import common
import torch

from nas.distillation.losses import Distiller
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings
from nas.evaluation.evaluate import Evaluator
from nas.progress import Progress
from nas.tasks.data import TextData
from nas.tasks.text import SentenceEmbedding
from search_spaces.calibrate import calibrate
from search_spaces.families import ModelShape
from search_spaces.library import Library
from search_spaces.space import SearchSpace
from search_spaces.subnet import BlockConfig, SubnetConfig
from search_spaces.supernet import Supernet

NAME = "distillation_defaults"
ANCHOR = ".930 by 120 steps from an allocated subnet at .908 (prototype)"


@dataclass(frozen=True)
class Setting:
    """One training to be judged."""

    steps: int
    loss: Mapping[str, float] = field(default_factory=lambda: asdict(DEFAULT_LOSS))
    training: Mapping[str, Any] = field(default_factory=dict)
    heads: int = 6
    ffn: int = 768
    seed: int = 0

    def context(self) -> dict[str, Any]:
        """What names the setting in the results."""
        loss = "+".join(f"{weight:g} {name}" for name, weight in self.loss.items() if weight and name != "temperature")
        return {
            "loss": loss,
            **asdict(TrainSettings(**self.training)),
            "subnet": f"{self.heads} heads, FFN {self.ffn}",
            "seed": self.seed,
            "steps": self.steps,
        }


DEFAULT_LOSS = Distiller(embedding=1.0, hidden=1.0)


def settings(*, quick: bool) -> list[Setting]:
    """What is measured, most telling first."""
    first = [Setting(steps) for steps in (0, 60, 120)]
    first += [Setting(60, training={"learning_rate": rate}) for rate in (1e-4, 2e-4, 4e-4, 8e-4)]
    if quick:
        return first
    losses: list[dict[str, float]] = [
        {"embedding": 1.0},
        {"hidden": 1.0},
        {"embedding": 3.0, "hidden": 1.0},
        {"embedding": 1.0, "hidden_states": 1.0},
        {"embedding": 1.0, "hidden": 1.0, "similarity": 0.03},
        {"embedding": 1.0, "hidden": 1.0, "similarity": 1.0},
    ]
    changes: list[dict[str, Any]] = [
        {"batch_size": 16},
        {"batch_size": 64},
        {"warmup": 0.02},
        {"warmup": 0.3},
        {"freeze_embeddings": False},
    ]
    return [
        *first,
        *(Setting(60, loss) for loss in losses),
        *(Setting(120, training={"learning_rate": rate}) for rate in (2e-4, 4e-4, 8e-4)),
        *(Setting(60, training=change) for change in changes),
        *(Setting(steps, seed=seed) for seed in (1, 2) for steps in (60, 120)),
        *(Setting(steps, heads=heads, ffn=ffn) for heads, ffn in ((9, 1152), (3, 512)) for steps in (0, 60, 120)),
        Setting(300),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop before a setting that begins later")
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run measured")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = SentenceEmbedding(
        str(options.data / "minilm"),
        TextData(str(options.data / "movie.csv"), train=3840),
        cache_dir=str(options.data / "cache"),
    )
    supernet = calibrated(task, options.data / "cache")
    needed = {"hidden"} if options.quick else {"hidden", "hidden_states"}
    teacher = TeacherOutputs(task, needed, task.cache_dir)
    machine = common.machine(threads=1)
    rows = [] if options.fresh else common.read(NAME, options.results)
    wanted = {key(setting.context()): setting for setting in settings(quick=options.quick)}
    missing = {name: setting for name, setting in wanted.items() if name not in {key(row.context) for row in rows}}
    started = time.monotonic()
    with Progress("Distilling", len(missing)) as bar:
        for setting in missing.values():
            if time.monotonic() - started > 60 * options.minutes:
                break
            rows.append(judged(supernet, task, teacher, setting, machine))
            common.write(NAME, rows, options.results)
            bar.advance(text=f"{setting.context()['loss']}: {rows[-1].value:.4f}")
    shown = sorted(rows, key=lambda row: (row.context["subnet"], row.context["steps"], -row.value))
    common.show(shown, ("loss", "learning_rate", "batch_size", "subnet", "seed", "recall", "spearman", "seconds"))
    return 0


def key(context: Mapping[str, Any]) -> str:
    """What makes two settings the same."""
    names = (*asdict(TrainSettings()), "loss", "subnet", "seed", "steps")
    # Without steps nothing is trained, whatever the loss.
    return str([context[name] for name in (names if context["steps"] else ("subnet", "steps"))])


def calibrated(task: SentenceEmbedding, cache: Any) -> Supernet:
    """The supernet with the widths that the study needs; calibrated once."""
    model = task.load_model()
    space = SearchSpace.from_choices(
        ModelShape.from_model(model), {"heads": [3, 6, 9, 12], "ffn": [512, 768, 1152, 1536]}
    )
    path = cache / f"{NAME}-{space.fingerprint}.safetensors"
    if not path.is_file():
        calibrate(model, list(task.batches("calibration", 32)), space).save(path)
    return Supernet(model, Library.load(path), space)


def judged(
    supernet: Supernet, task: SentenceEmbedding, teacher: TeacherOutputs, setting: Setting, machine: dict[str, Any]
) -> common.Row:
    """Train with one setting and judge on the validation split."""
    evaluator = Evaluator(supernet, task, Distiller(**setting.loss), TrainSettings(**setting.training), teacher)
    block = BlockConfig(setting.heads, setting.heads, setting.ffn)
    subnet = SubnetConfig((block,) * supernet.shape.num_blocks, supernet.shape.hidden_size)
    if setting.steps:
        teacher.prepare(["train"])
    started = time.perf_counter()
    metrics = evaluator.evaluate(subnet, setting.steps, seed=setting.seed)
    found = {
        "recall": round(metrics["recall"], 4),
        "spearman": round(metrics["spearman"], 4),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return common.Row(
        claim=f"cosine after {setting.steps} steps",
        value=round(metrics["cosine"], 5),
        n=task.samples.size("validation"),
        anchor=ANCHOR if setting.steps == 120 else "",
        context={**setting.context(), **found, "machine": machine},
    )


if __name__ == "__main__":
    sys.exit(main())
