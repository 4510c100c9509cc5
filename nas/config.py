"""From configuration to objects: the only place that does it.

A node with a ``name`` names a class of the allow-list below, and its other keys are the constructor's arguments: the
constructor is the schema. Nothing outside the list can be named, so that a stranger's YAML cannot run code.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# What YAML may name -> where it lives. Modules are imported when a class is built: `--help` must not import torch.
TYPES: dict[str, str] = {
    "SentenceEmbedding": "nas.tasks.text",
    "TextClassification": "nas.tasks.text",
    "TokenClassification": "nas.tasks.token",
    "ImageClassification": "nas.tasks.image",
    "CausalLM": "nas.tasks.language",
    "TextData": "nas.tasks.data",
    "ImageData": "nas.tasks.images",
    "Aspects": "nas.evaluation.aspects",
    "Fairness": "nas.evaluation.fairness",
    "Resampling": "nas.evaluation.intervals",
    "Robustness": "nas.evaluation.robustness",
    "Distiller": "nas.distillation.losses",
    "TrainSettings": "nas.distillation.train",
    "Objectives": "nas.engine.limits",
    "GuidedSampler": "nas.engine.guided_sampler",
    "JournalStorage": "nas.engine.storage",
    "DatabaseStorage": "nas.engine.storage",
    "ProxyStorage": "nas.engine.storage",
}
# Whole modules of which every class with this suffix may be named.
OPEN_MODULES: tuple[tuple[str, str], ...] = (("optuna.samplers", "Sampler"), ("optuna.pruners", "Pruner"))


class ConfigError(ValueError):
    """The configuration asks for something that does not exist; the message says what does."""


def conf_dir() -> Path:
    """The folder with the YAML files: inside the wheel, or at the top of the repository."""
    inside = Path(__file__).with_name("conf")
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def find_type(name: str) -> Callable[..., Any]:
    """The class that YAML names.

    Raises:
        ConfigError: The allow-list has no such name.
    """
    if name in TYPES:
        return _member(TYPES[name], name)
    for module_name, suffix in OPEN_MODULES:
        allowed = isinstance(name, str) and name.isidentifier() and name.endswith(suffix)
        if allowed and not name.startswith(("_", "Base")):
            found = getattr(importlib.import_module(module_name), name, None)
            if inspect.isclass(found):
                return _member(module_name, name)
    # Of a kind that the name gives away, only those of the kind are worth naming.
    kinds = [suffix for _, suffix in OPEN_MODULES if str(name).endswith(suffix)] or [""]
    known = [known for known in TYPES if known.endswith(kinds[0])]
    known += [f"any class of {module}" for module, suffix in OPEN_MODULES if suffix.endswith(kinds[0])]
    raise ConfigError(f"`name` must be one of {', '.join(known)}, but got {name!r}.{suggestion(name, TYPES)}")


def _member(module_name: str, name: str) -> Callable[..., Any]:
    member: Callable[..., Any] = getattr(importlib.import_module(module_name), name)
    return member


def build(node: Mapping[str, Any], **injected: Any) -> Any:
    """Build the object that a node describes; nodes inside it are built first.

    Args:
        node: ``name`` and the constructor's arguments, as plain data.
        injected: Arguments that the program gives, not the YAML; those that the constructor does not take are left out.

    Raises:
        ConfigError: The type is unknown, or an argument is.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"a node must be a mapping such as {{name: {node}}}, but got {node!r}.")
    if "name" not in node:
        raise ConfigError(
            f"a node must give the `name` of its class, but has only {', '.join(map(str, node)) or 'nothing'}."
        )
    cls = find_type(node["name"])
    arguments = {key: _built(value) for key, value in node.items() if key != "name"}
    parameters = inspect.signature(cls).parameters
    taken = {key: value for key, value in injected.items() if key in parameters}
    check_arguments(cls, {**arguments, **taken})
    return cls(**{**taken, **arguments})


def check_arguments(cls: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check that a constructor takes these arguments.

    Raises:
        ConfigError: It does not, or one is missing.
    """
    signature, name = inspect.signature(cls), getattr(cls, "__name__", str(cls))
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for key in arguments:
        if key not in signature.parameters and not open_ended:
            options = ", ".join(signature.parameters)
            hint = suggestion(key, signature.parameters)
            raise ConfigError(f"{name} has no option {key!r}; it has {options}.{hint}")
    for key, parameter in signature.parameters.items():
        if (
            parameter.default is inspect.Parameter.empty
            and parameter.kind
            in (
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                inspect.Parameter.KEYWORD_ONLY,
            )
            and key not in arguments
        ):
            raise ConfigError(f"{name} needs the option {key!r}.")


def whole_number(name: str, value: Any, least: int) -> int:
    """The same number, once it is known to be one.

    Args:
        name: The option's, for the error.
        value: What YAML or the command line gives.
        least: The smallest that is allowed.

    Raises:
        ConfigError: It is no whole number, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"`{name}` must be a whole number >= {least}, but got {value!r}.")
    return value


def suggestion(name: Any, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` where a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "name" in value else {key: _built(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_built(item) for item in value]
    return value
