"""Every YAML file fits what it configures, and nothing that is not on the allow-list can be named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from latency_models.device import Device
from latency_models.predictors import PREDICTORS
from latency_models.profiler import Profiler
from nas.__main__ import COMMANDS, _flags_first, run
from nas.config import ConfigError, build, check_arguments, conf_dir, find_type
from search_spaces.choices import BLOCK_DIMENSIONS, MODEL_DIMENSIONS
from search_spaces.cost import Workload
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny_bert

GROUPS = {path.name for path in conf_dir().iterdir() if path.is_dir()}
NAMED = [
    p
    for g in ("task", "distiller", "training", "sampler", "storage", "objectives")
    for p in conf_dir().glob(f"{g}/*.yaml")
]
GIVEN = {"model": {"path": "m"}, "root": "runs", "seed": 0}


def load(path: Path) -> dict:
    node = OmegaConf.merge(OmegaConf.create(GIVEN), {"node": OmegaConf.load(path)})
    data = OmegaConf.to_container(node, resolve=True)
    assert isinstance(data, dict)
    return data["node"]


def check(node: dict) -> None:
    arguments = {key: value for key, value in node.items() if key != "name"}
    check_arguments(find_type(node["name"]), arguments)
    for value in arguments.values():
        if isinstance(value, dict) and "name" in value:
            check(value)


@pytest.mark.parametrize("path", NAMED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_nodes_are_what_their_constructors_take(path):
    check(load(path))


@pytest.mark.parametrize("path", sorted(conf_dir().glob("device/*.yaml")), ids=lambda p: p.stem)
def test_devices_are_named_as_their_files(path):
    assert Device(**load(path)).name == path.stem


@pytest.mark.parametrize("path", sorted(conf_dir().glob("workload/*.yaml")), ids=lambda p: p.stem)
def test_workloads(path):
    Workload(**load(path))


@pytest.mark.parametrize("path", sorted(conf_dir().glob("space/*.yaml")), ids=lambda p: p.stem)
def test_spaces_fit_a_model_and_contain_it(path):
    space = SearchSpace.from_choices(ModelShape.from_model(tiny_bert()), **load(path))
    assert space.largest == space.teacher


def test_every_dimension_is_an_option_and_is_not_searched_unless_it_is_given():
    known = [*BLOCK_DIMENSIONS, *MODEL_DIMENSIONS]
    assert list(load(conf_dir() / "space_defaults.yaml")["choices"]) == known
    shape = ModelShape.from_model(tiny_bert())
    for path in conf_dir().glob("space/*.yaml"):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = OmegaConf.to_container(compose("search", overrides=[f"space={path.stem}"]).space)
        assert SearchSpace.from_choices(shape, **composed) == SearchSpace.from_choices(shape, **load(path))


@pytest.mark.parametrize("space", sorted(path.stem for path in conf_dir().glob("space/*.yaml")))
def test_dimensions_need_no_plus_sign(space):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for plus in ("", "+", "++"):
            choices = [f"{plus}space.choices.{name}=[1]" for name in (*BLOCK_DIMENSIONS, *MODEL_DIMENSIONS)]
            composed = compose("search", overrides=[f"space={space}", *choices])
            assert set(map(tuple, composed.space.choices.values())) == {(1,)}


def test_unknown_dimensions_get_the_right_name(capsys):
    assert run(["search", "model.path=DIR", "task.data.path=FILE", "space.choices.precison=int8"]) == 2
    assert "Did you mean 'space.choices.precision'?" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(conf_dir().glob("predictor/*.yaml")), ids=lambda p: p.stem)
def test_predictors(path):
    assert load(path)["name"] in PREDICTORS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_composes(command):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(command)
    assert config["root"] == "runs"
    for protocol in (config[name]["protocol"] for name in ("profile", "finalists") if name in config):
        check_arguments(Profiler, dict(protocol))


@pytest.mark.parametrize("path", sorted(conf_dir().glob("experiment/*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes(path):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert compose("search", overrides=[f"experiment={path.stem}"])["study"] == path.stem


def test_samplers_of_optuna_are_built_by_name():
    assert type(build({"name": "RandomSampler", "seed": 1})).__name__ == "RandomSampler"


@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.Popen", "BaseSampler", "_Sampler", "eval", "", "NoSuchSampler"]
)
def test_nothing_else_can_be_named(name):
    with pytest.raises(ConfigError, match="`name` must be one of"):
        build({"name": name})


def test_wrong_options_name_the_right_ones():
    with pytest.raises(ConfigError, match="Did you mean 'seed'"):
        build({"name": "RandomSampler", "sede": 1})
    with pytest.raises(ConfigError, match="needs the option 'goals'"):
        build({"name": "Objectives"})
    with pytest.raises(ConfigError, match="`name` of its class"):
        build({"goals": {}})


def test_groups_have_files():
    assert all(any((conf_dir() / group).glob("*.yaml")) for group in GROUPS)


def test_flags_may_stand_anywhere():
    flags, overrides = _flags_first(["experiment=mine", "-m", "--config-dir", "own", "seed=0,1", "--info", "study=x"])
    assert flags == ["-m", "--config-dir", "own", "--info"]
    assert overrides == ["experiment=mine", "seed=0,1", "study=x"]
