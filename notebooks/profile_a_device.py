# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Profile a device, and find out how far to trust its predictor
#
# A predictor is only worth what it says of subnets that it has not seen. This notebook measures a few dozen subnets of a
# small random encoder with ONNX Runtime, fits a predictor, and judges it. Put your own model's folder in place of `model`,
# and it works the same.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from nas.__main__ import run
from nas.smoke import make_smoke_assets

root = Path("runs/notebooks")
make_smoke_assets(root / "smoke")
model, texts = root / "smoke" / "model", root / "smoke" / "texts.csv"

# %% [markdown]
# ## Measure
#
# `nas profile` keeps every raw sample, and measures the largest model in between, so that a drifting machine is noticed.
# What is measured already is not measured again: run this cell twice.

# %%
code = run(
    [
        "profile",
        f"root={root}",
        f"model.path={model}",
        f"task.data.path={texts}",
        "task.data.train=64",
        "task.data.calibration=48",
        "task.data.validation=48",
        "task.data.test=64",
        "space=width",
        "space.round_to.ffn=16",
        "profile.num_subnets=24",
        "profile.held_out=6",
        "profile.protocol.max_seconds=0.2",
        "progress=quiet",
    ]
)
assert code == 0

# %% [markdown]
# ## Read the profile

# %%
from latency_models.profile import DeviceProfile

path = max((root / "cache" / "profiles").glob("onnxruntime_cpu-*.jsonl"), key=lambda file: file.stat().st_mtime)
profile = DeviceProfile.read(path)
print(f"{len(profile.latest())} subnets on {profile.header.fingerprint['cpu']}")
row = profile.rows[0]
print(
    f"the first: median {row.measurement.p50:.4f} ms of {row.measurement.n} runs, spread {row.measurement.spread:.1%}"
)

# %% [markdown]
# ## Trust
#
# Cross-validation predicts every subnet with a predictor that was fitted without it. Three questions follow: how large are
# the errors, do the intervals hold what they promise, and would more profiling help?

# %%
from latency_models.trust import cross_validate

trust = cross_validate(profile, repeats=2)
print(f"mean absolute error {trust.mape:.2f} %")
for promised, inside in trust.coverage:
    print(f"intervals that promise {promised:.0%} hold {inside:.0%} of the measurements")
for point in trust.learning:
    print(f"fitted to {point.rows:3d} subnets: {point.mape:.2f} % [{point.low:.2f}, {point.high:.2f}]")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
below, above = trust.predicted - trust.lower, trust.upper - trust.predicted
left.errorbar(trust.measured, trust.predicted, yerr=[below, above], fmt="o", markersize=4, elinewidth=1)
left.axline((float(trust.measured.mean()),) * 2, slope=1, color="0.6", linestyle="--")
left.set(xlabel="measured, ms", ylabel="predicted, ms")
right.plot(np.arange(len(trust.errors)), 100 * trust.errors, "o", markersize=4)
right.axhline(0, color="0.6", linestyle="--")
right.set(xlabel="place in the measurement's order", ylabel="error, %")
plt.close(figure)
figure

# %% [markdown]
# Errors that wander together over the order of measurement say that the machine did: measure again when it is quiet.
# `nas dashboard` shows the same figures for every study.
