"""The study behind the defaults of short distillation: loss, learning rate, batches, steps.

MiniLM without labels on movie sentences: a calibrated subnet with half of the encoder's parameters (6 heads, FFN 768 in
every block) is distilled for 60 or 120 steps and judged on 1,000 validation sentences. Then the same for a classifier:
MiniLM fine-tuned on TREC questions. Settings that an earlier run measured on the same machine are kept (`--fresh`
measures everything again), so that the study can be run in pieces, also some losses by name.

    python benchmarks/distillation_defaults.py --quick          # the defaults and their neighbours
    python benchmarks/distillation_defaults.py --minutes 30
    python benchmarks/distillation_defaults.py --only relations
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import common
import torch
from common import Result

from nas.distillation.losses import Distiller
from nas.distillation.teacher import TeacherOutputs
from nas.distillation.train import TrainSettings, distil
from nas.evaluation.evaluate import Evaluator
from nas.progress import Progress
from nas.tasks.attention import ATTENTION
from nas.tasks.data import TextData
from nas.tasks.task import Task
from nas.tasks.text import SentenceEmbedding, TextClassification
from search_spaces.calibrate import calibrate
from search_spaces.library import Library
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.subnet import BlockConfig, SubnetConfig
from search_spaces.supernet import Supernet

NAME = "distillation_defaults"
ANCHOR = ".930 by 120 steps from an allocated subnet at .908 (prototype)"


@dataclass(frozen=True)
class Setting:
    """One training to be judged."""

    steps: int
    loss: Mapping[str, float] = field(default_factory=lambda: {"embedding": 1.0, "hidden": 1.0})
    training: Mapping[str, Any] = field(default_factory=dict)
    heads: int = 6
    ffn: int = 768
    seed: int = 0
    task: str = "movie sentences"

    def context(self) -> dict[str, Any]:
        """What names the setting in the results."""
        loss = " + ".join(f"{weight:g} {name}" for name, weight in self.loss.items())
        return {
            "task": self.task,
            "loss": loss,
            **asdict(TrainSettings(**self.training)),
            "subnet": f"{self.heads} heads, FFN {self.ffn}",
            "seed": self.seed,
            "steps": self.steps,
        }


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
        {"embedding": 1.0, "hidden": 1.0, "relations": 0.1},
        {"embedding": 1.0, "hidden": 1.0, "relations": 1.0},
        {"embedding": 1.0, "hidden": 1.0, "relations": 1.0, "relation_heads": 1},
        {"embedding": 1.0, "hidden_states": 1.0, "relations": 1.0},
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
        *classifier_settings(),
        *(Setting(60, training=change) for change in changes),
        *(Setting(steps, seed=seed) for seed in (1, 2) for steps in (60, 120)),
        *(Setting(steps, heads=heads, ffn=ffn) for heads, ffn in ((9, 1152), (3, 512)) for steps in (0, 60, 120)),
        Setting(300),
    ]


def classifier_settings() -> list[Setting]:
    """The same questions for a classifier."""
    losses: list[dict[str, float]] = [
        {"logits": 1.0},
        {"logits": 1.0, "temperature": 2.0},
        {"logits": 1.0, "temperature": 4.0},
        {"logits": 1.0, "temperature": 2.0, "hidden": 1.0},
        {"logits": 1.0, "temperature": 2.0, "labels": 1.0},
    ]
    trec: dict[str, Any] = {"task": "TREC questions"}
    return [
        Setting(0, losses[0], **trec),
        *(Setting(60, loss, **trec) for loss in losses),
        *(Setting(60, losses[3], {"learning_rate": rate}, **trec) for rate in (2e-4, 8e-4)),
        *(Setting(steps, losses[3], seed=seed, **trec) for seed in (0, 1, 2) for steps in (60, 120)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop before a setting that begins later")
    parser.add_argument("--only", default="", metavar="TEXT", help="measure only losses whose name has this in it")
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run measured")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    benches: dict[str, Bench] = {}
    machine = common.machine() | {"threads": torch.get_num_threads()}
    output = options.output or common.RESULTS / f"{NAME}.json"
    data = options.data or common.ASSETS
    rows = [] if options.fresh or not output.is_file() else [Result(**row) for row in json.loads(output.read_text())]
    # Another processor or other versions give other figures.
    rows = [row for row in rows if row.context["machine"] == machine]
    chosen = [found for found in settings(quick=options.quick) if options.only in found.context()["loss"]]
    wanted = {key(setting.context()): setting for setting in chosen}
    missing = {name: setting for name, setting in wanted.items() if name not in {key(row.context) for row in rows}}
    started = time.monotonic()
    with Progress("Distilling", len(missing)) as bar:
        for setting in missing.values():
            if time.monotonic() - started > 60 * options.minutes:
                break
            if setting.task not in benches:
                benches[setting.task] = BENCHES[setting.task](data)
            rows.append(judged(benches[setting.task], setting, machine))
            common.write(NAME, rows, output)
            bar.advance(text=f"{setting.context()['loss']}: {rows[-1].value:.4f}")
    shown = sorted(rows, key=lambda row: (row.context["task"], row.context["subnet"], row.context["steps"], -row.value))
    columns = ("task", "subnet", "loss", "learning_rate", "batch_size", "seed")
    common.show([replace(row, claim=f"{row.claim}: {[row.context[c] for c in columns]}") for row in shown])
    return 0


def key(context: Mapping[str, Any]) -> str:
    """What makes two settings the same."""
    names = (*asdict(TrainSettings()), "task", "loss", "subnet", "seed", "steps")
    # Without steps nothing is trained, whatever the loss.
    return str([context[name] for name in (names if context["steps"] else ("task", "subnet", "steps"))])


@dataclass(frozen=True)
class Bench:
    """A task with its calibrated supernet and its teacher's outputs."""

    task: Task
    supernet: Supernet
    teacher: TeacherOutputs


