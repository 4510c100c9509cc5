"""A predictor as JSON: how it was made and what it predicts, never the fitted object.

Loading fits again on the profile and compares five probe predictions, so a file can be read by anyone, runs nothing,
and cannot silently disagree with the profile beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latency_models.features import from_table
from latency_models.predictors import PREDICTORS, CalibratedPredictor, SubnetPredictor
from latency_models.transfer import Source, fit_source, transfer
from search_spaces.cost import Workload
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SubnetConfig

FORMAT = 1
PROBES = 5
CONFIDENCES = (0.5, 0.8, 0.9, 0.95)
TOLERANCE = 1e-3
"""Refits on other machines differ by rounding, amplified where evidence updates stop."""


class Profile(Protocol):
    """What a saved predictor needs of a profile: `latency_models.profile.DeviceProfile` has it."""

    @property
    def content_hash(self) -> str:
        """A hash of everything in the profile."""

    def training_data(self, quantity: str = "latency_ms") -> tuple[list[SubnetConfig], NDArray[np.float64]]:
        """Subnets and their values in measurement order."""


def fit_profile(
    profile: Profile,
    shape: ModelShape,
    workload: Workload,
    *,
    name: str = "auto",
    quantity: str = "latency_ms",
    unit: str = "ms",
    seed: int = 0,
    sources: Mapping[str, Source] | None = None,
) -> SubnetPredictor:
    """Fit a predictor by name on a profile; ``auto`` borrows from other devices' sources (see `fit_sources`).

    Raises:
        ValueError: The name is unknown, or the profile has too few usable rows.
    """
    subnets, values = profile.training_data(quantity)
    return SubnetPredictor(shape, workload, make_predictor(name, seed, sources), unit).fit(subnets, values)


def make_predictor(name: str, seed: int = 0, sources: Mapping[str, Source] | None = None) -> CalibratedPredictor:
    """A predictor by name, not yet fitted; ``auto`` borrows from other devices where there are any.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in PREDICTORS:
        raise ValueError(f"`predictor` must be one of {', '.join(PREDICTORS)}, but got {name!r}.")
    return transfer(sources, seed) if sources and name == "auto" else PREDICTORS[name](seed)


def fit_sources(
    profiles: Mapping[str, Profile], shape: ModelShape, workload: Workload, quantity: str = "latency_ms"
) -> dict[str, Source]:
    """What the profiles of other devices teach, by the devices' names."""
    found = {}
    for name, profile in profiles.items():
        subnets, values = profile.training_data(quantity)
        found[name] = fit_source(from_table(shape, subnets, workload), values, np.arange(len(values), dtype=np.float64))
    return found


def describe(
    predictor: SubnetPredictor,
    profile: Profile,
    *,
    name: str = "auto",
    quantity: str = "latency_ms",
    seed: int = 0,
    sources: Mapping[str, Profile] | None = None,
) -> dict[str, Any]:
    """A predictor that `fit_profile` fitted, as plain data; with the profiles of other devices that it borrows from.

    Raises:
        ValueError: It is not a predictor of this package's own, fitted.
    """
    fitted = predictor.predictor
    if not isinstance(fitted, CalibratedPredictor) or not fitted.weights_:
        raise ValueError(f"only a fitted CalibratedPredictor can be saved, but got {type(fitted).__name__}.")
    subnets, _ = profile.training_data(quantity)
    chosen = [subnets[index] for index in np.linspace(0, len(subnets) - 1, PROBES).astype(int)]
    prediction = predictor.predict(chosen)
    return {
        "format": FORMAT,
        "predictor": name,
        "settings": {
            "folds": fitted.folds,
            "costly": list(fitted.costly),
            "models": {n: repr(m) for n, m in fitted.models.items()},
        },
        "seed": seed,
        "quantity": quantity,
        "unit": predictor.unit,
        "workload": predictor.workload.to_dict(),
        "shape": asdict(predictor.shape),
        "weights": fitted.weights_,
        "errors": fitted.errors_,
        "quantiles": {str(level): fitted.calibration_.quantile(level) for level in CONFIDENCES},
        "profile": profile.content_hash,
        "sources": {name: source.content_hash for name, source in (sources or {}).items()},
        "probes": [
            {"subnet": subnet.to_dict(), "value": float(value), "lower": float(lower), "upper": float(upper)}
            for subnet, value, lower, upper in zip(
                chosen, prediction.value, prediction.lower, prediction.upper, strict=True
            )
        ],
    }


def save_predictor(path: str | Path, description: Mapping[str, Any]) -> None:
    """Write what `describe` gave."""
    Path(path).write_text(json.dumps(description, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def load_predictor(path: str | Path, profile: Profile, sources: Sequence[Profile] = ()) -> SubnetPredictor:
    """Fit a saved predictor again on its profile and check its probes.

    Args:
        path: What `save_predictor` wrote.
        profile: The profile that it was fitted on.
        sources: The profiles of other devices that it borrows from, in any order.

    Raises:
        ValueError: The file is not a saved predictor, a profile is another one or has changed, or the refitted
            predictor does not give the saved probe predictions.
    """
    data = _read(Path(path))
    if data["profile"] != profile.content_hash:
        raise ValueError(
            f"{path}: `profile` must be the one it was fitted on ({data['profile']}), but got {profile.content_hash}; "
            "fit the predictor again."
        )
    known = {source.content_hash: source for source in sources}
    if lacking := [name for name, digest in data["sources"].items() if digest not in known]:
        raise ValueError(
            f"{path}: `sources` must hold the profile of {lacking[0]} that it borrows from "
            f"({data['sources'][lacking[0]]}); give it, or fit the predictor again."
        )
    shape, workload = ModelShape(**data["shape"]), Workload(**data["workload"])
    borrowed = {name: known[digest] for name, digest in data["sources"].items()}
    predictor = fit_profile(
        profile,
        shape,
        workload,
        sources=fit_sources(borrowed, shape, workload, data["quantity"]),
        name=data["predictor"],
        quantity=data["quantity"],
        unit=data["unit"],
        seed=data["seed"],
    )
    subnets = [SubnetConfig.from_dict(probe["subnet"]) for probe in data["probes"]]
    prediction = predictor.predict(subnets)
    for kind in ("value", "lower", "upper"):
        for index, probe in enumerate(data["probes"]):
            now = float(getattr(prediction, kind)[index])
            if abs(now - probe[kind]) > TOLERANCE * abs(probe["value"]):
                raise ValueError(
                    f"{path}: probe {index} must have `{kind}` {probe[kind]:.6g} {data['unit']} as when it was saved, "
                    f"but the refitted predictor gives {now:.6g}; fit the predictor again."
                )
    return predictor


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}).") from error
    required = {"predictor", "seed", "quantity", "unit", "workload", "shape", "profile", "sources", "probes"}
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path}: `format` must be {FORMAT}: it is not a saved predictor of this version.")
    if missing := sorted(required - set(data)):
        raise ValueError(f"{path}: key {missing[0]!r} is missing.")
    return data
