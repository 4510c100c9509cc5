"""The options of every command: which there are, and of which kind; checked as a whole before any work is done.

Blocks whose values are a constructor's arguments name it, and its annotations are their kinds; the others have theirs
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from nas.config import ConfigError, build, construct, node_mismatch, suggestion
from nas.option_kinds import Arguments, Node, Rule, mismatch
from nas.overrides import known_files
from nas.progress import Mode
from nas.studies import plain_name

if TYPE_CHECKING:
    from omegaconf import DictConfig


def rising(steps: Sequence[int]) -> bool:
    """Whether these numbers rise, and there are any."""
    return bool(steps) and all(a < b for a, b in pairwise(steps))


Text = Annotated[str, Rule("of at least one letter", bool)]
Count = Annotated[int, Rule(">= 1", lambda value: value >= 1)]
Whole = Annotated[int, Rule(">= 0", lambda value: value >= 0)]
Positive = Annotated[float, Rule("> 0", lambda value: value > 0)]
NotNegative = Annotated[float, Rule(">= 0", lambda value: value >= 0)]
Share = Annotated[float, Rule("from 0 to 1", lambda value: 0 <= value <= 1)]
Names = str | Sequence[str]
Study = str | int | float
Kinds = Mapping[str, Any]

_PROTOCOL = Arguments("latency_models.profiler:Profiler")
_BASE: Kinds = {
    "root": Text,
    "study": Study,
    "seed": Whole,
    "progress": Mode,
    "torch_threads": Count | None,
    "torch_device": Text,
}
_STORAGE: Kinds = {"storage": Node(("*Storage",))}
_TASKS = ("SentenceEmbedding", "TextClassification", "TokenClassification", "ImageClassification", "CausalLM")
_TEACHER: Kinds = {"model": {"path": Text}, "task": Node(_TASKS, given=("model", "cache_dir"))}
_CALIBRATE: Kinds = {
    **_TEACHER,
    "space": Arguments("search_spaces.space:SearchSpace.from_choices", given=("shape",), alone=False),
    "calibrate": {
        "importance": Literal["magnitude", "activation", "activation_weight", "fisher", "obs"],
        "batch_size": Count,
        "max_gb": Positive,
        "use_trained": bool,
    },
}
_TARGET: Kinds = {
    "device": Arguments("latency_models.device:Device"),
    "workload": Arguments("search_spaces.cost:Workload"),
}
_DISTIL: Kinds = {"distiller": Node(("Distiller",)), "training": Node(("TrainSettings",))}
_PROFILE: Kinds = {
    **_CALIBRATE,
    **_TARGET,
    "predictor": {"name": Literal["auto", "additive", "lookup"]},
    "objectives": Node(("Objectives",)),
    "profile": {
        "num_subnets": Count,
        "held_out": Whole,
        "active": Arguments(
            "latency_models.active:ActiveProfiling", given=("space", "workload", "make", "exclude", "seed")
        ),
        "transfer": bool,
        "meters": Sequence[Literal["peak_memory_mb", "energy_mj"]],
        "budget_minutes": Positive | None,
        "protocol": _PROTOCOL,
        "import": str | None,
        "partial": bool,
    },
}
_SEARCH: Kinds = {
    "num_trials": Count,
    "sensitivity_evaluations": Whole,
    "uniform_starts": Whole,
    "allocated_starts": Whole,
    "max_failure_share": Share,
    "on_change": Literal["refuse", "new"],
    "judge_in": Literal["device", "fp32"],
    "rungs": Annotated[Sequence[Whole], Rule("that rises, such as [0, 40, 160]", rising)],
    "reduction_factor": Annotated[int, Rule(">= 2", lambda value: value >= 2)],
    "pruner": Node(("*Pruner",), needed=False),
    "workers": Count,
    "only": bool,
    "max_retries": Whole,
    "trial_timeout_s": Positive | None,
    "trackers": Sequence[str],
}
_FINALISTS: Kinds = {
    "count": Count,
    "recalibrate": bool,
    "distil": Whole,
    "steps": Whole | None,
    "minutes": NotNegative | None,
    "stages": Literal[1, 2],
    "cards": bool,
    "protocol": _PROTOCOL,
}
_JUDGING: Kinds = {
    **_TEACHER,
    **_TARGET,
    "evaluation": Node(("Aspects",)),
    "split": Literal["train", "calibration", "validation", "test"],
    "measure": bool,
    "memory": bool,
    "show": Literal["table", "markdown", "json"],
    "output": str | None,
    "protocol": _PROTOCOL,
}
_MEASURE: Kinds = {
    "enabled": bool,
    "batches": Sequence[Count],
    "calibration_samples": Count,
    "protocol": _PROTOCOL,
}
_PICK: Kinds = {"pick": str | int, "under": Mapping[str, float]}

# Command -> its options beside those that all share.
OPTIONS: Mapping[str, Kinds] = {
    "devices": {"check_seconds": NotNegative},
    "doctor": {**_STORAGE, "check_seconds": NotNegative},
    "calibrate": _CALIBRATE,
    "train": {
        **_CALIBRATE,
        **_DISTIL,
        "train": Arguments("nas.distillation.supernet_settings:SupernetSettings"),
    },
    "profile": _PROFILE,
    "bundle": {**_PROFILE, "directory": str | None},
    "search": {
        **_PROFILE,
        **_DISTIL,
        **_STORAGE,
        "sampler": Node(("*Sampler",)),
        "search": _SEARCH,
        "finalists": _FINALISTS,
        "evaluation": Node(("Aspects",)),
    },
    "pareto": {**_STORAGE, **_PICK, "pick": str | int | None, "count": Count},
    "export": {
        **_PICK,
        "format": Names,
        "precision": Names,
        "distil": bool,
        "temperature": bool,
        "directory": str | None,
        "measure": _MEASURE,
    },
    "evaluate": {**_JUDGING, "candidate": str | None},
    "compare": {**_JUDGING, "models": Sequence[Text]},
    "report": {
        **_STORAGE,
        "study": Study | Annotated[Sequence[Study], Rule("with one of them at least", bool)],
        "directory": str | None,
    },
    "dashboard": {**_STORAGE, "dashboard": Arguments("nas.dashboard.serve:ServeSettings")},
}


def check_options(command: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration of which an option is unknown, of a wrong kind or out of range.

    What has to be known of the model, the data or this machine is checked where these are.

    Args:
        command: Whose.
        config: Resolved, as plain data.

    Raises:
        ConfigError: The message names the option in full.
    """
    kinds = {**_BASE, **OPTIONS[command]}
    if unknown := [key for key in config if key not in kinds]:
        hint = suggestion(unknown[0], kinds)
        raise ConfigError(f"unknown option {unknown[0]!r}.{hint}  `nas {command} --help` lists all options.")
    if missing := [key for key in kinds if key not in config]:
        files = known_files(missing[0])
        known = f": {missing[0]}=NAME, where NAME is one of {', '.join(files)}" if files else ""
        raise ConfigError(f"`{missing[0]}` must be given{known}.")
    if text := mismatch("", dict(config), kinds, node_mismatch):
        raise ConfigError(text)
    for study in config["study"] if isinstance(config["study"], list) else [config["study"]]:
        plain_name(study)
    _try(config, kinds, "")


def check_models(config: DictConfig) -> None:
    """Check that `models` is a list, before anything is read out of it.

    Raises:
        ConfigError: It is none, or empty.
    """
    from omegaconf import ListConfig, OmegaConf

    if OmegaConf.is_missing(config, "models"):
        return  # Told like every other option that must be given.
    models = config["models"]
    if not isinstance(models, ListConfig) or not models:
        raise ConfigError(
            f"`models` must list folders or .onnx files, such as models=[TEACHER,OTHER], but got {models}."
        )


def _try(values: Mapping[str, Any], kinds: Kinds, where: str) -> None:
    """Build once what is cheap to build: constructors know best which values are in range."""
    for key, kind in kinds.items():
        name, value = f"{where}{key}", values[key]
        if isinstance(kind, Mapping):
            _try(value, kind, f"{name}.")
        elif isinstance(kind, Node) and value is not None:
            build(value, name, **dict.fromkeys(kind.given, ""))
        elif isinstance(kind, Arguments) and kind.alone:
            construct(kind.constructor, {**dict.fromkeys(kind.given), **value}, name)