def bench(task: Task, cache: Path, name: str) -> Bench:
    """Calibrate once for the widths that the study needs, and open the teacher's outputs."""
    model = task.load_model()
    shape = ModelShape.from_model(model)
    space = SearchSpace.from_choices(shape, {"heads": [3, 6, 9, 12], "ffn": [512, 768, 1152, 1536]})
    path = cache / f"{NAME}-{name}-{space.fingerprint}.safetensors"
    if not path.is_file():
        calibrate(model, list(task.batches("calibration", 32)), space).save(path)
    teacher = TeacherOutputs(task, {"hidden", "hidden_states", *ATTENTION} if name == "movie" else {"hidden"}, cache)
    return Bench(task, Supernet(model, Library.load(path), space), teacher)


def movie(data: Path) -> Bench:
    """MiniLM as a sentence encoder."""
    cache = data / "cache"
    texts = TextData(str(data / "movie.csv"), train=3840)
    return bench(SentenceEmbedding(str(data / "minilm"), texts, cache_dir=str(cache)), cache, "movie")


def trec(data: Path) -> Bench:
    """MiniLM fine-tuned on TREC questions for two epochs; kept when it is there."""
    cache, folder = data / "cache", data / "minilm_trec"
    texts = TextData(str(data / "trec.csv"), label_column="label", calibration=512, validation=1000, test=1000)
    if not folder.is_dir():
        plain = TextClassification(str(data / "minilm"), texts, new_head=True, cache_dir=str(cache))
        model = plain.load_model()
        steps = 2 * plain.samples.size("train") // 32
        with Progress("Fine-tuning", steps) as bar:
            settings = TrainSettings(learning_rate=1e-4)
            distil(model, plain, None, Distiller(labels=1.0), settings, steps=steps, progress=bar)
        aside = folder.with_name(f".{folder.name}.partial")
        model.save_pretrained(aside)
        plain.tokenizer.save_pretrained(aside)
        aside.replace(folder)
    return bench(TextClassification(str(folder), texts, cache_dir=str(cache)), cache, "trec")


BENCHES: dict[str, Callable[[Path], Bench]] = {"movie sentences": movie, "TREC questions": trec}


def judged(bench: Bench, setting: Setting, machine: dict[str, Any]) -> Result:
    """Train with one setting and judge on the validation split."""
    evaluator = Evaluator(
        bench.supernet, bench.task, Distiller(**setting.loss), TrainSettings(**setting.training), bench.teacher
    )
    block, shape = BlockConfig(setting.heads, setting.heads, setting.ffn), bench.supernet.shape
    if setting.steps:
        bench.teacher.prepare(["train"])
    started = time.perf_counter()
    subnet = SubnetConfig((block,) * shape.num_blocks, shape.hidden_size)
    metrics = evaluator.evaluate(subnet, setting.steps, seed=setting.seed)
    seconds = round(time.perf_counter() - started, 1)
    main = bench.task.quality
    others = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != main)
    return Result(
        claim=f"{main} after {setting.steps} steps",
        value=round(metrics[main], 5),
        unit="",
        n=bench.task.samples.size("validation"),
        anchor=ANCHOR if setting.steps == 120 and main == "cosine" else "",
        context={**setting.context(), "others": others, "seconds": seconds, "machine": machine},
    )


if __name__ == "__main__":
    sys.exit(main())
