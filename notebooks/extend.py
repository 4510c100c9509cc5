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
# # Add a device, a metric, a family
#
# Each is one new file or one new row. This notebook shows what such a row says, on parts that exist.

# %% [markdown]
# ## A device is a YAML file
#
# `conf/device/onnxruntime_cpu.yaml` is all there is to a device whose runtime is known. Two threads make another device:

# %%
from dataclasses import replace

import yaml

from latency_models.device import Device
from latency_models.discovery import check_device
from nas.config import conf_dir

text = (conf_dir() / "device" / "onnxruntime_cpu.yaml").read_text()
print(text)
device = replace(Device(**yaml.safe_load(text)), name="onnxruntime_cpu_2", threads=2)
found = check_device(device, seconds=0.05)
print(device.name, found.problem or f"ready, {found.check_ms:.3f} ms for a small product")

# %% [markdown]
# Its fingerprint says when two latencies may be compared: profiles of another fingerprint are kept apart.

# %%
for name, value in device.fingerprint().items():
    print(f"{name:16} {value[:60]}")

# %% [markdown]
# On the command line, without any file: `nas profile device=onnxruntime_cpu device.name=two device.threads=2 ...`

# %% [markdown]
# ## A metric is a number of the evaluation
#
# A search optimises metrics by name, and limits them. Objectives are plain data:

# %%
from nas.engine.limits import Objectives, resolve_limits

objectives = Objectives(
    goals={"cosine": "maximize", "latency_ms": "minimize"},
    constraints={"latency_ms": "0.5x", "recall": ">= 0.8x"},
)
limits = resolve_limits(objectives, {"latency_ms": 30.0}, lambda: {"cosine": 1.0, "recall": 0.9})
print(*limits, sep="\n")

# %% [markdown]
# On the command line: `nas search ... +objectives.constraints.recall='>= 0.8x'`. A new metric is a function in
# `nas/evaluation/metrics.py` and its name in the task.

# %% [markdown]
# ## A family is a row
#
# `search_spaces/families.py` is the only file that knows what attributes of a `transformers` model are called.

# %%
from search_spaces.families import FAMILIES

for family in FAMILIES:
    print(f"{family.name:12} serves {', '.join(family.model_types)}; query at {family.query}")

# %% [markdown]
# Write a row for a new one, add a small configuration to `tests/models.py`, and the contract tests check that the largest
# subnet is the teacher bit for bit, that a subnet reloads, that key/value caches survive skipped blocks, and more.
