"""What the engine costs beside the evaluations: trials whose evaluation is a formula, on the default storage."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import common
import numpy as np

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from nas.engine.candidates import Candidate
    from nas.engine.progress import Status
    from nas.engine.search import Search
    from search_spaces.space import SearchSpace
    from search_spaces.subnet import SubnetConfig

BLOCKS = 10
SIZES = {"heads": 4, "ffn": 64, "head_dim": 8}


class Stopwatch:
    """A tracker that notes when trials end."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def trial_finished(self, trial: FrozenTrial, status: Status) -> None:  # noqa: ARG002 - see Tracker
        """Note it."""
        self.times.append(time.perf_counter())

    def search_finished(self, front: Sequence[Candidate]) -> None:
        """Nothing."""

    def milliseconds(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Of each trial."""
        return 1000 * np.diff(self.times)


def space() -> SearchSpace:
    """Ten blocks of four dimensions: 40 parameters."""
    import torch
    from transformers import BertConfig, BertModel

    from search_spaces.shapes import ModelShape
    from search_spaces.space import SearchSpace

    config = BertConfig(
        hidden_size=SIZES["heads"] * SIZES["head_dim"],
        num_hidden_layers=BLOCKS,
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["ffn"],
        vocab_size=100,
    )
    with torch.device("meta"):
        shape = ModelShape.from_model(BertModel(config))
    choices = {"skip": [True, False], "heads": [1, 2, 3, 4], "ffn": [16, 32, 48, 64], "rank_qkv": [0, 4, 8]}
    return SearchSpace.from_choices(shape, choices)


def quality(subnet: SubnetConfig, steps: int) -> Mapping[str, float]:
    """Later blocks matter more; microseconds."""
    kept = sum((1 + i) * (b.heads**0.5 / 2 + b.ffn**0.5 / 8) for i, b in enumerate(subnet.blocks))
    return {"cosine": kept / (BLOCKS * (BLOCKS + 1)) + 1e-4 * steps}


def search(directory: Path, trials: int, watch: Stopwatch) -> Search:
    """A search of the project's own sampler on the default storage."""
    from nas.engine.costs import SubnetCosts
    from nas.engine.guided_sampler import GuidedSampler
    from nas.engine.limits import Objectives
    from nas.engine.objective import Objective
    from nas.engine.samplers import bind
    from nas.engine.search import Search

    choices = space()
    costs = SubnetCosts(choices)
    objectives = Objectives({"cosine": "maximize", "macs": "minimize"})
    sampler = bind(GuidedSampler(), choices, costs, (), objectives)
    objective = Objective(choices, costs, quality, objectives)
    return Search(directory, "overhead", objective, sampler, trials, trackers=(watch,))


def overhead(*, quick: bool) -> list[common.Result]:
    """Rows of the engine's own cost per trial, and of a whole search of trivial trials."""
    context = common.machine(parameters=len(space().dimensions), storage="journal", sampler="guided")
    trials, whole = (60, 30) if quick else (500, 200)
    with tempfile.TemporaryDirectory() as folder:
        search(Path(folder) / "warm", 12, Stopwatch()).run()  # Imports are no trial's cost.
        watch = Stopwatch()
        search(Path(folder) / "long", trials, watch).run()
        started = time.perf_counter()
        search(Path(folder) / "short", whole, Stopwatch()).run()
        seconds = time.perf_counter() - started
    each = watch.milliseconds()
    early, late = each[trials // 5 - trials // 10 : trials // 5 + trials // 10], each[-trials // 5 :]
    # Medians of 100 trials around the 100th, and of the last 100 of 500.
    low, high = np.quantile(each, [0.05, 0.95])
    ratio = float(np.median(late) / np.median(early))
    return [
        common.Result(
            "engine overhead per trial",
            float(np.median(each)),
            "ms",
            len(each),
            float(low),
            float(high),
            "target <= 40",
            context,
        ),
        common.Result(
            f"engine overhead per trial at {trials} over at {trials // 5}",
            ratio,
            "x",
            len(late),
            anchor="target <= 2",
            context=context,
        ),
        common.Result(
            f"{whole} trivial trials",
            seconds,
            "s",
            1,
            anchor="target <= 8; hydra-optuna-sweeper 37.6",
            context=context,
        ),
    ]
