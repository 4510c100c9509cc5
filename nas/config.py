"""From configuration to objects: the only place that does it.

A node with a ``name`` names a class of the allow-list below, and its other keys are the constructor's arguments: the
constructor is the schema. Nothing outside the list can be named, so that a stranger's YAML cannot run code.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, get_origin

from nas.option_kinds import Arguments, CallableType, Node, Rule, kinds_of, mismatch, shown

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


def find_type(name: str, of: Sequence[str] = ("*",)) -> Callable[..., Any]:
    """The class that YAML names.

    Args:
        name: Its name.
        of: What it may be: names of the allow-list, or patterns such as ``*Sampler``.

    Raises:
        ConfigError: The allow-list has no such name.
    """
    fits = any(fnmatchcase(str(name), pattern) for pattern in of)
    if fits and name in TYPES:
        return _member(TYPES[name], name)
    for module_name, suffix in OPEN_MODULES:
        allowed = fits and isinstance(name, str) and name.isidentifier() and name.endswith(suffix)
        if allowed and not name.startswith(("_", "Base")):
            found = getattr(importlib.import_module(module_name), name, None)
            if inspect.isclass(found):
                return _member(module_name, name)
    # Of a kind that the name gives away, only those of the kind are worth naming.
    kinds = [suffix for _, suffix in OPEN_MODULES if str(name).endswith(suffix)] or [""]
    known = [known for known in TYPES if known.endswith(kinds[0]) and any(fnmatchcase(known, x) for x in of)]
    open_ones = [(module, suffix) for module, suffix in OPEN_MODULES if any(fnmatchcase(f"Any{suffix}", x) for x in of)]
    known += [f"any class of {module}" for module, suffix in open_ones if suffix.endswith(kinds[0])]
    raise ConfigError(f"`name` must be one of {', '.join(known)}, but got {name!r}.{suggestion(name, known)}")


def _member(module_name: str, name: str) -> Callable[..., Any]:
    member: Callable[..., Any] = getattr(importlib.import_module(module_name), name)
    return member


# Class -> the block that it was last built from: what an error that comes later calls its options.
BUILT: dict[Any, str] = {}


def build(node: Mapping[str, Any], where: str = "", **injected: Any) -> Any:
    """Build the object that a node describes; nodes inside it are built first.

    Args:
        node: ``name`` and the constructor's arguments, as plain data.
        where: The node's full name in the configuration, for errors.
        injected: Arguments that the program gives, not the YAML; those that the constructor does not take are left out.

    Raises:
        ConfigError: The type is unknown, or an argument is, or one is of a wrong kind or out of range.
    """
    if text := node_mismatch(where, node, Node(given=tuple(injected))):
        raise ConfigError(text)
    cls = find_type(node["name"])
    arguments = {key: _built(value, _join(where, key)) for key, value in node.items() if key != "name"}
    taken = {key: value for key, value in injected.items() if key in inspect.signature(cls).parameters}
    return construct(cls, {**taken, **arguments}, where)


def construct(cls: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:
    """Call a constructor with a block's values.

    Args:
        cls: What is called.
        arguments: Of the configuration, and what the program gives.
        where: The block's full name, for errors.

    Raises:
        ConfigError: An argument is unknown or missing, or the constructor refuses one.
    """
    check_arguments(cls, arguments, where)
    BUILT[cls] = where
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(full_names(str(error), where, cls)) from error


def full_names(text: str, where: str, cls: Callable[..., Any], *, blame: bool = True) -> str:
    """An error of a constructor, with its arguments called as the block's options: `` `warmup` `` becomes ours.

    Args:
        text: What the constructor says.
        where: The block's full name.
        cls: The constructor.
        blame: Whether the block is named also where the text names none of its options.
    """
    parameters = inspect.signature(cls).parameters
    if not where or f"`{where}" in text:
        return text

    def named(found: re.Match[str]) -> str:
        # What goes on behind a text is another option: `model.path`.
        own = found[1] in parameters and not (found[2] and kinds_of(cls).get(found[1]) is str)
        return f"`{where}.{found[1]}{found[2]}`" if own else found[0]

    text = re.sub(r"`(\w+)((?:\.\w+)*)`", named, text)
    # What constructors call themselves says less than the block.
    text = re.sub(rf"^[\w ]+: (?=`{re.escape(where)}\.)", "", text)
    return f"`{where}`: {text.removeprefix(f'{where}: ')}" if blame and f"`{where}." not in text else text


def said_of(error: BaseException) -> str:
    """An error's text, with options called in full where a method of an object that was built from a block failed."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        cls = type(frame.f_locals.get("self"))
        if cls in BUILT and (text := full_names(str(error), BUILT[cls], cls, blame=False)) != str(error):
            return text
    return str(error)


