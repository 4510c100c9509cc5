"""Latency, energy and memory predictors on two public sets of measurements.

Accuracy, intervals, drift, transfer and speed. Every number is of `auto` with the same settings on all data. Rows to
train on are drawn at random from the pool (HW-GPT: the first four fifths of the table; HAT: nine tenths of the file,
drawn anew by every seed); the rest tests.

    python benchmarks/latency_predictors.py --data DIR
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from common import Result, machine, parser, show, write
from latency_baselines import BASELINES
from latency_tables import Measurements, read_all
from numpy.typing import NDArray

from latency_models.drift import DriftReport, detect, in_residuals
from latency_models.features import Floats, Integers
from latency_models.predictors import Prediction, SubnetPredictor, additive, auto
from latency_models.scores import score, score_prediction
from latency_models.shrinkage import ShrinkageModel
from latency_models.transfer import fit_source, transfer
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace

SIZES = {"HAT": (30, 100), "HW-GPT": (50, 200)}
BASELINE_SEEDS = 3
DRIFT_SEEDS = 2
TRANSFER_ROWS = 10


def fit_and_predict(data: Measurements, rows: Integers, test: Integers, seed: int) -> Prediction:
    """`auto` on some rows, in measurement order: predictions of the test rows."""
    rows = np.sort(rows)
    predictor = auto(seed).fit(data.features.take(rows), data.values[rows], rows.astype(np.float64))
    return predictor.predict(data.features.take(test))


@dataclass
class Intervals:
    """Coverage and width of 90 % intervals, seed by seed.

    Args:
        covered: Percent of the test rows in their interval.
        thirds: The same within the thirds of small, middle and large architectures.
        widths: Mean width over the predicted value, in percent.
        errors: Mean absolute percentage errors of the same predictions.
    """

    covered: list[float] = field(default_factory=list)
    thirds: list[list[float]] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, data: Measurements, test: Integers, prediction: Prediction) -> None:
        """Count one seed's test rows."""
        measured = data.values[test]
        found = score_prediction(prediction, measured)
        inside = (prediction.lower <= measured) & (measured <= prediction.upper)
        third = np.digitize(data.features.flops[test], np.quantile(data.features.flops, [1 / 3, 2 / 3]))
        self.covered.append(found.coverage or 0.0)
        self.thirds.append([100.0 * float(inside[third == index].mean()) for index in range(3)])
        self.widths.append(found.width or 0.0)
        self.errors.append(found.mape)

    def join(self, other: Intervals) -> None:
        """Pool with those of another table."""
        for mine, theirs in zip(
            (self.covered, self.thirds, self.widths, self.errors),
            (other.covered, other.thirds, other.widths, other.errors),
            strict=True,
        ):
            mine.extend(theirs)  # type: ignore[arg-type]

    def results(self, at: str) -> Iterator[Result]:
        """Rows of the table."""
        yield _over_seeds(f"coverage {at}", self.covered, "%", "90 % intervals")
        for index, name in enumerate(("small", "middle", "large")):
            yield _over_seeds(f"coverage of the {name} third {at}", [row[index] for row in self.thirds], "%")
        yield _over_seeds(f"width {at}", self.widths, "%", "mean width of the 90 % interval")
        ratio = float(np.mean(self.widths) / np.mean(self.errors))
        yield Result(f"width over MAPE {at}", ratio, "x", len(self.widths))


def accuracy(data: Measurements, n: int, seeds: int, intervals: Intervals) -> Iterator[Result]:
    """Errors and ranks of `auto` with n rows, beside the baselines on the same rows; its intervals are collected."""
    scores = []
    baselines: dict[str, list[float]] = {name: [] for name in BASELINES}
    taus: dict[str, list[float]] = {name: [] for name in BASELINES}
    for seed in range(seeds):
        train, test = data.split(seed)
        prediction = fit_and_predict(data, train[:n], test, seed)
        scores.append(score_prediction(prediction, data.values[test]))
        intervals.add(data, test, prediction)
        for name, baseline in BASELINES.items() if seed < BASELINE_SEEDS else ():
            alone = score(baseline(data, train[:n], test, seed), data.values[test])
            baselines[name].append(alone.mape)
            taus[name].append(alone.kendall)
    beside = ", ".join(f"{name} {np.mean(values):.2f} %" for name, values in baselines.items())
    ranks = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in taus.items())
    at = f"{data.name} n={n}"
    yield _over_seeds(f"MAPE {at}", [s.mape for s in scores], "%", beside)
    yield _over_seeds(f"tau {at}", [s.kendall for s in scores], "", ranks)
    yield _over_seeds(f"within 10 % {at}", [s.within_10 for s in scores], "%")
    yield from intervals.results(at)


