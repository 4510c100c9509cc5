# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Export, reload without hwnas, and measure
#
# What a search finds leaves it as ordinary files: a `transformers` model with narrower layers, and ONNX graphs.

# %%
import json
from pathlib import Path

from nas.__main__ import run

root = Path("runs/notebooks")
assert run(["search", "experiment=smoke", f"root={root}", "progress=quiet", "torch_threads=1"]) == 0
folder = root / "smoke" / "models" / "by-hand"
assert run(["export", f"root={root}", "study=smoke", "pick=knee", f"directory={folder}", "progress=quiet"]) == 0
print(*sorted(path.name for path in folder.iterdir()), sep="\n")

# %% [markdown]
# ## As a plain `transformers` model
#
# Where hwnas is not installed, `AutoModel.from_pretrained(folder, trust_remote_code=True)` does it, by a small file in the
# folder. Who would rather run no code from a folder takes this function; what it returns is made of `transformers`' own modules.

# %%
from transformers import AutoTokenizer

from search_spaces.checkpoint import load_subnet

model = load_subnet(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
encoded = tokenizer(["a good film"], return_tensors="pt")
print(type(model).__module__, model(**encoded).last_hidden_state.shape)

# %% [markdown]
# ## With nothing but ONNX Runtime
#
# These lines need `onnxruntime`, `tokenizers` and `numpy`, and nothing of hwnas.

# %%
import numpy
import onnxruntime
import tokenizers

card = json.loads((folder / "card.json").read_text())
plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
sessions = {
    name: onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
    for name in card["graphs"]
}


def embed(session: onnxruntime.InferenceSession, text: str) -> numpy.ndarray:
    encoding = plain.encode(text)
    values = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
    names = {value.name for value in session.get_inputs()}
    inputs = {name: numpy.array([ids], dtype=numpy.int64) for name, ids in values.items() if name in names}
    return session.run([card["output"]], inputs)[0]


results = {name: embed(session, "a good film") for name, session in sessions.items()}
first, *others = results.values()
for other in others:
    print(
        "cosine between the precisions:",
        float((first * other).sum() / numpy.linalg.norm(first) / numpy.linalg.norm(other)),
    )

# %% [markdown]
# ## Measure them beside each other
#
# Interleaved, so that a slow moment of the machine strikes both.

# %%
import time

samples: dict[str, list[float]] = {name: [] for name in sessions}
for _ in range(60):
    for name, session in sessions.items():
        start = time.perf_counter()
        embed(session, "a good film with a long and slow ending")
        samples[name].append(1e3 * (time.perf_counter() - start))
for name, values in samples.items():
    low, median, high = numpy.quantile(values[10:], [0.1, 0.5, 0.9])
    print(f"{name}: {median:.3f} ms [{low:.3f}, {high:.3f}], n={len(values) - 10}")