def node_mismatch(name: str, value: Any, kind: Any) -> str | None:
    """What is wrong with a value of a kind that is a class, a `Node` or `Arguments`; None where nothing is."""
    if isinstance(kind, Arguments):
        return _in_arguments(name, value, kind.constructor, kind.given)
    if inspect.isclass(kind) and kind not in (object, Any):
        kind = Node((kind.__name__,), base=kind)
    if not isinstance(kind, Node) or (value is None and not kind.needed):
        return None
    if not isinstance(value, Mapping):
        named = value if isinstance(value, str) and value else next((x for x in kind.of if "*" not in x), "NAME")
        return f"{_quoted(name)} must be a mapping such as {{name: {named}}}, but got {shown(value)}."
    try:
        cls = _class_of(name, value, kind)
    except ConfigError as error:
        return str(error)
    return _in_arguments(name, {key: item for key, item in value.items() if key != "name"}, cls, kind.given)


def _class_of(where: str, node: Mapping[str, Any], kind: Node) -> Callable[..., Any]:
    own = _join(where, "name")
    if "name" not in node:
        found = ", ".join(map(str, node)) or "nothing"
        raise ConfigError(f"{_quoted(where)} must give the `{own}` of its class, but has {found}.")
    if not isinstance(node["name"], str):
        raise ConfigError(f"`{own}` must be the name of a class, but got {shown(node['name'])}.")
    try:
        cls = find_type(node["name"], kind.of if kind.base is object else ("*",))
    except ConfigError as error:
        raise ConfigError(str(error).replace("`name`", f"`{own}`", 1)) from None
    if inspect.isclass(cls) and not issubclass(cls, kind.base):
        raise ConfigError(f"`{own}` must be {kind.of[0]}, but got {shown(node['name'])}.")
    return cls


def _in_arguments(name: str, value: Any, constructor: Callable[..., Any], given: tuple[str, ...]) -> str | None:
    kinds = kinds_of(constructor)
    if not isinstance(value, Mapping):
        options = [key for key, kind in kinds.items() if key not in given and get_origin(kind) is not CallableType]
        return f"`{name}` must be a mapping with {', '.join(options)}, but got {shown(value)}."
    try:
        check_arguments(constructor, {**dict.fromkeys(given), **value}, name, ignored=given)
    except ConfigError as error:
        return str(error)
    if kinds.get("seed") is int:
        kinds = {**kinds, "seed": Annotated[int, Rule(">= 0", lambda seed: seed >= 0)]}  # As NumPy wants them.
    found = (mismatch(_join(name, key), value[key], kind, node_mismatch) for key, kind in kinds.items() if key in value)
    return next((text for text in found if text), None)


def check_arguments(
    cls: Callable[..., Any], arguments: Mapping[str, Any], where: str = "", *, ignored: Iterable[str] = ()
) -> None:
    """Check that a constructor takes these arguments.

    Args:
        cls: The constructor.
        arguments: Name -> value.
        where: The full name of the block that they are from.
        ignored: Names that need not be its own.

    Raises:
        ConfigError: It does not, or one is missing.
    """
    signature, name = inspect.signature(cls), getattr(cls, "__name__", str(cls))
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    for key in arguments:
        if key not in signature.parameters and key not in ignored and inspect.Parameter.VAR_KEYWORD not in kinds:
            options = ", ".join(signature.parameters)
            hint = suggestion(key, signature.parameters)
            raise ConfigError(f"{name} has no option {_join(where, str(key))!r}; it has {options}.{hint}")
    for key, parameter in signature.parameters.items():
        optional = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if parameter.default is inspect.Parameter.empty and not optional and key not in arguments:
            raise ConfigError(f"{name} needs the option {_join(where, key)!r}.")


def suggestion(name: Any, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` where a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _built(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        if "name" in value:
            return build(value, where)
        return {key: _built(item, _join(where, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_built(item, f"{where}[{place}]") for place, item in enumerate(value)]
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _quoted(name: str) -> str:
    return f"`{name}`" if name else "a node"
