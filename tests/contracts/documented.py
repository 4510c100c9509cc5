"""Folders in which documented commands run as they stand: tiny random models and texts under the names of the pages.

Commands keep their words; others are put before them that make everything small. What needs hardware, servers or
packages that a test cannot have is only composed: `COMPOSED` says which, and why.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.export.artefacts import ARTEFACTS, write_artefact
from nas.export.export import deployed_graph
from nas.smoke import make_smoke_assets
from tests.evaluation.judged import world

# Words of a command -> why a test cannot run it.
COMPOSED: Mapping[str, str] = {
    r"device\.transport=ssh": "another machine",
    r"device=(pi4|jetson)": "another machine",
    r"profile\.import=": "results of another machine; tests/cli/test_elsewhere.py brings some home",
    r"storage=(postgresql|grpc)": "a server; tests/engine/test_reliability.py has some",
    r"hydra/launcher=": "packages that are not installed here",
    r"search\.trackers=": "packages that are not installed here",
    r"device=torch_cuda|torch_device=cuda|\[tensorrt\]": "a GPU",
    r"task=causal_lm": "half a minute for a graph with a KV cache; tests/cli/test_language.py searches smaller ones",
    r"search -m": "four searches on two devices; tests/cli/test_studies.py sweeps smaller ones",
    r"space=width_rank_precision": "a profile of its own; tests/cli/test_commands.py searches, reports and exports one",
    r"^nas bundle": "exports anew; tests/cli/test_elsewhere.py measures what a bundle holds",
    r"int8_static": "every format takes its own runtime's process; tests/export/test_runtimes.py writes all of them",
    r"^nas dashboard": "serves until it is stopped; tests/dashboard does",
    r"search\.workers=": "a process a worker takes seconds to start; tests/cli/test_studies.py has some",
}
# What `...` stands for, by the folder that a command is for.
MEANT: Mapping[str, Sequence[str]] = {
    "encoder": [
        "model.path=DIR",
        "task.data.path=texts.csv",
        "device=onnxruntime_cpu",
        "objectives.constraints.latency_ms=0.5x",
    ],
    "classifier": [
        "task=text_classification",
        "model.path=DIR",
        "task.data.path=labelled.csv",
        "task.data.group_columns=[group]",
        "distiller=logits",
    ],
}
DATA = ["task.data.train=48", "task.data.calibration=16", "task.data.validation=24", "task.data.test=40"]
DATA += ["task.max_length=32"]  # The positions of the small models.
SPACE = ["space.choices.heads=[0.5,1.0]", "space.choices.ffn=[0.25,0.5,1.0]", "space.round_to.ffn=16"]
PROFILE = ["profile.num_subnets=8", "profile.held_out=3", "profile.protocol.max_seconds=0.05"]
PROFILE += ["profile.protocol.warmup_seconds=0.01", "calibrate.batch_size=8"]
PROFILE += ["profile.budget_minutes=5"]  # As a page says: a profile that ends otherwise would be measured anew.
SEARCH = ["search.sensitivity_evaluations=0", "search.uniform_starts=2", "search.allocated_starts=0"]
FINALISTS = ["finalists.count=1", "finalists.distil=0", "finalists.protocol.max_seconds=0.05"]
CARDS = [
    "evaluation.intervals.resamples=20",
    "evaluation.robustness.samples=20",
    "evaluation.robustness.strengths=[0.3]",
    "evaluation.robustness.kinds=[typos]",
    "memory=false",
    "protocol.max_seconds=0.05",
]
SMALL: Mapping[str, Sequence[str]] = {
    "search": [*DATA, *SPACE, *PROFILE, *SEARCH, *FINALISTS],
    "profile": [*DATA, *SPACE, *PROFILE],
    "calibrate": [*DATA, *SPACE, "calibrate.batch_size=8"],
    "train": [*DATA, *SPACE, "calibrate.batch_size=8", "training.batch_size=8"],
    "export": ["measure.enabled=false", "measure.calibration_samples=4"],
    "evaluate": [*DATA, *CARDS, "measure=false"],
    "compare": [*DATA, *CARDS],
    "devices": ["check_seconds=0.01"],
}
CLASSIFIER = ["task.data.validation=60", "task.data.test=120", "workload.sequence_length=16"]
CLASSIFIER += ["evaluation.fairness.min_samples=10"]


def why_composed(line: str) -> str | None:
    """Why a command is not executed, or None where it is."""
    return next((why for words, why in COMPOSED.items() if re.search(words, line)), None)


def make_places(root: Path) -> None:
    """Folders that commands are run in: ``encoder`` and ``classifier``."""
    encoder, classifier = root / "encoder", root / "classifier"
    make_smoke_assets(encoder)
    (encoder / "model").rename(encoder / "DIR")
    shutil.copy(encoder / "texts.csv", encoder / "sentences.csv")
    classifier.mkdir()
    small = world(classifier / "world")
    for name in ("DIR", "TEACHER", "MODEL", "A"):
        shutil.copytree(small.task.model, classifier / name)
    for name in ("labelled.csv", "texts.csv"):
        shutil.copy(classifier / "world" / "data.csv", classifier / name)
    (classifier / "B").mkdir()
    write_artefact(ARTEFACTS["onnx int8"], deployed_graph(small.teacher, small.task), classifier / "B")


def place_of(page: str, line: str) -> str:
    """Which of the folders a command is for."""
    return "classifier" if page == "report-card.md" or "task=text_classification" in line else "encoder"


def shortened(line: str, place: str) -> list[str]:
    """The command with what makes it small; its own words come behind and win, but for numbers of trials and steps."""
    command, *words = shlex.split(line)[1:]
    own = [word.replace("=FILE", "=labelled.csv") for word in words if word != "..."]
    given = {word.partition("=")[0] for word in own}
    meant = [word for word in MEANT[place] if "..." in words and word.partition("=")[0] not in given]
    small = list(SMALL.get(command, ()))
    if place == "classifier":
        small += CLASSIFIER
    last = ["train.steps=2"] if command == "train" else []
    if command == "search":
        trials = re.search(r"search\.num_trials=(\d+)", line)
        small += [] if "study=" in line else ["study=" + re.sub(r"\W+", "-", line)[-50:].strip("-")]
        last = [f"search.num_trials={int(trials[1]) // 20 if trials else 3}", "search.only=true"]
        last += ["search.rungs=[0,2,4]"] if "search.rungs=" in line else []
    return [command, *small, *meant, *own, *last, "progress=quiet", "torch_threads=1"]
