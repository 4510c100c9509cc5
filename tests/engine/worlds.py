"""A search whose evaluation is a formula: everything about the engine can be tested in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.engine.cache import EvaluationCache
from nas.engine.costs import Bounds, SubnetCosts
from nas.engine.limits import Objectives, resolve_limits
from nas.engine.objective import Objective
from nas.engine.samplers import bind
from nas.engine.search import Search
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig, SubnetTable


def tiny_shape(num_blocks: int = 4, heads: int = 4, head_dim: int = 8, ffn: int = 64) -> ModelShape:
    hidden = heads * head_dim
    return ModelShape(
        family="bert",
        hidden_size=hidden,
        num_blocks=num_blocks,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        ffn=ffn,
        gated=False,
        fused_qkv=False,
        fused_ffn=False,
        bias_qkv=True,
        bias_attention_out=True,
        bias_ffn_in=True,
        bias_ffn_out=True,
        attention_other_parameters=0,
        ffn_other_parameters=0,
        block_other_parameters=4 * hidden,
        first_block_lacks=0,
        other_parameters=1000,
        head_macs_per_token=0,
        head_macs_per_sequence=0,
        vocab_size=100,
        causal=False,
    )


def tiny_space(num_blocks: int = 4, **options: Any) -> SearchSpace:
    choices = {"skip": [True, False], "heads": [1, 2, 3, 4], "ffn": [16, 32, 48, 64], **options.pop("choices", {})}
    return SearchSpace.from_choices(tiny_shape(num_blocks), choices, min_blocks=options.pop("min_blocks", 1), **options)


class LinearLatency:
    """A predictor: 1 ms and what each block's heads and neurons add; bounds 5 % around it."""

    def predict(self, subnets: Any, confidence: float = 0.9) -> Bounds:
        table = subnets if isinstance(subnets, SubnetTable) else SubnetTable.from_subnets(subnets)
        value = 1.0 + (table.heads * 0.5 + table.ffn * 0.02 + 0.3 * ~table.skipped).sum(axis=1)
        return Bounds(value, value * 0.95, value * 1.05)


@dataclass
class Formula:
    """An evaluation: later blocks matter more, distillation helps; counts its calls."""

    calls: int = 0

    def __call__(self, subnet: SubnetConfig, steps: int) -> Mapping[str, float]:
        self.calls += 1
        kept = 0.0
        total = 0.0
        for index, block in enumerate(subnet.blocks):
            weight = 1.0 + index
            kept += weight * (np.sqrt(block.heads / 4) + np.sqrt(block.ffn / 64))
            total += 2 * weight
        return {"cosine": float(0.5 + 0.5 * kept / total + 0.0001 * steps), "recall": float(kept / total)}


def tiny_search(
    directory: Path,
    num_trials: int = 20,
    *,
    sampler: Any = None,
    evaluate: Any = None,
    objectives: Objectives | None = None,
    space: SearchSpace | None = None,
    cache: bool = False,
    seed: int = 0,
    name: str = "study",
    predictors: Any = None,
    **options: Any,
) -> Search:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = space or tiny_space()
    costs = SubnetCosts(space, predictors=predictors or {"latency_ms": LinearLatency()})
    objectives = objectives or Objectives({"cosine": "maximize", "latency_ms": "minimize"})
    evaluate = evaluate or Formula()
    teacher = {name: value for name, (value, _, _) in costs.of(space.teacher).items()}
    limits = resolve_limits(objectives, teacher, lambda: evaluate(space.teacher, 0))
    store = EvaluationCache(directory / "evaluations.jsonl", {"task": "formula"}) if cache else None
    objective = Objective(space, costs, evaluate, objectives, limits, store)
    sampler = sampler if sampler is not None else optuna.samplers.RandomSampler(seed=seed)
    bound = bind(sampler, space, costs, limits, objectives, seed=seed)
    return Search(directory, name, objective, bound, num_trials, **options)