def exchangeable(data: Measurements, n: int, seeds: int) -> Iterator[Result]:
    """Coverage where test rows are drawn from the whole table, as training rows are: what intervals promise."""
    shuffled = replace(data, pool=None)
    scores = []
    for seed in range(seeds):
        train, test = shuffled.split(seed)
        prediction = fit_and_predict(shuffled, train[:n], test, seed)
        scores.append(score_prediction(prediction, data.values[test]))
    at = f"{data.name} n={n}, test rows drawn at random"
    yield _over_seeds(f"coverage {at}", [s.coverage or 0.0 for s in scores], "%", "90 % intervals")
    yield _over_seeds(f"MAPE {at}", [s.mape for s in scores], "%")


def anchors(data: Measurements) -> Iterator[Result]:
    """Boosted trees and HAT's network with the whole pool, once."""
    train, test = data.split(0)
    train = train[:1600] if data.pool is None else train
    for name in ("boosting", "HAT's MLP") if data.pool is None else ("boosting",):
        found = score(BASELINES[name](data, train, test, 0), data.values[test])
        yield Result(f"MAPE {data.name} {name} n={len(train)}", found.mape, "%", 1)


def drift(data: Measurements, report: DriftReport, copies: int) -> Iterator[Result]:
    """Shifted stretches of a whole table, false alarms on shuffled copies, and what a fit loses by them."""
    found = "; ".join(map(str, report.segments)) or "none"
    yield Result(f"drift segments {data.name}", len(report.segments), "", len(data.values), anchor=found)
    model = ShrinkageModel(terms=("products", "levels"), drift=False).fit(data.features, data.values)
    residuals = np.log(data.values / model.predict(data.features)[0])
    generator = np.random.default_rng(0)
    alarms = [bool(in_residuals(generator.permutation(residuals)).segments) for _ in range(copies)]
    yield Result(f"drift false alarms {data.name}", 100.0 * float(np.mean(alarms)), "%", copies, anchor="shuffled rows")
    if report.segments and data.pool is None:
        ratios = [_drift_cost(data, report.levels != 0, seed) for seed in range(DRIFT_SEEDS)]
        yield _over_seeds(f"error with drifted rows over without {data.name}", ratios, "x", "on undrifted test rows")


def _drift_cost(data: Measurements, drifted: NDArray[np.bool_], seed: int) -> float:
    """Error on undrifted test rows of a fit on all rows, over that of a fit on undrifted rows."""
    train, test = data.split(seed)
    test = test[~drifted[test]]
    errors = [
        score(fit_and_predict(data, rows, test, seed).value, data.values[test]).mape
        for rows in (train, train[~drifted[train]])
    ]
    return errors[0] / errors[1]


def injected(data: Measurements, trials: int) -> Result:
    """Share of 5 % steps over 100 rows, put at random places, that are found."""
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(trials):
        start = int(generator.integers(0, len(data.values) - 100))
        values = data.values.copy()
        values[start : start + 100] *= 1.05 if trial % 2 else 1 / 1.05
        segments = detect(data.features, values).segments
        hits += any(s.start < start + 60 and s.stop > start + 40 and abs(abs(s.shift) - 0.05) < 0.02 for s in segments)
    return Result(f"drift steps of 5 % over 100 rows found {data.name}", 100.0 * hits / trials, "%", trials)


