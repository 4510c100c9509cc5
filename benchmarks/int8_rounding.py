"""What dynamic int8 takes from a sentence encoder, product by product, and what scaled activations would give back.

MiniLM's graph with all products in int8, but one kind or one block in fp32, or with weights alone rounded; then with
activations divided, and weights multiplied, by a factor per channel (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438).
Cosine to the fp32 teacher on movie sentences, in ONNX Runtime at batch 1; recall of the teacher's neighbours beside it.

    python benchmarks/int8_rounding.py            # writes benchmarks/results/int8_rounding.json
    python benchmarks/int8_rounding.py --quick    # the first of each kind of change
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import numpy as np
import onnx
from common import Result
from end_to_end import workbench
from onnx import ModelProto, numpy_helper

from latency_models.backends.quantize import quantize_int8, weight_products
from nas.evaluation.evaluate import evaluate_run, onnx_run
from nas.export.reference import as_numpy
from nas.searching import SearchBench

DOWN = "the FFN's second"
# Kinds of products, and what is in the names of their nodes.
KINDS = {
    "queries": r"self\.query",
    "keys": r"self\.key",
    "values": r"self\.value",
    "attention's output": r"attention\.output\.dense",
    "the FFN's first": r"intermediate\.dense",
    DOWN: r"\.\d+\.output\.dense",
}
NORMED = ("queries", "keys", "values", "the FFN's first")  # What norms give to.
# Products whose inputs are scaled, and how much of the outliers the weights take over.
SMOOTHED = [(NORMED, strength) for strength in (0.5, 0.7, 0.85)]
SMOOTHED += [((DOWN,), strength) for strength in (0.5, 0.7, 0.8, 0.9)] + [((*NORMED, DOWN), 0.85)]
Floats = Any


def main() -> int:
    options = common.parser(__doc__ or "").parse_args()
    data = options.data or common.ASSETS
    if common.skipped(data, "minilm", "movie.csv"):
        return 0
    with tempfile.TemporaryDirectory() as root:
        search = workbench(data, Path(root), "fp32", "rounding", f"task.data.validation={64 if options.quick else 400}")
        rows = list(results(search, quick=options.quick))
    common.show(rows)
    print(common.write("int8_rounding_quick" if options.quick else "int8_rounding", rows, options.output))
    return 0


def results(search: SearchBench, *, quick: bool) -> Iterator[Result]:
    """Cosine of each changed graph."""
    bench = search.bench
    task, teacher, context = bench.task, bench.evaluator.teacher, common.machine(threads=2, quick=quick)
    graph = search.device.graph(bench.space.teacher)
    names = weight_products(graph)

    def judged(claim: str, changed: ModelProto) -> Result:
        run = onnx_run(changed.SerializeToString(), task, threads=2)
        found = evaluate_run(run, task, teacher, batch_size=1)
        beside = {name: round(value, 4) for name, value in found.items() if name != "cosine"}
        size = task.samples.size("validation")
        return Result(f"cosine, {claim}", found["cosine"], "", size, context={**context, **beside})

    def but(pattern: str) -> ModelProto:
        return quantize_int8(graph, nodes=[name for name in names if not re.search(pattern, name)])

    yield judged("all products in int8", quantize_int8(graph))
    yield judged("weights rounded, activations in fp32", with_weights(graph, names, rounded))
    for kind, pattern in list(KINDS.items())[: 1 if quick else None]:
        yield judged(f"{kind} in fp32", but(pattern))
    for block in range(1 if quick else bench.space.shape.num_blocks):
        yield judged(f"block {block} in fp32", but(rf"layer\.{block}\."))
    largest = maxima(graph, names, [as_numpy(batch) for batch in task.batches("calibration", 32)][:6])
    for kinds, strength in SMOOTHED[: 1 if quick else None]:
        scaled = [name for name in names if any(re.search(KINDS[kind], name) for kind in kinds)]
        of = {NORMED: "what norms give", (DOWN,): DOWN}.get(kinds, "both")
        yield judged(f"scaled: {of}, strength {strength:g}", quantize_int8(smoothed(graph, scaled, largest, strength)))


def copied(graph: ModelProto) -> tuple[ModelProto, dict[str, onnx.TensorProto]]:
    """A copy, and its weights by name."""
    copy = ModelProto()
    copy.CopyFrom(graph)
    return copy, {tensor.name: tensor for tensor in copy.graph.initializer}


def rounded(weight: Floats) -> Floats:
    """Of a weight, ``(inputs, outputs)``, what int8 with one scale per output leaves."""
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12) / 127
    return np.round(weight / scale) * scale


def with_weights(graph: ModelProto, names: Sequence[str], change: Callable[[Floats], Floats]) -> ModelProto:
    """A copy of a graph, the weights of some products changed."""
    copy, weights = copied(graph)
    for node in copy.graph.node:
        if node.name in names:
            tensor = weights[node.input[1]]
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    return copy


def maxima(graph: ModelProto, names: Sequence[str], batches: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Largest magnitude per channel of what products read, by the value's name; padding does not count."""
    import onnxruntime

    copy, _ = copied(graph)
    read = sorted({node.input[0] for node in copy.graph.node if node.name in names})
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in read)
    session = onnxruntime.InferenceSession(copy.SerializeToString())
    taken = {each.name for each in session.get_inputs()}
    found: dict[str, Floats] = {}
    for batch in batches:
        mask = batch["attention_mask"].astype(bool)
        outputs = session.run(read, {name: values for name, values in batch.items() if name in taken})
        for name, values in zip(read, outputs, strict=True):
            largest = np.abs(values.reshape(*mask.shape, -1)[mask]).max(axis=0)
            found[name] = np.maximum(found.get(name, 0.0), largest)
    return found


def smoothed(graph: ModelProto, names: Sequence[str], largest: Mapping[str, Floats], strength: float) -> ModelProto:
    """A copy of a graph that divides what some products read by channel, and multiplies their weights by the same."""
    copy, weights = copied(graph)
    readers: dict[str, list[Any]] = {}
    for node in copy.graph.node:
        if node.name in names:
            readers.setdefault(node.input[0], []).append(node)
    nodes = list(copy.graph.node)
    for value, products in readers.items():
        taken = [numpy_helper.to_array(weights[node.input[1]]) for node in products]
        heights = np.max([np.abs(weight).max(axis=1) for weight in taken], axis=0)
        scale = largest[value].clip(1e-5) ** strength / heights.clip(1e-5) ** (1 - strength)
        scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
        copy.graph.initializer.append(numpy_helper.from_array(1 / scale, f"{value}_scale"))
        before = onnx.helper.make_node("Mul", [value, f"{value}_scale"], [f"{value}_scaled"], name=f"{value}_scaling")
        nodes.insert(nodes.index(products[0]), before)
        for node, weight in zip(products, taken, strict=True):
            tensor = weights[node.input[1]]
            tensor.CopyFrom(numpy_helper.from_array(weight * scale[:, None], tensor.name))
            node.input[0] = f"{value}_scaled"
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


if __name__ == "__main__":
    raise SystemExit(main())
