"""Every option of every command, set to values of every kind: taken, or refused in one line that names it in full."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_origin

import pytest

from nas.__main__ import COMMANDS
from nas.commands import plain
from nas.config import TYPES, ConfigError, build, conf_dir, construct, find_type, said_of
from nas.failures import compose_config
from nas.option_kinds import Arguments, CallableType, kinds_of
from nas.options import _BASE, OPTIONS, check_options
from search_spaces.choices import BLOCK_DIMENSIONS, MODEL_DIMENSIONS
from search_spaces.shapes import ModelShape
from search_spaces.space import SearchSpace
from tests.models import tiny_bert

WRONG: tuple[Any, ...] = ("abc", ["abc"], {"abc": 1}, None, True, -3, 0, 2.5, [], "", [["abc"]], float("nan"))
GIVEN = ["model.path=m", "task.data.path=x"]


@cache
def composed(command: str) -> Mapping[str, Any]:
    given = ["models=[m,n]", "task.data.path=x"] if command == "compare" else GIVEN
    return plain(compose_config(command, given if "task" in OPTIONS[command] else []))


def paths(node: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))


def changed(config: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(dict(config))
    node = found
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return found


# Every block once, in the command that has most of them first.
BLOCKS = {
    (block, str(kind)): (command, block)
    for command in sorted(OPTIONS, key=lambda name: -len(OPTIONS[name]), reverse=True)
    for block, kind in {**_BASE, **OPTIONS[command]}.items()
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_what_a_command_composes_is_what_it_takes(command):
    check_options(command, composed(command))
    assert set(composed(command)) == {*_BASE, *OPTIONS[command]}


@pytest.mark.parametrize(("command", "block"), BLOCKS.values(), ids=lambda name: name)
def test_a_wrong_value_is_refused_by_the_options_full_name(command, block):
    config = composed(command)
    for path in paths({block: config[block]}):
        name = ".".join(path)
        refused = 0
        for value in WRONG:
            try:
                check_options(command, changed(config, path, value))
            except ValueError as error:
                text = said_of(error)
                assert name in text, value
                assert "\n" not in text
                assert "Error" not in text
                refused += 1
        # What may be anything is known only where the teacher is.
        assert refused or name.startswith("space.choices.")


@pytest.mark.parametrize("dimension", [*BLOCK_DIMENSIONS, *MODEL_DIMENSIONS])
def test_wrong_choices_are_refused_by_their_full_name(dimension):
    shape, space = ModelShape.from_model(tiny_bert()), composed("search")["space"]
    for value in WRONG:
        options = changed(space, ("choices", dimension), value)
        said = ""
        try:
            construct(SearchSpace.from_choices, {"shape": shape, **options}, "space")
        except ConfigError as error:
            said = str(error)
        assert not said or f"`space.choices.{dimension}`" in said


@pytest.mark.parametrize(
    ("command", "name", "value", "said"),
    [
        ("search", "evaluation.robustness.strengths", 0.1, "must be a list of numbers, but got 0.1; write [0.1]."),
        ("search", "evaluation.robustness.strengths", [0.1, "a"], "strengths[1]` must be a number, but got 'a'."),
        ("search", "evaluation.fairness.min_samples", "abc", "must be a whole number, but got 'abc'."),
        ("search", "evaluation.fairness.terms", ["a"], "must be a mapping of names to lists of texts or texts or null"),
        ("search", "evaluation.robustness", None, "must be a mapping such as {name: Robustness}, but got null."),
        ("search", "evaluation.robustness.name", "Fairness", "must be Robustness, but got 'Fairness'."),
        ("search", "evaluation", None, "must be a mapping such as {name: Aspects}, but got null."),
        ("search", "sampler.name", "TextData", "must be one of GuidedSampler, any class of optuna.samplers, but"),
        ("search", "model.path", ["a"], "must be a text of at least one letter, but got ['a']; write a."),
        ("search", "task.data.path", {"train": 1}, "`task.data.path.train` must be a text, but got 1; write"),
        ("search", "task.data.calibration", 2.5, "must be a number of samples, 1 or more, or a share"),
        ("search", "space.per_block", [["heads"]], "per_block[0]` must be a text, but got ['heads']; write heads."),
        ("search", "space.overrides", {"a": {}}, "`space.overrides.a` must be named by a whole number, but is by 'a'."),
        ("search", "calibrate.batch_size", 0, "must be a whole number >= 1, but got 0."),
        ("search", "search.num_trials", 1.5, "must be a whole number >= 1, but got 1.5."),
        ("search", "search.workers", True, "must be a whole number >= 1, but got true."),
        ("search", "search.rungs", [40, 0], "that rises, such as [0, 40, 160], but got [40, 0]."),
        ("search", "finalists.steps", -1, "must be a whole number >= 0 or null, but got -1."),
        ("search", "profile.meters", ["joy"], "`profile.meters[0]` must be one of peak_memory_mb, energy_mj, but got"),
        ("search", "profile.protocol.burst", 0, "must be a whole number >= 1, but got 0."),
        ("search", "training.warmup", 1.0, "must be in [0, 1), but got 1.0."),
        ("search", "distiller.embedding", -1, "must be a number >= 0, but got -1."),
        ("search", "objectives.constraints.latency_ms", "fast", "must be a number such as 12, or text such as"),
        ("search", "objectives.goals.quality", "best", "must be minimize or maximize, but got 'best'."),
        ("search", "workload.phase", "dream", "must be one of encode, prefill, decode, but got 'dream'."),
        ("search", "device.options", {"a": []}, "must be a text or a number or true or false, but got []."),
        ("search", "seed", "x", "must be a whole number >= 0, but got 'x'."),
        ("search", "study", "", "must be a plain name without slashes"),
        ("search", "study", "a/../b", "must be a plain name without slashes"),
        ("evaluate", "task.max_length", "long", "must be a whole number, but got 'long'."),
        ("evaluate", "measure", "no", "must be true or false, but got 'no'."),
        ("report", "study", ["a", "a/b"], "must be a plain name without slashes"),
        ("dashboard", "dashboard.port", 70000, "must be in 0-65535, but got 70000."),
    ],
)  # fmt: skip
def test_what_is_said_names_the_rule_the_value_and_the_mend(command, name, value, said):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - what it says is looked at below
        check_options(command, changed(composed(command), tuple(name.split(".")), value))
    text = str(refused.value)
    assert f"`{name}" in text
    assert said in text


def test_whole_numbers_are_numbers_and_blocks_may_be_named_by_texts():
    for name, value in [("training.learning_rate", 1), ("space.overrides", {"2": {"heads": 1}}), ("study", 7)]:
        check_options("search", changed(composed("search"), tuple(name.split(".")), value))


def test_options_that_are_not_there_and_blocks_that_are_gone_are_told():
    config = composed("search")
    with pytest.raises(ConfigError, match=r"unknown option 'serach'\. Did you mean 'search'"):
        check_options("search", {**config, "serach": {}})
    with pytest.raises(ConfigError, match=r"no option 'training\.warmpu'.* Did you mean 'warmup'"):
        check_options("search", changed(config, ("training", "warmpu"), 1))
    with pytest.raises(ConfigError, match=r"unknown option 'search\.trials'; known are search\.num_trials"):
        check_options("search", changed(config, ("search", "trials"), 1))
    with pytest.raises(ConfigError, match=r"`workload` must be given: workload=NAME, where NAME is one of decode, "):
        check_options("search", {key: value for key, value in config.items() if key != "workload"})


@pytest.mark.parametrize("name", sorted(TYPES))
def test_the_kinds_of_what_yaml_may_name_are_known(name):
    constructor = find_type(name)
    kinds = kinds_of(constructor)
    assert set(kinds) == set(inspect.signature(constructor).parameters)
    assert not [key for key, kind in kinds.items() if kind is Any or get_origin(kind) is CallableType]


def test_every_block_without_a_name_is_one_constructors_arguments():
    kinds = [kind for options in OPTIONS.values() for kind in options.values() if isinstance(kind, Arguments)]
    assert kinds
    assert all(callable(kind.constructor) for kind in kinds)


def test_an_error_that_comes_later_names_the_option_of_the_block():
    data = build({"name": "TextData", "path": str(conf_dir() / "base.yaml")}, "task.data")
    with pytest.raises(ValueError, match="`path` must end in") as late:
        data.read()
    assert said_of(late.value).startswith("`task.data.path` must end in")
