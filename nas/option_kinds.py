"""Whether a value as it stands in YAML is of the kind that an annotation asks for, and what is wrong with it."""

from __future__ import annotations

import importlib
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

# Kind -> what one value of it is called, and several are.
_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
    type(None): ("null", "null"),
}
_SHOWN = 80
# What a function's annotation is one of.
CallableType: Any = Callable


@dataclass(frozen=True)
class Rule:
    """What an ``Annotated`` kind's values must keep to beside being of the kind.

    Args:
        words: How it goes on after the kind: ``>= 1``.
        holds: Whether a value keeps to it.
    """

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Node:
    """The kind of a node: ``name`` and the arguments of a class of the allow-list.

    Args:
        of: Names of the classes that it may be, or patterns of such names.
        base: A class that it must be below.
        given: Arguments that the program gives where the node does not.
        needed: Whether null will not do.
    """

    of: tuple[str, ...] = ("*",)
    base: Any = object
    given: tuple[str, ...] = ()
    needed: bool = True


@dataclass(frozen=True)
class Arguments:
    """The kind of a block that has the arguments of one constructor, and no name.

    Args:
        of: ``module:name`` or ``module:Class.method``, imported when a value is looked at.
        given: Arguments that the program gives.
        alone: Whether it can be called with None for these, to see whether the others are in range.
    """

    of: str
    given: tuple[str, ...] = ()
    alone: bool = True

    @property
    def constructor(self) -> Callable[..., Any]:
        """What takes them."""
        module, _, name = self.of.partition(":")
        found: Callable[..., Any] = attrgetter(name)(importlib.import_module(module))
        return found


# Says what is wrong with an option (full name, value) of a kind that is none of Python's own; None where nothing is.
Nested = Callable[[str, Any, Any], str | None]


def mismatch(name: str, value: Any, kind: Any, nested: Nested) -> str | None:
    """What is wrong with an option's value, in a sentence with its full name; None where nothing is.

    Args:
        name: The option's full name.
        value: Plain data, as YAML gives it.
        kind: An annotation: of numbers, texts, lists, mappings, literals, unions of them, or of a class; with rules in
            ``Annotated``. A dictionary is a block with these options and no others. What cannot be told of plain data
            (``Any``, functions) takes everything.
        nested: Looks into values of other kinds, such as classes.
    """
    found: str | None
    if isinstance(kind, Mapping):
        found = _in_block(name, value, kind, nested)
    elif (origin := get_origin(kind)) is Annotated:
        found = _with_rules(name, value, kind, nested)
    elif origin in (Union, types.UnionType):
        found = _in_union(name, value, kind, nested)
    elif origin is Literal:
        known = any(type(value) is type(choice) and value == choice for choice in get_args(kind))
        found = None if known else _refusal(name, value, kind)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        found = _in_mapping(name, value, kind, nested)
    elif isinstance(origin, type) and issubclass(origin, Sequence | frozenset):
        found = _in_list(name, value, kind, nested)
    elif kind in _WORDS:
        found = None if _is(value, kind) else _refusal(name, value, kind)
    else:
        found = nested(name, value, kind)
    return found


