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
# # Search, and read a front
#
# The smoke experiment searches a tiny random encoder in a minute. `experiment=quickstart` does the same with a real one.

# %%
from pathlib import Path

from nas.__main__ import run

root = Path("runs/notebooks")
assert run(["search", "experiment=smoke", f"root={root}", "progress=quiet", "torch_threads=1"]) == 0

# %% [markdown]
# ## The study is an Optuna study
#
# Every trial holds its architecture as JSON, its predicted costs with their intervals, and its metrics.

# %%
import optuna

from nas.engine.storage import JournalStorage

study = optuna.load_study(study_name="smoke", storage=JournalStorage().open(root / "smoke").backend)
for trial in study.trials[:3]:
    print(trial.number, trial.state.name, trial.values, trial.user_attrs.get("predicted", {}).get("latency_ms"))

# %% [markdown]
# ## The front
#
# The candidates that no other beats in both quality and latency, and the best compromise among them.

# %%
from nas.engine.candidates import candidates_of, pareto_front, pick
from nas.engine.limits import Objectives
from nas.reports.tables import describe

objectives = Objectives(
    {name: direction.name.lower() for name, direction in zip(study.metric_names, study.directions, strict=True)}
)
candidates = candidates_of(study.trials, objectives)
front = pareto_front(candidates, objectives)
knee = pick(front, objectives, "knee")
for candidate in front:
    value, low, high = candidate.predicted["latency_ms"]
    mark = "<- knee" if candidate is knee else ""
    print(
        f"{candidate.values['cosine']:.3f} at {value:.4f} ms [{low:.4f}, {high:.4f}]: {describe(candidate.subnet)} {mark}"
    )

# %% [markdown]
# ## The architecture, block by block
#
# Drawn beside its teacher: attention above the line, the FFN below; dashed blocks are gone.

# %%
from nas.reports.data import Report
from nas.reports.drawing import describe_block

report = Report.load(root / "smoke" / "report.json")
for index, block in enumerate(knee.subnet.blocks):
    print(describe_block(index, block))

# %% [markdown]
# ## Predicted and measured
#
# The front's members were exported and measured on the device beside their teacher, in the same run.

# %%
from nas.reports.tables import print_table

print_table(report)

# %% [markdown]
# `nas dashboard root=runs/notebooks` shows all of this in the browser, live while a search runs.
