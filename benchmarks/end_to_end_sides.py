"""The sides of end-to-end comparisons: our subnets, and what people would use instead, sized for one latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import peers
from end_to_end_entries import Entries, Entry, Precision, file_name

from nas.evaluation.aspects import lower_is_better
from nas.evaluation.evaluate import evaluate_model
from nas.searching import SearchBench
from search_spaces.cost import costs
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig

HALF = "50% encoder parameters"
AS_IS = "as it is"  # No target: the teacher, quantised.
INT8 = "int8 alone"
OURS, RANDOM = "ours", "ours, random search"
UNIFORM, DROPPED, SVD = "uniform, calibrated like ours", "layers dropped", "truncated SVD"
PRUNED = {"taylor": "Torch-Pruning taylor", "l2": "Torch-Pruning l2"}
MARGIN = 1.01  # Predictions are off by a percent or two, and a measurement by some tenths.
SPEED = "speed-up over the int8 teacher"
# A subnet that stands for a model, and what makes the model.
Offer = tuple[SubnetConfig, Callable[[], Any]]


def claim_of(claim: str, side: str, target: str) -> str:
    """A claim of one side at one target."""
    return f"{claim}, {side}" if target == AS_IS else f"{claim} at {target}, {side}"


class Comparison(Entries):
    """All sides on one search's workbench.

    Args:
        searched: Makes a search on the device, of a study's name and overrides.
        trials: Evaluations of every search.
        steps: Of distillation, for every side.
        seed: Of searches and distillation.
        folder: Where finished entries are kept: a run that was broken off goes on behind them.
        precision: In which all sides run.
        reference: Precision of the teacher that latencies are held against.
    """

    # By how much faster than its target a search's subnets are to be.
    searched_margin: ClassVar[float] = 1.0
    # Steps between two sizes of truncated SVD, in shares of the rank that saves nothing.
    svd_step: ClassVar[float] = 0.05
    # How many of the best that a search found are refitted as a whole, the best of them then taken.
    refits: ClassVar[int] = 1

    def __init__(
        self, searched: Callable[..., SearchBench], trials: int, steps: int, seed: int, folder: Path, *,
        precision: Precision, reference: Precision,
    ) -> None:  # fmt: skip
        super().__init__(searched, steps, seed, folder, precision=precision, reference=reference)
        self.trials = trials
        shape = self.bench.space.shape
        self.full = BlockConfig(shape.heads, shape.kv_heads, shape.ffn)

    def latency(self, subnets: Sequence[SubnetConfig]) -> Any:
        """Predicted latencies on the device, in ms."""
        return self.search.device.fitted.predictor.predict(subnets).value

    def fits(self, target: str, margin: float = MARGIN) -> Callable[[Sequence[SubnetConfig]], Any]:
        """Which subnets are expected to meet a target, as an array of bool."""

        def able(subnets: Sequence[SubnetConfig]) -> Any:
            if target == HALF:
                return self._parameters(subnets) <= self.half
            limit = float(self.latency([self.bench.space.teacher])[0]) * self.share(target) / margin
            return self.latency(subnets) <= limit * (1 + 1e-9)

        return able

    def share(self, target: str) -> float:
        """Of the deployed teacher's latency that a target permits."""
        return self.slower / float(target.removesuffix("x"))

    @property
    def half(self) -> int:
        """Parameters of the whole model with half of the blocks': half of all heads and neurons leave some biases."""
        other = int(self.bench.space.shape.other_parameters)
        return other + int(0.502 * (int(self._parameters([self.bench.space.teacher])[0]) - other))

    def _parameters(self, subnets: Sequence[SubnetConfig]) -> Any:
        return costs(self.bench.space.shape, subnets, self.bench.workload).parameters

    def meets(self, target: str, subnet: SubnetConfig) -> bool:
        """Whether a subnet of the supernet is measured to meet a target, and a little more: it is measured again."""
        wanted = target != HALF and MARGIN * float(target.removesuffix("x"))
        return not wanted or self.measured(self.search.device.graph(subnet)) >= wanted

    def judged_in_int8(self, entry: Entry) -> bool:
        """Half of the parameters is no target of latency, and holds in every precision."""
        return entry.target == HALF

    def largest(self, target: str, offers: Sequence[Offer]) -> tuple[SubnetConfig, Any]:
        """The first of some sizes, largest first, that meets a target; the last one where none does.

        Of a latency, the search is by halving, on measured speeds, and begins with the first that is predicted to
        meet it: predictions are far off for what the predictor never saw, as factors in a space without ranks.
        """
        able = self.fits(target)([subnet for subnet, _ in offers])
        at = next((index for index, fits in enumerate(able) if fits), len(offers) - 1)
        if target == HALF:
            return offers[at][0], offers[at][1]()
        wanted, low, high, model = float(target.removesuffix("x")), 0, len(offers) - 1, None
        while low < high:
            made = offers[at][1]()
            if self.measured(self.graph(made, offers[at][0])) >= wanted:
                high, model = at, made
            else:
                low = at + 1
            at = (low + high) // 2
        return offers[high][0], offers[high][1]() if model is None else model

    # -- sides ------------------------------------------------------------------------------------------------------

    def ours(self, target: str, side: str = OURS, *overrides: str) -> Entry:
        """The best of a search for this target that is measured to meet it, refitted as a whole."""
        latency = 0.95 if target == HALF else self.share(target) / self.searched_margin
        wanted = ["objectives=quality_under_latency", f"objectives.constraints.latency_ms={latency}x"]
        # The limit is where half of all subnets meet it; which of them do is measured.
        wanted += ["objectives.confidence=0.01", f"search.num_trials={self.trials}", f"seed={self.seed}"]
        wanted += [f"+objectives.constraints.parameters={self.half}"] * (target == HALF)
        found = self.searched(f"{file_name(side, target)}_{self.seed}", *wanted, *overrides).run().candidates
        able = self.fits(target, 1.0)
        ranked = sorted((c for c in found if able([c.subnet])[0]), key=lambda c: self._loss(c.metrics))
        met = (candidate.subnet for candidate in ranked if self.meets(target, candidate.subnet))
        return Entry(side, target, *self.refitted(list(islice(met, self.refits))), self.precision)

    def refitted(self, subnets: Sequence[SubnetConfig]) -> tuple[SubnetConfig, Any]:
        """Of some subnets the one that is best on validation once each was refitted as a whole, and its model."""
        models = [(subnet, self.bench.finalist(subnet)) for subnet in subnets]
        return models[0] if len(models) == 1 else min(models, key=lambda made: self._loss(self._validated(made[1])))

    def _validated(self, model: Any) -> dict[str, float]:
        """Metrics of a model on validation."""
        teacher = self.bench.evaluator.teacher
        return evaluate_model(model, self.bench.task, teacher, "validation", place=self.bench.place)

    def _loss(self, metrics: Mapping[str, float]) -> float:
        """What the search judges by, the smaller the better."""
        task = self.bench.task
        return metrics[task.quality] if lower_is_better(task.quality, task) else -metrics[task.quality]

    def at_random(self, target: str) -> Entry:
        """The same search without our sampler and starts."""
        plain = ("sampler=random", "search.sensitivity_evaluations=0", "search.uniform_starts=0")
        return self.ours(target, RANDOM, *plain)

    def uniform(self, target: str) -> Entry:
        """The largest of the uniform subnets that meet the target: no search."""
        dense = [s for s in self.bench.space.uniform() if not any(b.rank_qkv for b in s.blocks)]
        # Heads and FFN in proportion, as everybody prunes uniformly.
        near = [s for s in dense if abs(self._share(s, "heads") - self._share(s, "ffn")) <= 0.09]
        offers = [(s, partial(self.bench.supernet.extract, s)) for s in sorted(near, key=lambda s: -self._size(s))]
        subnet = self.largest(target, offers)[0]
        return Entry(UNIFORM, target, subnet, self.bench.finalist(subnet), self.precision)

    def torch_pruning(self, target: str, importance: Any) -> Entry:
        """The least pruning of Torch-Pruning that meets the target."""
        full, texts = self.full, list(self.bench.task.batches("calibration", 32))
        widths = {heads: max(8, round(full.ffn * heads / full.heads / 8) * 8) for heads in range(full.heads, 0, -1)}

        def pruned(heads: int) -> Any:
            shares = (1 - heads / full.heads, 1 - widths[heads] / full.ffn)
            return peers.torch_pruning(self.bench.teacher, importance, *shares, texts)

        offers = [(self._same(BlockConfig(h, h, width)), lambda h=h: pruned(h)) for h, width in widths.items()]
        return Entry(PRUNED[importance], target, *self.largest(target, offers), self.precision)

    def dropped_layers(self, target: str) -> Entry:
        """The most evenly spaced layers that meet the target."""
        offers = []
        for keep in range(self._blocks, 0, -1):
            kept = peers.evenly_spaced(self._blocks, keep)
            blocks = tuple(self.full if i in kept else SKIPPED for i in range(self._blocks))
            offers.append(
                (SubnetConfig(blocks, self._hidden), lambda kept=kept: peers.dropped_layers(self.bench.teacher, kept))
            )
        return Entry(DROPPED, target, *self.largest(target, offers), self.precision)

    def truncated_svd(self, target: str) -> Entry:
        """The largest rank of plain SVD, the same share everywhere, that meets the target."""
        full, teacher = self.full, self.bench.teacher
        offers = []
        for share in np.arange(0.95, 0.04, -self.svd_step).tolist():
            # Keys and values of fewer heads have a lower rank than queries; it only sizes the prediction.
            ranks = peers.svd_ranks(teacher, share)
            block = BlockConfig(full.heads, full.kv_heads, full.ffn, *ranks)
            offers.append((self._same(block), lambda share=share: peers.truncated_svd(teacher, share)))
        return Entry(SVD, target, *self.largest(target, offers), self.precision)

    def quantised_teacher(self) -> Entry:
        """What int8 does without us."""
        return Entry(INT8, AS_IS, self.bench.space.teacher, self.bench.teacher, "int8")

    def _same(self, block: BlockConfig) -> SubnetConfig:
        """The same block everywhere."""
        return SubnetConfig((block,) * self._blocks, self._hidden)

    @property
    def _blocks(self) -> int:
        return self.bench.space.shape.num_blocks

    @property
    def _hidden(self) -> int:
        return self.bench.space.shape.hidden_size

    def _share(self, subnet: SubnetConfig, name: str) -> float:
        return float(getattr(subnet.blocks[0], name)) / float(getattr(self.full, name))

    def _size(self, subnet: SubnetConfig) -> int:
        return sum(block.heads * self.bench.space.shape.head_dim * 4 + 2 * block.ffn for block in subnet.blocks)