@cache
def kinds_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Parameter -> its annotation, resolved; ``Any`` where a name in it is not known outside of type checking."""
    found: dict[str, Any] = {}
    own = function.__init__ if inspect.isclass(function) else function
    names = getattr(inspect.unwrap(own), "__globals__", {})
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.annotation is inspect.Parameter.empty or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        holder = types.SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            found |= get_type_hints(holder, globalns=names, include_extras=True)
        except NameError:
            found[name] = Any
    return found


def shown(value: Any) -> str:
    """A value as people write it on the command line, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(f'{key}: {shown(item)}' for key, item in value.items())}}}"
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def words(kind: Any, *, several: bool = False) -> str:
    """What values of a kind are called."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        rules = " and ".join(rule.words for rule in inner[1:] if isinstance(rule, Rule))
        return f"{words(inner[0], several=several)} {rules}".strip()
    if origin in (Union, types.UnionType):
        # Whole numbers are numbers.
        parts = [part for part in inner if part is not int or float not in inner]
        return " or ".join(dict.fromkeys(words(part, several=several) for part in parts))
    if origin is Literal:
        return f"{'names' if several else 'one'} of {', '.join(map(str, inner))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{'mappings' if several else 'a mapping'} of names to {words(inner[1], several=True)}"
    if isinstance(origin, type) and issubclass(origin, Sequence | frozenset):
        return f"{'lists' if several else 'a list'} of {words(inner[0], several=True)}"
    one, many = _WORDS.get(kind, ("a mapping", "mappings") if isinstance(kind, Mapping) else ("values", "values"))
    return many if several else one


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str if kind is Path else kind)


def _refusal(name: str, value: Any, kind: Any) -> str:
    return f"`{name}` must be {words(kind)}, but got {shown(value)}{_mend(value, kind)}."


def _mend(value: Any, kind: Any) -> str:
    """What to write instead, where that can be known."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for part in parts:
        origin, inner = get_origin(part), get_args(part)
        if isinstance(origin, type) and issubclass(origin, Sequence) and not isinstance(value, list | Mapping | None):
            if mismatch("", value, inner[0], lambda *_: "") is None:
                return f"; write [{value}]"
        elif part is str and isinstance(value, int | float):
            return f"; write \"'{shown(value)}'\""
        elif isinstance(value, list) and len(value) == 1 and mismatch("", value[0], part, lambda *_: "") is None:
            return f"; write {value[0]}"
    return ""


def _in_block(name: str, value: Any, kinds: Mapping[str, Any], nested: Nested) -> str | None:
    if not isinstance(value, Mapping):
        return f"`{name}` must be a mapping with {', '.join(kinds)}, but got {shown(value)}."
    before = f"{name}." if name else ""
    if unknown := [key for key in value if key not in kinds]:
        return f"unknown option '{before}{unknown[0]}'; known are {', '.join(before + key for key in kinds)}."
    if missing := [key for key in kinds if key not in value]:
        return f"`{before}{missing[0]}` must be given, but is not there."
    found = (mismatch(f"{before}{key}", value[key], kind, nested) for key, kind in kinds.items())
    return next((text for text in found if text), None)


def _with_rules(name: str, value: Any, kind: Any, nested: Nested) -> str | None:
    plain, *rules = get_args(kind)
    text = mismatch(name, value, plain, nested)
    if text is None and all(rule.holds(value) for rule in rules if isinstance(rule, Rule)):
        return None
    inside = text is not None and not text.startswith(f"`{name}` ")
    return text if inside else _refusal(name, value, kind)


def _in_list(name: str, value: Any, kind: Any, nested: Nested) -> str | None:
    if not isinstance(value, list | tuple):
        return _refusal(name, value, kind)
    (of_items, *_) = get_args(kind)
    found = (mismatch(f"{name}[{place}]", item, of_items, nested) for place, item in enumerate(value))
    return next((text for text in found if text), None)


def _in_union(name: str, value: Any, kind: Any, nested: Nested) -> str | None:
    found = [mismatch(name, value, part, nested) for part in get_args(kind)]
    if None in found:
        return None
    # Of a kind that fits on the outside, what is wrong inside tells more.
    inside = [text for text in found if text and not text.startswith(f"`{name}` ")]
    return inside[0] if inside else _refusal(name, value, kind)


def _in_mapping(name: str, value: Any, kind: Any, nested: Nested) -> str | None:
    if not isinstance(value, Mapping):
        return _refusal(name, value, kind)
    of_keys, of_values = get_args(kind)
    for key, item in value.items():
        # On the command line, numbers in an option's name are texts.
        plain = int(key) if of_keys is int and isinstance(key, str) and key.isdecimal() else key
        if not (_is(plain, of_keys) if of_keys in _WORDS else True):
            return f"`{name}.{key}` must be named by {words(of_keys)}, but is by {shown(key)}."
        if text := mismatch(f"{name}.{key}", item, of_values, nested):
            return text
    return None
