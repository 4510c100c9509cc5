"""The real teacher and two subnets: quality of quantised blocks in the supernet against their exported graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from latency_models.backends.quantize import at_block_precisions
from latency_models.device import Device
from latency_models.subnet_compiler import SubnetCompiler
from nas.evaluation.evaluate import Evaluator, evaluate_run, onnx_run
from nas.tasks.data import TextData
from nas.tasks.text import SentenceEmbedding
from search_spaces.calibrate import calibrate
from search_spaces.cost import Workload
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from search_spaces.subnet import SKIPPED, BlockConfig, SubnetConfig
from search_spaces.supernet import Supernet

ASSETS = Path(__file__).parent.parent / ".assets"
# Relative: what a search sees and what is deployed may differ by so much.
TOLERANCE = 0.005
NARROW, FACTORED = BlockConfig(6, 6, 768), BlockConfig(12, 12, 768, rank_qkv=96)
WHOLE = BlockConfig(12, 12, 1536)
SUBNETS: Mapping[str, SubnetConfig] = {
    "teacher": SubnetConfig((WHOLE,) * 6, 384),
    "narrow": SubnetConfig((WHOLE, FACTORED, NARROW, FACTORED, NARROW, WHOLE), 384),
    "shallow": SubnetConfig((WHOLE, NARROW, SKIPPED, WHOLE, FACTORED, WHOLE), 384),
}


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    for name in ("minilm", "movie.csv"):
        if not (ASSETS / name).exists():
            pytest.skip(f"{name} is absent: run `make assets`")
    data = TextData(str(ASSETS / "movie.csv"), train=64, calibration=64, validation=48, test=64)
    task = SentenceEmbedding(str(ASSETS / "minilm"), data)
    model = task.load_model()
    choices = {"skip": [False, True], "heads": [6, 12], "ffn": [768, 1536], "rank_qkv": [0, 96]}
    space = SearchSpace.from_choices(ModelShape.from_model(model), choices)
    library = calibrate(model, list(task.batches("calibration", 32)), space, importance="magnitude")
    return Evaluator(Supernet(model, library, space), task, precision="fp32")


@pytest.fixture(scope="module")
def compiler(evaluator: Evaluator) -> SubnetCompiler:
    task = evaluator.task
    device, inputs = Device("cpu", "onnxruntime"), task.example_inputs(Workload())
    assert isinstance(evaluator.supernet, Supernet)
    return SubnetCompiler(device, evaluator.supernet, inputs, task.output_names, deployable=task.deployable)


@pytest.mark.assets
@pytest.mark.parametrize("name", SUBNETS)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quality_in_the_supernet_is_that_of_the_exported_graph(
    evaluator: Evaluator, compiler: SubnetCompiler, name: str, precision: str
) -> None:
    subnet, task = SUBNETS[name], evaluator.task
    graph = at_block_precisions(compiler.graph(subnet), "bert", [precision] * subnet.depth)
    run = onnx_run(graph.SerializeToString(), task)
    deployed = evaluate_run(run, task, evaluator.teacher, batch_size=1)["cosine"]
    simulated = evaluator.evaluate(subnet.on_device(precision))["cosine"]  # type: ignore[arg-type]
    exact = evaluator.evaluate(subnet)["cosine"]
    assert simulated == pytest.approx(deployed, rel=TOLERANCE)
    # And it is not the unquantised quality that is near.
    assert abs(simulated - deployed) < 0.25 * abs(exact - deployed)
