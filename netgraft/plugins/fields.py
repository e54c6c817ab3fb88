"""The fields of a plug-in's class are its options: their types in words, and their values read from text."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, NamedTuple

from netgraft.errors import UsageError

REQUIRED = dataclasses.MISSING
"""The ``default`` of an option that must be given."""
NAMES = "NAME=NAME"
"""The type, in words, of a pair of names."""

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Option(NamedTuple):
    """A field of a plug-in, as a user sees it."""

    name: str
    type: str
    default: object
    doc: str


def options(cls: type[Any]) -> list[Option]:
    """The options of a plug-in's class in order; docs come from ``field(metadata={"help": ...})``."""
    hints = types_of(cls)
    return [
        Option(name, type_text(hints[name]), default_of(field), str(field.metadata.get("help", "")))
        for name, field in fields_of(cls).items()
    ]


def fields_of(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def default_of(field: dataclasses.Field[Any]) -> object:
    return field.default if field.default_factory is REQUIRED else field.default_factory()


def types_of(cls: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError) as error:
        hint = "Import what the annotations of its fields name."
        raise UsageError(f"The options of {cls.__name__} have unclear types.", where=str(error), hint=hint) from error


def several(text: str) -> str:
    """Any number of something, in words."""
    return f"comma-separated {text}" if text == NAMES else f"comma-separated {text}s"


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_named(arguments: tuple[Any, ...]) -> bool:
    """Whether a tuple is a pair of names, written a=b."""
    return arguments == (str, str)


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def type_text(annotation: Any) -> str:
    """An annotation in words: ``int``, ``one of a, b``, ``float or none``, ``3,3 (int, int)``."""
    arguments = typing.get_args(annotation)
    if annotation is type(None):
        return "none"
    if annotation is bool:
        return "true or false"
    if _is_union(annotation):
        return " or ".join(type_text(argument) for argument in arguments)
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(str(choice) for choice in arguments)}"
    if _is_enum(annotation):
        return f"one of {', '.join(str(member.value) for member in annotation)}"
    if typing.get_origin(annotation) is tuple and arguments[-1:] == (Ellipsis,):
        return several(type_text(arguments[0]))
    if typing.get_origin(annotation) is tuple and _is_named(arguments):
        return NAMES
    if typing.get_origin(annotation) is tuple:
        return ",".join(type_text(argument) for argument in arguments)
    return annotation.__name__ if isinstance(annotation, type) and not arguments else str(annotation)


def read(value: object, annotation: Any) -> Any:
    """``value`` as ``annotation`` says, read from text if it is a string; raises a bare ValueError."""
    text = value.strip() if isinstance(value, str) else None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if _is_union(annotation):
        return _read_union(value, arguments)
    if origin is Literal:
        return _choose(value, text, {choice: choice for choice in arguments})
    if _is_enum(annotation):
        return _choose(value, text, {member.value: member for member in annotation})
    if origin is tuple:
        return _read_tuple(value, text, arguments)
    if text is not None and annotation is bool:
        return _choose(text.lower(), None, _WORDS)
    if text is not None and annotation is type(None):
        return _choose(text.lower(), None, {"none": None})
    if text is not None and annotation in (int, float):
        return annotation(text)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, bool):
        raise ValueError
    kind = origin or annotation
    if kind is Any or (isinstance(kind, type) and isinstance(value, kind)):
        return value
    raise ValueError


def _choose(value: object, text: str | None, choices: Mapping[Any, object]) -> object:
    for choice, result in choices.items():
        same = value == choice and isinstance(value, bool) == isinstance(choice, bool)
        if same or text == str(choice) or value is result:
            return result
    raise ValueError


def _read_union(value: object, arguments: tuple[Any, ...]) -> Any:
    for argument in sorted(arguments, key=lambda argument: argument is str):  # any text is a str: try that last
        with contextlib.suppress(ValueError):
            return read(value, argument)
    raise ValueError


def _read_tuple(value: object, text: str | None, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if text is not None and _is_named(arguments):
        value = [part.strip() for part in text.split("=", 1)]
    elif text is not None:
        value = [part.strip() for part in text.strip("()[]").rstrip(", ").split(",")] if text.strip("()[] ") else []
    if not isinstance(value, (list, tuple)):
        raise ValueError
    if arguments[-1:] == (Ellipsis,):
        arguments = arguments[:1] * len(value)
    return tuple(read(item, argument) for item, argument in zip(value, arguments, strict=True))