def transfers(tables: list[Measurements], seeds: int) -> Iterator[Result]:
    """Each device as the new one, with ten rows, given the profiles of the others of the same table and quantity."""
    rows = np.sort(np.random.default_rng(0).choice(min(t.pool or 0 for t in tables), 400, replace=False))
    sources = {t.name: fit_source(t.features.take(rows), t.values[rows], rows.astype(np.float64)) for t in tables}
    ratios = []
    for new in tables:
        others = {name: model for name, model in sources.items() if name != new.name}
        errors = []
        for seed in range(seeds):
            train, test = new.split(seed)
            own = np.sort(train[:TRANSFER_ROWS])
            known, values, order = new.features.take(own), new.values[own], own.astype(np.float64)
            with_others = transfer(others, seed).fit(known, values, order)
            alone = auto(seed).fit(known, values, order)
            unseen = new.features.take(test)
            errors.append([score(p.predict(unseen).value, new.values[test]).mape for p in (with_others, alone)])
        mean = np.mean(errors, axis=0)
        ratios.append(float(mean[0] / mean[1]))
        text = f"MAPE {mean[0]:.2f} % with transfer, {mean[1]:.2f} % without"
        yield Result(f"transfer to {new.name} n={TRANSFER_ROWS}", ratios[-1], "x", seeds, anchor=text)
    yield Result(
        f"transfer, mean over devices n={TRANSFER_ROWS}",
        float(np.mean(ratios)),
        "x",
        len(ratios),
        min(ratios),
        max(ratios),
    )


def speed(count: int) -> Iterator[Result]:
    """Subnets a second from encoded arrays, on a six-layer encoder's space."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    with torch.device("meta"):
        shape = ModelShape.from_model(BertModel(config))
    choices = {"skip": [False, True], "heads": [3, 6, 9, 12], "ffn": [384, 768, 1152, 1536], "rank_qkv": [96, 0]}
    space = SearchSpace.from_choices(shape, choices)
    generator = np.random.default_rng(0)
    subnets = space.sample(generator, 60)
    from search_spaces.cost import costs

    values = (1.0 + costs(shape, subnets).macs / 1e8) * (1.0 + 0.02 * generator.standard_normal(60))
    highs = [len(dimension.choices) for dimension in space.dimensions]
    levels = generator.integers(0, highs, size=(count, len(highs)))
    for name, make in (("additive", additive), ("auto", auto)):
        predictor = SubnetPredictor(shape, predictor=make()).fit(subnets, values)
        rates = []
        for _ in range(5):
            begin = time.perf_counter()
            predictor.predict(space.table(levels))
            rates.append(count / (time.perf_counter() - begin))
        yield Result(f"speed of {name}", float(np.median(rates)), "subnets/s", len(rates), min(rates), max(rates))


def _over_seeds(claim: str, values: list[float] | Floats, unit: str, anchor: str = "") -> Result:
    return Result(claim, float(np.mean(values)), unit, len(values), float(min(values)), float(max(values)), anchor)


def run(directory: Path, *, quick: bool) -> list[Result]:
    """All results on the data below a directory."""
    seeds = 2 if quick else 10
    tables = list(read_all(directory))
    if not tables:
        sys.exit(f"no hat/*.csv.gz and no hwgpt/table_*.csv.gz in {directory}")
    results: list[Result] = []
    steady: dict[int, Intervals] = {}
    for data in tables:
        report = detect(data.features, data.values)
        for n in SIZES[data.name.split()[0]][: 1 if quick else None]:
            intervals = Intervals()
            results += accuracy(data, n, seeds, intervals)
            if data.pool is not None and not report.segments:
                steady.setdefault(n, Intervals()).join(intervals)
                results += exchangeable(data, n, min(seeds, 5))
            print(f"{data.name} n={n} done", file=sys.stderr)
        results += anchors(data)
        results += drift(data, report, 20 if quick else 200)
    for n, intervals in steady.items():
        results += intervals.results(f"HW-GPT, all undrifted columns n={n}")
    results += [injected(data, 10 if quick else 100) for data in tables if "enfr_cpu" in data.name]
    latencies = [data for data in tables if data.name.startswith("HW-GPT lat_")]
    if len(latencies) > 1:
        results += transfers(latencies, seeds)
    results += speed(20_000 if quick else 100_000)
    return results


def main() -> None:
    arguments = parser(__doc__ or "")
    options = arguments.parse_args()
    if options.data is None:
        arguments.error("--data DIR is needed: a folder with hat/*.csv.gz and hwgpt/table_*.csv.gz")
    seeds = 2 if options.quick else 10
    context = machine(seeds=list(range(seeds)), quick=options.quick)
    results = [replace(result, context=context) for result in run(options.data, quick=options.quick)]
    show(results)
    print("written to", write("latency_predictors", results, options.output))


if __name__ == "__main__":
    main()
