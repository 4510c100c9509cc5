"""Studies for the dashboard's tests: real ones of the engine, and one of as many made-up trials as wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nas.engine.limits import Objectives
from tests.engine.worlds import LinearLatency, tiny_search, tiny_space

GOALS = {"cosine": "maximize", "latency_ms": "minimize"}
CONTEXT = {
    "device": {"name": "onnxruntime_cpu", "backend": "onnxruntime", "threads": 1},
    "workload": {"batch_size": 1, "sequence_length": 128, "phase": "encode"},
}


def search(root: Path, name: str = "first", trials: int = 24, **options: Any) -> Path:
    """A study that the engine itself searched."""
    options.setdefault("objectives", Objectives(GOALS, {"latency_ms": "0.8x"}))
    options.setdefault("context", CONTEXT)
    tiny_search(root / name, trials, name=name, **options).run()
    return root / name


def write_trials(path: Path, count: int, name: str = "large", seed: int = 0) -> Path:
    """A journal of made-up trials as a search leaves them, with 16 parameters each; seconds for ten thousand."""
    generator, space = np.random.default_rng(seed), tiny_space()
    subnets = space.sample(generator, 64)
    latency = LinearLatency().predict(subnets).value
    context = {**CONTEXT, "space": space.to_dict(), "goals": GOALS, "constraints": {"latency_ms": "latency_ms <= 9"}}
    worker = "w-1"
    lines: list[dict[str, Any]] = [
        {"op_code": 0, "study_name": name, "directions": [2, 1]},
        {"op_code": 2, "study_id": 0, "user_attr": {"context": json.dumps(context)}},
        {"op_code": 2, "study_id": 0, "user_attr": {"num_trials": count}},
        {"op_code": 3, "study_id": 0, "system_attr": {"study:metric_names": list(GOALS)}},
    ]
    for number in range(count):
        place = int(generator.integers(len(subnets)))
        ms = float(latency[place] * generator.lognormal(0, 0.3))
        cosine = float(1 - 0.9 * np.exp(-ms / 6) - abs(generator.normal(0, 0.05)))
        moment = f"2026-03-01T{10 + number // 3600 % 12:02d}:{number // 60 % 60:02d}:{number % 60:02d}+00:00"
        lines.append(
            {
                "op_code": 4, "study_id": 0, "state": 1, "value": None, "values": [cosine, ms],
                "datetime_start": moment, "datetime_complete": moment, "intermediate_values": {},
                "params": space.parameters(subnets[place]),
                "distributions": {
                    f"block{d.block}.{d.name}": json.dumps(
                        {"name": "IntDistribution",
                         "attributes": {"log": False, "step": 1, "low": 0, "high": len(d.choices) - 1}}
                    )
                    for d in space.dimensions
                },
                "user_attrs": {
                    "subnet": subnets[place].to_json(), "steps": 0,
                    "predicted": {"latency_ms": [ms, ms * 0.95, ms * 1.05], "parameters": [1e6, 1e6, 1e6]},
                    "result": {"outcome": "evaluated", "metrics": {"cosine": cosine}, "seconds": 0.1},
                },
                "system_attrs": {"constraints:latency_ms": (ms * 1.05 - 9) / 9},
            }
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"worker_id": worker, **line}, separators=(",", ":")) + "\n" for line in lines)
    path.write_text(text)
    return path
