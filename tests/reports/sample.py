"""A report as a real search of a six-layer encoder leaves it, made of plain numbers."""

import numpy as np

from nas.reports.data import (
    ExploredTrial,
    Interval,
    LoadCommand,
    MeasuredLatency,
    ModelRow,
    PredictionCheck,
    PredictorScore,
    Report,
    Sensitivity,
    StageTiming,
)
from search_spaces.cost import Workload
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig

BLOCKS, HIDDEN = 6, 384
TEACHER = SubnetConfig(blocks=(BlockConfig(heads=12, kv_heads=12, ffn=1536),) * BLOCKS, hidden_size=HIDDEN)


def make_subnet(seed: int, *, rank: bool = False, skip: bool = False) -> SubnetConfig:
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(BLOCKS):
        heads = int(rng.choice([4, 6, 8, 9, 12]))
        ranks = {"rank_qkv": 96, "rank_attention_out": 128} if rank and rng.random() < 0.6 else {}
        ranks |= {"rank_ffn_in": 192} if rank and rng.random() < 0.4 else {}
        blocks.append(BlockConfig(heads=heads, kv_heads=heads, ffn=int(rng.choice([512, 768, 1024, 1536])), **ranks))
    if skip:
        blocks[3] = SKIPPED
        blocks[4] = BlockConfig(heads=0, kv_heads=0, ffn=768, precision="int8")
    return SubnetConfig(blocks=tuple(blocks), hidden_size=HIDDEN)


def around(value: float, share: float) -> Interval:
    return Interval(value, value * (1 - share), value * (1 + share))


def make_models() -> tuple[ModelRow, ...]:
    metrics = {"cosine": 1.0, "recall@10": 1.0, "spearman": 1.0}
    rows = [
        ModelRow("teacher", "teacher", TEACHER, 22_713_216, 1_450_000_000, metrics, "fp32", None,
                 MeasuredLatency(33.9, 32.8, 36.0, 60), around(1.0, 0.001), around(0.45, 0.01), 90.4),
        ModelRow("teacher", "teacher", TEACHER, 22_713_216, 1_450_000_000,
                 {"cosine": 0.993, "recall@10": 0.914, "spearman": 0.996}, "int8", None,
                 MeasuredLatency(15.2, 14.8, 16.9, 60), around(2.23, 0.02), around(1.0, 0.001), 22.9),
    ]  # fmt: skip
    for index, (ms, cosine) in enumerate(((26.1, 0.962), (22.0, 0.945), (18.4, 0.921), (15.9, 0.903), (12.2, 0.861))):
        subnet = make_subnet(index, rank=index % 2 == 1, skip=index == 4)
        parameters, macs = 21_000_000 - index * 1_500_000, int(1_300_000_000 * ms / 30)
        folder = f"runs/quickstart/finalists/s{index + 1}"
        for precision, factor, loss in (("fp32", 1.0, 0.0), ("int8", 0.43, 0.008)):
            values = {"cosine": cosine - loss, "recall@10": cosine - 0.16 - loss, "spearman": cosine + 0.02 - loss}
            measured = ms * factor * (1.02 - 0.01 * index)
            rows.append(
                ModelRow(
                    name=f"s{index + 1}", role="front", subnet=subnet, parameters=parameters, macs=macs,
                    metrics=values, precision=precision,
                    predicted_ms=around(ms, 0.06) if precision == "fp32" else None,
                    measured=MeasuredLatency(measured, measured * 0.97, measured * 1.09, 60),
                    speedup_fp32=around(33.9 / measured, 0.015), speedup_int8=around(15.2 / measured, 0.02),
                    size_mb=parameters * (4 if precision == "fp32" else 1.05) / 1e6, directory=folder,
                )
            )  # fmt: skip
    return tuple(rows)


def make_report(**changes: object) -> Report:
    rng = np.random.default_rng(0)
    latency = rng.uniform(9, 36, 180)
    quality = 1 - 0.6 * np.exp(-latency / 9) - rng.uniform(0, 0.12, 180)
    explored = tuple(ExploredTrial(float(x), float(y), bool(x < 27)) for x, y in zip(latency, quality, strict=True))
    truth = rng.uniform(10, 36, 30)
    checks = tuple(
        PredictionCheck(f"subnet {i}", around(float(t * rng.normal(1, 0.03)), 0.07), float(t))
        for i, t in enumerate(truth)
    )
    losses = tuple(
        tuple(float(v) for v in scale * rng.uniform(0.2, 1, BLOCKS)) for scale in (0.01, 0.03, 0.06, 0.02, 0.05, 0.09)
    )
    values: dict[str, object] = {
        "study": "quickstart",
        "created": "2026-03-02 14:05 UTC",
        "teacher": "all-MiniLM-L6-v2",
        "task": "sentence embedding, agreement with the teacher on 500 movie sentences",
        "quality": "cosine",
        "device": {
            "name": "onnxruntime_cpu", "cpu": "Intel(R) Xeon(R) CPU @ 2.80GHz", "threads": "1", "precision": "fp32",
            "flags": "avx2 avx512f avx512_vnni", "onnxruntime": "1.22.0", "os": "Linux 6.1",
        },
        "workload": Workload(1, 128),
        "teacher_subnet": TEACHER,
        "budget_ms": 27.0,
        "models": make_models(),
        "explored": explored,
        "checks": checks,
        "scorecard": (
            PredictorScore("additive", 30, {"MAPE %": 2.4, "Kendall tau": 0.951, "within 10 %": 1.0, "coverage": 0.93}),
            PredictorScore("FLOPs only", 30, {"MAPE %": 9.8, "Kendall tau": 0.871, "within 10 %": 0.6}),
        ),
        "sensitivity": Sensitivity(
            "cosine", ("heads 9", "heads 6", "heads 4", "ffn 1024", "ffn 768", "ffn 512"), losses
        ),
        "stages": (
            StageTiming("calibrate", 41.2), StageTiming("sensitivity", 63.0),
            StageTiming("profile", 120.5, reused=True, note="80 subnets, from .nas/profiles"),
            StageTiming("search", 88.1),
        ),
        "commands": (
            LoadCommand(
                "Run with plain onnxruntime",
                "import onnxruntime\nfolder = 'runs/quickstart/finalists/s3'\n"
                "session = onnxruntime.InferenceSession(f'{folder}/model_int8.onnx')",
            ),
            LoadCommand("Measure again", "nas evaluate model.path=runs/quickstart/finalists/s3"),
        ),
        "notes": ("The profile of an earlier run was reused.",),
    }  # fmt: skip
    return Report(**{**values, **changes})  # type: ignore[arg-type]
