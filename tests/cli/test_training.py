"""`nas train`: its options, what it keeps, and how a search takes it."""

from __future__ import annotations

import os
import re

import pytest
from hydra import compose, initialize_config_dir

from nas import training
from nas.__main__ import run
from nas.commands import plain
from nas.config import conf_dir
from nas.smoke import make_smoke_assets
from nas.workbench import Workbench
from search_spaces.library import Library
from tests.cli.test_commands import smoke

SHORT = ["train.steps=4", "train.evaluate_every=2", "training.batch_size=8", "train.precision=fp32"]
SPACE = ["space.choices.heads=[0.5,1.0]", "space.choices.ffn=[0.5,1.0]", "space.choices.rank_qkv=[0,8]"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the smoke search's model and texts."""
    root = tmp_path_factory.mktemp("training")
    make_smoke_assets(root / "smoke")
    return root


def libraries(root, what):
    return sorted(path for path in (root / "cache" / "libraries").glob(f"*.{what}-*.safetensors"))


def train(root, *options, progress="plain"):
    return run([*smoke(root, "train", *SPACE, *SHORT), f"progress={progress}", *options])


def test_a_training_is_kept_by_its_content_and_taken_by_those_that_ask(small, capsys):
    assert train(small) == 0
    out, err = capsys.readouterr()
    assert re.search(r"4 steps in .*, ended by steps\ncosine of the smallest subnet: 0\.\d+ -> 0\.\d+", out)
    assert "Training the supernet: done" in err
    first = libraries(small, "trained")
    assert [str(path) for path in first] == [out.splitlines()[0]]
    assert train(small) == 0
    assert "Reusing the trained supernet" in capsys.readouterr().err
    assert train(small, "seed=1") == 0
    second = [path for path in libraries(small, "trained") if path not in first]
    assert len(second) == 1
    later = second[0].stat().st_mtime_ns + 10**9
    os.utime(first[0], ns=(later, later))  # What was trained last is what is taken.
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        options = [*smoke(small, "train", *SPACE)[1:], "calibrate.use_trained=true"]
        bench = Workbench(plain(compose("train", overrides=options)))
    taken = bench.library
    assert taken.metadata == Library.load(first[0]).metadata
    assert taken.metadata["training"] != Library.load(second[0]).metadata["training"]
    assert not libraries(small, "training")


def test_a_stopped_training_goes_on_and_those_of_others_are_left_alone(small, capsys, monkeypatch):
    def stopped(*args, **kwargs):
        raise SystemExit

    own = [*SHORT, "train.steps=6", "train.checkpoint_every=1", "seed=5"]
    with monkeypatch.context() as patch:
        patch.setattr(training.SupernetTraining, "_keep", stopped)
        with pytest.raises(SystemExit):
            train(small, *own)
    assert len(libraries(small, "training")) == 1
    capsys.readouterr()
    assert train(small, *own, "seed=6", "train.steps=2") == 0
    assert "is of other settings, texts or seed, and is left as it is" in capsys.readouterr().err
    assert train(small, *own) == 0
    assert "Continuing from" in capsys.readouterr().err
    assert not libraries(small, "training")


def test_asking_for_a_trained_library_that_nobody_made_is_told(small, capsys):
    assert run(smoke(small, "calibrate", *SPACE, "space.min_blocks=2", "calibrate.use_trained=true")) == 2
    assert "`calibrate.use_trained` must be false where no supernet was trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("train.steps=0", "`train.steps` must be a whole number >= 1, but got 0"),
        ("train.schedule=[width]", "`train.schedule` must open everything that varies in the space, but depth"),
        ("+train.shedule=all", "SupernetSettings has no option 'train.shedule'"),
        ("train.patience=few", "`train.patience` must be a whole number or null, but got 'few'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_calibrated(small, tmp_path, capsys, wrong, said):
    (tmp_path / "smoke").symlink_to(small / "smoke")
    assert train(tmp_path, wrong) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "cache" / "libraries").exists()
