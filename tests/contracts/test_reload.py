"""Saved subnets load everywhere: in plain transformers with hwnas out of reach, and in hwnas without running code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from search_spaces.checkpoint import load_subnet, save_subnet
from search_spaces.subnet import SKIPPED, SubnetConfig
from tests.contracts.test_families import CAUSAL, MODEL_TYPES, drawn, made
from tests.contracts.test_hidden_sizes import TYPES, narrow

# Loads every folder below the first argument with plain transformers and saves what it computes.
PLAIN = """
import json, sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nas", "latency_models", "search_spaces", "tests"):
            raise ImportError(f"{name} is out of reach")

sys.meta_path.insert(0, Blocked())
import torch, transformers
from safetensors.torch import load_file, save_file

found, texts = {}, {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    inputs = load_file(folder / "inputs.safetensors")
    config = json.loads((folder / "config.json").read_text())
    trust, generates = "auto_map" in config, config["architectures"][0].endswith(("CausalLM", "LMHeadModel"))
    for auto in (transformers.AutoModel, transformers.AutoModelForCausalLM)[: 1 + generates]:
        model, report = auto.from_pretrained(folder, trust_remote_code=trust, output_loading_info=True)
        assert not report["mismatched_keys"] and not report["unexpected_keys"] - {"lm_head.weight"}, report
        assert not [key for key in report["missing_keys"] if "pooler" not in key], report
        with torch.inference_mode():
            found[f"{folder.name}.{auto.__name__}"] = model.eval()(**inputs)[0].contiguous()
    if generates:
        tokens = model.generate(inputs["input_ids"][:1, :4], max_new_tokens=6, do_sample=False, eos_token_id=None)
        found[f"{folder.name}.generated"] = tokens
save_file(found, sys.argv[2])
"""


def homogeneous(model_type: str, *, heads: bool) -> SubnetConfig:
    """Two blocks of the same sizes, with a smaller FFN and, where asked, fewer heads."""
    space = made(model_type).space
    block = replace(space.teacher.blocks[0], ffn=48)
    if heads:
        grouped = space.shape.kv_heads < space.shape.heads
        block = replace(block, heads=2 if grouped else 3, kv_heads=1 if grouped else 3)
    return SubnetConfig((block, SKIPPED, block), space.shape.hidden_size)


def mixed(model_type: str) -> SubnetConfig:
    """The first block is left out, the others differ in widths and ranks."""
    space = made(model_type).space
    drawn = space.sample(np.random.default_rng(5), 64)
    return next(s for s in drawn if s.kept == (1, 2) and any(b.rank_qkv for b in s.blocks)).with_block(0, SKIPPED)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    for model_type in MODEL_TYPES:
        it = made(model_type)
        for name, subnet in (("stock", homogeneous(model_type, heads=False)), ("mixed", mixed(model_type))):
            folder = root / f"{model_type}-{name}"
            save_subnet(it.supernet.extract(subnet), subnet, it.space.shape, folder)
            save_file(it.inputs, folder / "inputs.safetensors")
    for model_type in TYPES:
        it, folder = narrow(model_type), root / f"{model_type}-narrow"
        subnet = replace(drawn(it.space, 5), hidden_size=16)
        save_subnet(it.supernet.extract(subnet), subnet, it.space.shape, folder)
        save_file(it.inputs, folder / "inputs.safetensors")
    return root


def test_plain_transformers_loads_every_folder_without_hwnas(folders, tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", PLAIN, str(folders), str(tmp_path / "found.safetensors")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    found = load_file(tmp_path / "found.safetensors")
    for folder in folders.iterdir():
        it, model = made(folder.name.rpartition("-")[0]), load_subnet(folder)
        assert torch.equal(found[f"{folder.name}.AutoModel"], it.run(getattr(model, model.base_model_prefix, model)))
        if model.can_generate():
            assert torch.equal(found[f"{folder.name}.AutoModelForCausalLM"], it.run(model))
            prompt = it.inputs["input_ids"][:1, :4]
            tokens = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
            assert torch.equal(found[f"{folder.name}.generated"], tokens)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_only_what_the_stock_class_cannot_express_carries_code(folders, model_type):
    stock, mixed_folder = folders / f"{model_type}-stock", folders / f"{model_type}-mixed"
    assert not (stock / "modeling_subnet.py").exists()
    assert "auto_map" not in json.loads((stock / "config.json").read_text())
    assert (mixed_folder / "modeling_subnet.py").exists()


# Whose configurations can say that there are fewer heads of the same width.
@pytest.mark.parametrize("model_type", [*sorted(set(CAUSAL) - {"gpt2"}), "vit"])
def test_fewer_heads_are_stock_where_the_configuration_can_say_so(model_type, tmp_path):
    it, subnet = made(model_type), homogeneous(model_type, heads=True)
    model = it.supernet.extract(subnet)
    save_subnet(model, subnet, it.space.shape, tmp_path / "m")
    assert not (tmp_path / "m" / "modeling_subnet.py").exists()
    kind = AutoModelForCausalLM if model_type in CAUSAL else AutoModel
    assert torch.equal(it.run(kind.from_pretrained(tmp_path / "m").eval()), it.run(model))


def test_fewer_heads_are_not_stock_where_it_cannot(tmp_path):
    it, subnet = made("bert"), homogeneous("bert", heads=True)
    save_subnet(it.supernet.extract(subnet), subnet, it.space.shape, tmp_path / "m")
    assert (tmp_path / "m" / "modeling_subnet.py").exists()


def test_our_own_loader_runs_no_code_from_the_folder(folders, tmp_path):
    source = folders / "llama-mixed"
    target = tmp_path / "m"
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / "modeling_subnet.py").write_text("raise SystemExit('code of the folder was run')\n")
    config = json.loads((target / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "modeling_subnet.Config"
    (target / "config.json").write_text(json.dumps(config))
    assert torch.equal(made("llama").run(load_subnet(target)), made("llama").run(load_subnet(source)))


def test_a_configuration_of_another_family_is_refused(folders, tmp_path):
    target = tmp_path / "m"
    target.mkdir()
    for file in (folders / "llama-mixed").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / "config.json").write_bytes((folders / "gpt2-mixed" / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"config\.json must be of the family llama, but is gpt2"):
        load_subnet(target)
