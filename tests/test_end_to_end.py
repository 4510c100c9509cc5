"""How the end-to-end comparisons of the benchmarks choose sizes and draw intervals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nas.evaluation.language import LANGUAGE
from search_spaces.subnet import BlockConfig, SubnetConfig
from tests.models import tiny

BENCHMARKS = str(Path(__file__).parent.parent / "benchmarks")


@pytest.fixture(scope="module")
def causal() -> Iterator[ModuleType]:
    sys.path.insert(0, BENCHMARKS)
    import end_to_end_causal

    yield end_to_end_causal
    sys.path.remove(BENCHMARKS)


class TestSizes:
    """A side offers 20 sizes, of which size ``n`` is predicted to take ``n`` ms; the teacher takes 20."""

    @pytest.mark.parametrize(
        ("bias", "target", "expected", "most"),
        [
            (1.0, "2x", 10, 6), (1.3, "2x", 7, 6), (0.8, "2x", 12, 6), (9.0, "2x", 1, 6), (0.1, "2x", 20, 6),
            (9.0, "50% encoder parameters", 9, 0),  # No latency: nothing to measure.
        ],
    )  # fmt: skip
    def test_the_largest_that_is_measured_to_meet_its_target(
        self, causal: ModuleType, bias: float, target: str, expected: int, most: int
    ) -> None:
        measured = []

        class Sides(causal.LanguageModels):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                pass

            def fits(self, target: str, margin: float = 1.01) -> Any:
                return lambda sizes: [size <= 10 / margin for size in sizes]

            def latency(self, subnets: Any) -> Any:
                return np.array(subnets, dtype=float)

            def graph(self, model: Any, subnet: Any) -> Any:
                assert model == f"model {subnet}"
                return subnet

            def measured(self, graph: Any) -> float:
                measured.append(graph)
                return 20 / (graph * bias)

        offers = [(size, lambda size=size: f"model {size}") for size in range(20, 0, -1)]
        assert Sides().largest(target, offers) == (expected, f"model {expected}")
        assert len(measured) <= most
        assert len(set(measured)) == len(measured)

    def test_the_better_of_two_once_both_are_refitted(self, causal: ModuleType) -> None:
        class Sides(causal.LanguageModels):  # type: ignore[name-defined,misc]
            def __init__(self, quality: str) -> None:
                task = SimpleNamespace(quality=quality, measures=LANGUAGE)
                self.bench = SimpleNamespace(finalist="model {}".format, task=task)
                self.judged: list[str] = []

            def _validated(self, model: str) -> dict[str, float]:
                self.judged.append(model)
                return {"kl": float(model[-1]), "accuracy": float(model[-1])}

        smaller, larger, alone = Sides("kl"), Sides("accuracy"), Sides("kl")
        assert smaller.refitted([2, 1]) == (1, "model 1")
        assert larger.refitted([1, 2]) == (2, "model 2")
        assert alone.refitted([2]) == (2, "model 2")
        assert (larger.judged, alone.judged) == (["model 1", "model 2"], [])

    def test_what_evenly_spaced_layers_and_ranks_are(self, causal: ModuleType) -> None:
        import peers

        assert peers.evenly_spaced(30, 30) == list(range(30))
        assert peers.evenly_spaced(30, 3) == [0, 14, 29]
        teacher = tiny("llama", 3, language_model=True)
        cut = peers.truncated_svd(teacher, 0.5)
        block = cut.model.layers[0]
        paths = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
        ranks = tuple(block.get_submodule(path)[0].out_features for path in paths)
        assert ranks == peers.svd_ranks(teacher, 0.5)
        down, up = cut.model.layers[1].mlp.up_proj
        whole = teacher.model.layers[1].mlp.up_proj.weight
        error = (up.weight @ down.weight - whole).square().sum()
        values = np.linalg.svd(whole.detach().numpy(), compute_uv=False)
        assert error.item() == pytest.approx((values[down.out_features :] ** 2).sum(), rel=1e-3)


class TestRows:
    def test_differences_are_paired_over_blocks(self, causal: ModuleType) -> None:
        generator = np.random.default_rng(0)
        hard, tokens = generator.normal(200, 60, 64), [63.0] * 64
        own = {"surprise": hard.tolist(), "tokens": tokens}
        worse = {"surprise": (hard + 63 * generator.normal(0.1, 0.02, 64)).tolist(), "tokens": tokens}
        found = causal.difference(own, worse)
        assert -0.12 < found.low < found.value < found.high < -0.08
        alone = causal.log_perplexity(own)
        assert alone.high - alone.low > 0.3

    def test_every_side_is_told_of_beside_ours(self, causal: ModuleType) -> None:
        subnet: Any = None
        rows = {"surprise": [2.0, 4.0, 6.0], "tokens": [1.0, 1.0, 1.0]}
        worse = {"surprise": [3.0, 5.0, 7.0], "tokens": [1.0, 1.0, 1.0]}
        sides = {causal.OURS: rows, causal.DROPPED: worse}
        entries = [
            causal.Entry(
                side, target, subnet, rows=found, metrics={"fp32": {"kl": 0.5}}, untrained={"log_perplexity": 5.0},
                speedup=(1.5, 1.4, 1.6), samples=9,
            )
            for target in ("1.5x", "1.2x") for side, found in sides.items()
        ]  # fmt: skip
        found = {row.claim: row for row in causal.results(entries, rows, {})}
        difference = found["log-perplexity difference at 1.2x, layers dropped"]
        assert [difference.value, difference.low, difference.high] == pytest.approx([-1.0] * 3)
        assert difference.n == 3
        assert next(iter(found)) == difference.claim
        assert found["log-perplexity, teacher"].value == 4.0
        assert found["prefill speed-up over the teacher at 1.5x, ours"].value == 1.5

    def test_retention_of_classifiers_is_paired_and_pooled(self, causal: ModuleType) -> None:
        import end_to_end_classifiers as classifiers

        subnet: Any = None
        generator = np.random.default_rng(1)
        teachers = {name: (generator.random(200) < 0.9).astype(float).tolist() for name in ("a", "b")}
        sides = {
            name: [causal.Entry(causal.OURS, "4x", subnet, rows={"correct": teachers[name]}, speedup=(4.1, 4.0, 4.2))]
            for name in teachers
        }
        found = {row.claim: row for row in classifiers.results(sides, teachers, {})}
        pooled = found["accuracy retention pooled at 4x"]
        assert [pooled.value, pooled.low, pooled.high, pooled.n] == [1.0, 1.0, 1.0, 400]
        assert found["speed-up over the fp32 teacher, b at 4x, ours"].value == 4.1

    def test_entries_are_read_as_they_were_written(self, causal: ModuleType, tmp_path: Path) -> None:
        block = BlockConfig(9, 3, 96)
        entry = causal.Entry("ours", "2x", SubnetConfig((block,), 64), rows={"tokens": [3.0]}, decode=(1.2, 1.1, 1.3))
        entry.write(tmp_path / "entry.json")
        assert causal.Entry.read(tmp_path / "entry.json") == entry

    def test_several_seeds_are_means_of_every_sample(self, causal: ModuleType, tmp_path: Path) -> None:
        subnet = SubnetConfig((BlockConfig(9, 3, 96),), 64)

        class Sides(causal.LanguageModels):  # type: ignore[name-defined,misc]
            def __init__(self, seed: int) -> None:
                self.folder, self.steps, self.seed = tmp_path, 40, seed

        for seed, correct, speedup in (
            (0, [1.0, 0.0], (2.0, 1.9, 2.1)),
            (1, [1.0, 1.0], (2.2, 2.1, 2.3)),
            (2, [0.0], (0.0,) * 3),
        ):
            entry = causal.Entry(
                "ours", "2x", subnet, precision="fp32", rows={"correct": correct}, speedup=speedup, samples=8,
                metrics={"fp32": {"accuracy": sum(correct) / 2}},
            )  # fmt: skip
            entry.write(Sides(seed).path("ours", "2x"))
        causal.Entry("ours", "2x", subnet).write(tmp_path / "ours_2x_0_80.json")  # Of other steps.
        found = Sides(1).over_seeds(entry)
        assert found.rows == {"correct": [1.0, 0.5]}
        assert found.speedup == pytest.approx((2.1, 1.9, 2.3))
        assert found.metrics == {"fp32": {"accuracy": 0.75}}
        assert found.seeds == {0: {"accuracy": 0.5}, 1: {"accuracy": 1.0}}
        assert found.samples == 16

    def test_rows_of_sentence_encoders_tell_each_row_s_own_seeds(self, causal: ModuleType) -> None:
        import end_to_end

        subnet = SubnetConfig((BlockConfig(9, 3, 96),), 64)

        def entry(target: str, cosine: float, speedup: float) -> Any:
            judged = {"cosine": cosine, "recall": 0.8, "spearman": 0.9}
            kinds = dict.fromkeys(("fp32", "int8", end_to_end.ACROSS), judged)
            return causal.Entry(
                "ours", target, subnet, untrained=judged, metrics=kinds, speedup=(speedup, speedup - 0.1, speedup + 0.1)
            )

        half = {0: entry("50% encoder parameters", 0.94, 1.5)}
        double = {0: entry("2x", 0.9, 2.0), 2: entry("2x", 0.92, 2.1)}
        found = {row.claim: row for row in end_to_end.results([half, double], "int8", {})}
        at = found["cosine at 2x int8 teacher"]
        assert [at.value, at.low, at.high, at.n] == pytest.approx([0.91, 0.9, 0.92, 2])
        assert (at.context["seeds"], at.anchor) == ([0, 2], ".90")
        fast = found["speed-up over the int8 teacher at 2x, ours"]
        assert [fast.value, fast.low, fast.high] == pytest.approx([2.05, 1.9, 2.2])
        assert found["cosine at 50% encoder parameters, distilled"].context["seeds"] == [0]

    def test_a_table_goes_from_half_of_the_parameters_over_speeds_to_the_teacher(self, causal: ModuleType) -> None:
        import end_to_end_chart as chart
        from common import Result

        targets = ["as it is", "2.5x", "1.15x", "50% encoder parameters", "2x"]
        rows = []
        for target in targets:
            own = {"side": causal.OURS, "target": target, "deployed": True, "recall": 0.5, "spearman": 0.5}
            rows += [
                Result("cosine", 0.9, "", 1, 0.9, 0.9, context=own),
                Result(chart.SPEED, 1.0, "x", 1, 1.0, 1.0, context=own),
            ]
        first = [line.split(" | ")[0].removeprefix("| ") for line in list(chart.table(rows))[2:]]
        assert first == ["50% encoder parameters", "1.15x", "2x", "2.5x", "as it is"]
