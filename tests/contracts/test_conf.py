"""Every YAML file composes, and every node of it fits the constructor that it is for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from latency_models.backends.base import BACKENDS
from latency_models.device import Device
from latency_models.predictors import PREDICTORS
from latency_models.profiler import Profiler
from nas.__main__ import COMMANDS
from nas.config import build, check_arguments, conf_dir, find_type
from search_spaces.cost import Workload
from search_spaces.families import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny_bert

CONF = conf_dir()
GROUPS = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in CONF.iterdir() if path.is_dir()}
# Groups whose nodes name a class of the allow-list.
CLASSES = ("task", "distiller", "training", "objectives", "storage", "sampler")


def composed(command: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3", job_name=command):
        config = compose(command, overrides=list(overrides))
    for parent in ("model", "task.data"):
        node = OmegaConf.select(config, parent)
        if node is not None and OmegaConf.is_missing(node, "path"):
            node.path = "given"  # Only a user knows it.
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return plain


def options(*groups: str) -> list[tuple[str, str]]:
    return [(group, name) for group in groups for name in GROUPS[group]]


def named_nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        if "name" in node:
            yield node
        for value in node.values():
            yield from named_nodes(value)


def check_classes(node: Any) -> None:
    nodes = list(named_nodes(node))
    assert nodes
    for found in nodes:
        check_arguments(find_type(found["name"]), {key: value for key, value in found.items() if key != "name"})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_primary_file_that_composes(command: str) -> None:
    config = composed(command)
    assert {"root", "study", "seed", "progress"} <= set(config)
    for key in set(CLASSES) & set(config):
        check_classes(config[key])
    for key in ("profile", "finalists"):
        if key in config:
            check_arguments(Profiler, config[key]["protocol"])


def test_every_file_is_reached() -> None:
    primaries = {path.stem for path in CONF.glob("*.yaml")} - {"base"}
    assert {name for name in primaries if not name.endswith("_defaults")} == set(COMMANDS)
    used = set(composed("search"))
    assert set(GROUPS) - {"experiment"} <= used


@pytest.mark.parametrize(("group", "name"), options(*CLASSES))
def test_every_node_that_names_a_class_fits_its_constructor(group: str, name: str) -> None:
    check_classes(composed("search", f"{group}={name}")[group])


@pytest.mark.parametrize(("group", "name"), options("distiller", "training", "objectives"))
def test_every_setting_can_be_built(group: str, name: str) -> None:
    assert build(composed("search", f"{group}={name}")[group]) is not None


@pytest.mark.parametrize(("group", "name"), options("device"))
def test_every_device_is_a_device_of_a_known_backend(group: str, name: str) -> None:
    device = Device(**composed("search", f"{group}={name}")[group])
    assert device.backend in BACKENDS
    assert device.name == name


@pytest.mark.parametrize(("group", "name"), options("workload"))
def test_every_workload_is_one(group: str, name: str) -> None:
    assert Workload(**composed("search", f"{group}={name}")[group])


@pytest.mark.parametrize(("group", "name"), options("predictor"))
def test_every_predictor_is_known(group: str, name: str) -> None:
    assert composed("search", f"{group}={name}")[group]["name"] in PREDICTORS


@pytest.mark.parametrize(("group", "name"), options("space"))
def test_every_space_resolves_against_a_teacher(group: str, name: str) -> None:
    node = composed("search", f"{group}={name}")[group]
    node["round_to"] = {key: min(value, 8) for key, value in node["round_to"].items()}  # The teacher is tiny.
    space = SearchSpace.from_choices(ModelShape.from_model(tiny_bert()), **node)
    assert space.largest != space.smallest


@pytest.mark.parametrize("name", GROUPS["experiment"])
def test_every_experiment_composes_into_a_search(name: str) -> None:
    config = composed("search", f"experiment={name}")
    assert config["study"] == name
    for key in CLASSES:
        check_classes(config[key])
    for key in ("profile", "finalists"):
        check_arguments(Profiler, config[key]["protocol"])
    assert set(config) == set(composed("search"))  # An experiment sets options; it has none of its own.


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_says_what_it_is_for_or_is_plain(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if line != line.rstrip() or "\t" in line]
    assert len(text.splitlines()) <= 60
