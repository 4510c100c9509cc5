"""What `nas profile` says in the end: learning curve, drift, and how good the predictor is on fresh subnets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas.judging import FittedPredictor, drift_text
from nas.measuring import DeviceBench
from nas.reports.data import Interval

if TYPE_CHECKING:
    from pathlib import Path


def print_profile(device: DeviceBench) -> None:
    """Print everything that is known of a device's profile and predictor, and draw its plot."""
    from latency_models.active import curve_text

    latency = device.fitted
    if device.curve:
        print(f"Learning curve of {device.bench.device.name}:\n{curve_text(device.curve)}")
    print(drift_text(device.profile, latency.drift))
    if device.few:
        print(f"No predictor: values of the space's {len(device.few)} subnets are looked up in {device.profile.path}")
        return
    kept = ", ".join(f"{name} {weight:.0%}" for name, weight in sorted((latency.weights or {}).items(), key=_heaviest))
    print(f"Predictor: {device.predictor_name} ({kept}); fitted to {latency.rows} subnets of {device.profile.path}")
    print(f"Saved as: {device.predictor_path}")
    if not latency.scores:
        device.bench.say(
            "No scorecard: no two subnets are held out to judge the predictor; raise `profile.held_out`, or give the "
            "space more choices."
        )
        return
    _print_scores("latency_ms", latency)
    for quantity in device.profile.quantities[1:]:
        _print_scores(quantity, device.fit(quantity))
    batch = device.bench.workload.batch_size
    print(throughput_text(latency, batch))
    print(f"Predicted against measured: {draw(latency, device.profile.path.with_suffix('.png'))}")


def _heaviest(pair: tuple[str, float]) -> float:
    return -pair[1]


def _print_scores(quantity: str, fitted: FittedPredictor) -> None:
    from rich.console import Console

    from nas.reports.tables import plain_table, scorecard_table

    title = f"{quantity}, judged on fresh subnets (RMSE in {fitted.unit})"
    # As wide as it needs to be: a piped scorecard must not be cut at 80 columns.
    console = Console(width=max(Console().width, 130))
    console.print(plain_table(title, *scorecard_table(fitted.scores)))


def draw(fitted: FittedPredictor, path: Path) -> Path:
    """The predictor's held-out subnets, predicted against measured, as a PNG."""
    from nas.reports.figures import save_checks_png

    save_checks_png([(check.name, "held out", check.predicted_ms, check.measured_ms) for check in fitted.checks], path)
    return path


def throughput_text(latency: FittedPredictor, batch_size: int) -> str:
    """Predicted and measured sequences per second of the held-out subnets' extremes."""
    from nas.reports.tables import format_interval, format_number

    checks = sorted(latency.checks, key=lambda check: check.measured_ms)
    lines = [
        f"  {name}: predicted {format_interval(_throughput(check.predicted_ms, batch_size))}, "
        f"measured {format_number(batch_size * 1e3 / check.measured_ms)}"
        for name, check in (("fastest", checks[0]), ("slowest", checks[-1]))
    ]
    return "Throughput in sequences per second, held-out subnets:\n" + "\n".join(lines)


def _throughput(latency: Interval, batch_size: int) -> Interval:
    least, most = (batch_size * 1e3 / max(value, 1e-9) for value in (latency.high, latency.low))
    return Interval(batch_size * 1e3 / latency.value, least, most)
