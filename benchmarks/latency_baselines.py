"""What latency predictors are compared with: FLOPs alone, ridge, boosted trees, and the network that HAT uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from latency_tables import Measurements

from latency_models.features import Floats, Integers
from latency_models.scores import line_through

Baseline = Callable[[Measurements, Integers, Integers, int], Floats]
"""Takes measurements, rows to train on, rows to predict and a seed; returns predicted values."""


def flops_alone(data: Measurements, train: Integers, test: Integers, seed: int) -> Floats:  # noqa: ARG001
    intercept, slope = line_through(data.features.flops[train], data.values[train])
    return intercept + slope * data.features.flops[test]


def ridge(data: Measurements, train: Integers, test: Integers, seed: int) -> Floats:  # noqa: ARG001
    """Ridge on standardised physical products, its strength chosen by cross-validation."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-6, 3, 19)))
    predicted = model.fit(data.features.products[train], data.values[train]).predict(data.features.products[test])
    return np.asarray(predicted)


def boosting(data: Measurements, train: Integers, test: Integers, seed: int) -> Floats:
    """Histogram gradient boosting on the table's own columns, FLOPs and parameters, on logarithms."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    columns = np.column_stack([data.plain, data.features.flops, data.features.parameters])
    smallest = 20 if len(train) > 1000 else 5
    model = HistGradientBoostingRegressor(max_iter=300, min_samples_leaf=smallest, random_state=seed)
    return np.asarray(np.exp(model.fit(columns[train], np.log(data.values[train])).predict(columns[test])))


def hat_network(data: Measurements, train: Integers, test: Integers, seed: int) -> Floats:
    """HAT's predictor: three hidden layers of 400, features over their maximum, Adam on the mean squared error."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    scale = np.maximum(np.abs(data.plain).max(axis=0), 1e-12)
    inputs = torch.tensor(data.plain[train] / scale, dtype=torch.float32)
    level = float(data.values[train].mean())
    targets = torch.tensor(data.values[train] / level, dtype=torch.float32)
    network = torch.nn.Sequential(
        torch.nn.Linear(inputs.shape[1], 400),
        torch.nn.ReLU(),
        torch.nn.Linear(400, 400),
        torch.nn.ReLU(),
        torch.nn.Linear(400, 400),
        torch.nn.ReLU(),
        torch.nn.Linear(400, 1),
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    steps = 600 if len(train) < 1000 else 3000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(train), (min(128, len(train)),), generator=generator)
        loss = torch.nn.functional.mse_loss(network(inputs[rows])[:, 0], targets[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        predicted = network(torch.tensor(data.plain[test] / scale, dtype=torch.float32))[:, 0].numpy()
    return np.maximum(predicted.astype(np.float64), 1e-3) * level


BASELINES: dict[str, Baseline] = {
    "FLOPs alone": flops_alone,
    "ridge": ridge,
    "boosting": boosting,
    "HAT's MLP": hat_network,
}
