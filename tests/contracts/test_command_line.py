"""Options as they are written on the command line: what cannot be read or chosen is told before a folder is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from nas.__main__ import run
from nas.config import construct
from nas.options import check_options
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny_bert

GIVEN = ["model.path=m", "task.data.path=x"]
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-space.md"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["space"], "options are written name=value, but got 'space'; `nas search --help` lists them."),
        (["=3"], "options are written name=value, but got '=3'"),
        (["seed==3"], "options are written name=value, but got 'seed==3', whose value cannot be read: quote it"),
        (["space.choices.heads=[0.5"], "'space.choices.heads=[0.5', whose value cannot be read"),
        (["storage.url=postgresql://me:s3cr3t@h/x=[{"], "me:***@h"),
        (["task=null"], "`task` must be one of causal_lm, "),
        (["space={a: 1}"], "`space` must be one of hidden_size, homogeneous, "),
        (["space=nope"], "unknown space 'nope'; known are hidden_size, homogeneous, width, width_rank, width_rank_pre"),
        (["objectives=[quality,nope]"], "unknown objectives 'nope'; known are ece, energy_mj"),
        (["root=[a]"], "`root` must be a folder, such as root=runs, but got ['a']."),
        (["root="], "`root` must be a folder, such as root=runs, but got ''."),
        (["root=null"], "`root` must be a folder, such as root=runs, but got null."),
        (["~task"], "unknown option 'task.data.path'. Another option takes its block away."),
        (["--config-dir"], "--config-dir must be followed by its value"),
        (["--help", "task=null"], "`task` must be one of causal_lm, "),
    ],
)
def test_what_cannot_be_composed_is_told_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, wrong, said):
    monkeypatch.chdir(tmp_path)
    assert run(["search", *GIVEN, *wrong]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert "s3cr3t" not in told
    assert not list(tmp_path.iterdir())


def test_a_group_lists_the_files_of_ones_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "space").mkdir(parents=True)
    (tmp_path / "own" / "space" / "mine.yaml").write_text("min_blocks: 1\n", encoding="utf-8")
    assert run(["search", *GIVEN, "--config-dir", "own", "space=mien"]) == 2
    assert "Did you mean 'mine'?" in capsys.readouterr().err


def test_the_documented_space_of_ones_own_is_picked_by_its_name(tmp_path, capsys):
    text = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    (tmp_path / "own" / "space").mkdir(parents=True)
    (tmp_path / "own" / "space" / "mine.yaml").write_text(text, encoding="utf-8")
    asked = ["calibrate", *GIVEN, f"root={tmp_path}", "--config-dir", str(tmp_path / "own"), "space=mine"]
    assert run([*asked, "space.overrides.1.ffn=[1.0]", "--cfg", "job", "--resolve"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    check_options("calibrate", config)
    assert config["space"]["choices"]["rank_qkv"]  # Of the space that it begins with.
    assert config["space"]["choices"]["skip"] is None
    options = {**config["space"], "overrides": {int(key): value for key, value in config["space"]["overrides"].items()}}
    space = construct(SearchSpace.from_choices, {"shape": ModelShape.from_model(tiny_bert()), **options}, "space")
    assert len(space.levels("heads", 0)) == len(space.levels("ffn", 1)) == 1
    assert len(space.levels("heads", 1)) > 1
    assert space.min_blocks == 2
