"""The folder is the registry: ``matchers/longest_chain.py`` is ``--matcher longest-chain``.

A plug-in is a frozen dataclass whose fields are its options; its file defines exactly one public class. It comes from
one of netgraft's folders, from a user's own file (``./own_matcher.py`` or ``./own_matcher.py:Class``), or from an
installed package with an entry point in the group ``netgraft.<folder>``, for the methods and generators too:
``netgraft.methods``. Netgraft's own names cannot be replaced.
Listing reads names and docstrings with ``ast`` and imports nothing; loading a file runs its code.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import re
import sys
import types
import typing
from collections.abc import Mapping
from enum import Enum
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple

from netgraft.errors import UnknownName, UsageError

HERE = Path(__file__).parent
NO_PLUGINS = frozenset({"protocol", "run", "apply"})
"""Files beside the plug-ins of a folder that are none: what a plug-in is, and what calls it."""
REQUIRED = dataclasses.MISSING
"""The ``default`` of an option that must be given."""

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plug-in that could be loaded."""

    name: str
    summary: str  # first docstring line of the class, else of the module
    module: str  # "netgraft.matchers.longest_chain"; "package.module:Class" for an installed package
    path: Path | None  # None where an installed package's file cannot be found without importing it


class Option(NamedTuple):
    """A field of a plug-in, as a user sees it."""

    name: str
    type: str
    default: object
    doc: str


def listing(folder: str) -> dict[str, Plugin]:
    """The plug-ins of a folder ("matchers", "passes") and of installed packages, by name, sorted. Imports nothing."""
    found = {}
    for name, entry in _installed(folder).items():
        path = _installed_file(entry)
        summary = _summary(path) if path else ""
        found[name] = Plugin(name, summary or f"from {_distribution(entry)}", entry.value, path)
    for name, path in _files(folder).items():
        found[name] = Plugin(name, _summary(path), _module_name(folder, path), path)
    return dict(sorted(found.items()))


def load(folder: str, name_or_path: str) -> type[Any]:
    """The plug-in's class; raises UnknownName, or UsageError if the file does not run or holds no single plug-in."""
    kind = noun(folder)
    if own := _own(name_or_path):
        return _single_class(_run(Path(own["path"]).expanduser(), kind), own["cls"], kind, own["path"])
    if name_or_path in (files := _files(folder)):
        path = files[name_or_path]
        return _single_class(_import(_module_name(folder, path), kind, name_or_path), None, kind, str(path))
    if name_or_path in (installed := _installed(folder)):
        entry = installed[name_or_path]
        module = _import(entry.module, kind, name_or_path)
        return _single_class(module, entry.attr or None, kind, entry.value)
    error = UnknownName(kind, name_or_path, [*files, *installed])
    error.hint = f"{error.hint} `netgraft {kind}s` lists them all; your own file is given as ./own_{kind}.py.".strip()
    raise error


def create(folder: str, name_or_path: str, options: Mapping[str, object]) -> Any:
    """The plug-in with these options, strings read as the fields' types say. Raises UnknownName, UsageError."""
    cls = load(folder, name_or_path)
    where = f"{noun(folder)} {name_or_path}"
    hints = _types(cls)
    known = _fields(cls)
    values = {}
    for name, value in options.items():
        if name not in known:
            error = UnknownName("option", name, known, where=where)
            error.hint = error.hint or "It has no options."
            raise error
        try:
            values[name] = _read(value, hints[name])
        except ValueError:
            expected = type_text(hints[name])
            raise UsageError(f"The option {name} cannot be {value!r}; expected {expected}.", where=where) from None
    for name, field in known.items():
        if name not in values and _default(field) is REQUIRED:
            hint = f"Give it as {name}=<{type_text(hints[name])}>."
            raise UsageError(f"The option {name} is missing.", where=where, hint=hint)
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(str(error), where=where) from error


def known(folder: str, name_or_path: str) -> type[Any] | None:
    """The plug-in's class, if no file has to be run for it that has not run yet; None otherwise, and for unknown ones.

    For names that come from a file which somebody else may have written.
    """
    own = _own(name_or_path)
    with contextlib.suppress(UnknownName, UsageError):
        if own is None or _module_of(Path(own["path"]).expanduser()) in sys.modules:
            return load(folder, name_or_path)
    return None


def constant(folder: str, name_or_path: str, variable: str) -> object:
    """The literal that a plug-in's class assigns to a class variable; None if there is none, or no such plug-in.

    Read with ``ast``: nothing is imported, and no file runs.
    """
    own = _own(name_or_path)
    if own:
        path, cls = Path(own["path"]).expanduser(), own["cls"]
    elif name_or_path in (files := _files(folder)):
        path, cls = files[name_or_path], None
    elif (entry := _installed(folder).get(name_or_path)) and (found := _installed_file(entry)):
        path, cls = found, entry.attr or None
    else:
        return None
    for node in _classes(path) if path.is_file() else []:
        if node.name == cls or (cls is None and not node.name.startswith("_")):
            for line in node.body:
                targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
                if any(isinstance(each, ast.Name) and each.id == variable for each in targets):
                    with contextlib.suppress(ValueError, TypeError):
                        return ast.literal_eval(getattr(line, "value", None) or "")
    return None


def options(cls: type[Any]) -> list[Option]:
    """The options of a plug-in's class in order; docs come from ``field(metadata={"help": ...})``."""
    hints = _types(cls)
    return [
        Option(name, type_text(hints[name]), _default(field), str(field.metadata.get("help", "")))
        for name, field in _fields(cls).items()
    ]


def noun(folder: str) -> str:
    """What a plug-in of this folder is called in messages: "matchers" holds a matcher, "passes" a pass."""
    last = folder.rpartition(".")[2]
    return {"passes": "pass"}.get(last) or last.removesuffix("s")


# ---------------------------------------------------------------------------------------------- finding and importing


def _own(name_or_path: str) -> re.Match[str] | None:
    """``path`` and ``cls`` of a user's own file; None for a name."""
    return re.fullmatch(r"(?P<path>.*\.py)(?::(?P<cls>\w+))?", name_or_path, re.DOTALL)


def _files(folder: str) -> dict[str, Path]:
    paths = sorted(HERE.joinpath(*folder.split(".")).glob("*.py"))
    return {path.stem.replace("_", "-"): path for path in paths if path.stem not in NO_PLUGINS and path.stem[0] != "_"}


def _module_name(folder: str, path: Path) -> str:
    return f"netgraft.{folder}.{path.stem}"


def _installed(folder: str) -> dict[str, EntryPoint]:
    entries = entry_points(group=f"netgraft.{folder.rpartition('.')[2]}")
    return {entry.name: entry for entry in sorted(entries, key=lambda e: (e.name, e.value), reverse=True)}


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module


def _installed_file(entry: EntryPoint) -> Path | None:
    stem = entry.module.replace(".", "/")
    places = [str(entry.dist.locate_file(stem + end)) for end in (".py", "/__init__.py")] if entry.dist else []
    return next((Path(place) for place in places if Path(place).is_file()), None)


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _classes(path: Path) -> list[ast.ClassDef]:
    tree = _parsed(path)
    return [node for node in tree.body if isinstance(node, ast.ClassDef)] if tree else []


def _summary(path: Path) -> str:
    tree = _parsed(path)
    if tree is None:
        return "(cannot be read)"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    docs = [*map(ast.get_docstring, classes), ast.get_docstring(tree)]
    return next((doc.splitlines()[0] for doc in docs if doc), "")


def _import(module: str, kind: str, name: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
        outside = missing and not missing.startswith("netgraft")
        hint = f"It needs {missing}: pip install {missing.partition('.')[0]}" if outside else ""
        what = f"The {kind} {name} cannot be imported."
        raise UsageError(what, where=f"{module}: {type(error).__name__}: {error}", hint=hint) from error


def _run(path: Path, kind: str) -> types.ModuleType:
    """The module made by running a user's file; an unchanged file runs once per process."""
    try:
        code = path.read_bytes()
    except OSError as error:
        raise UsageError(f"There is no {kind} file {path}.", where=str(error.strerror)) from error
    name = _module_name_of(path, code)
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        where = f"{path}: {type(error).__name__}: {error}"
        raise UsageError(f"The {kind} file {path} does not run.", where=where) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_of(path: Path) -> str:
    """The name under which a user's file is in memory, if it has run as it is; empty if it cannot be read."""
    try:
        return _module_name_of(path, path.read_bytes()) if path.is_file() else ""
    except OSError:
        return ""


def _module_name_of(path: Path, code: bytes) -> str:
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + code).hexdigest()
    return f"netgraft_own_{path.stem}_{digest[:16]}"


def _single_class(module: types.ModuleType, wanted: str | None, kind: str, where: str) -> type[Any]:
    defined = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    if wanted is not None:
        cls = getattr(module, wanted, None)
        if not isinstance(cls, type):
            raise UnknownName("class", wanted, defined, where=where)
    elif len(defined) == 1:
        (cls,) = defined.values()
    else:
        found = ", ".join(defined) or "none"
        hint = f"Name one: {where}:{next(iter(defined))}" if defined else f"Define one class, the {kind}."
        raise UsageError(f"A {kind} file has one public class; here: {found}.", where=where, hint=hint)
    if not dataclasses.is_dataclass(cls):
        hint = "Decorate it with @dataclass(frozen=True); its fields are its options."
        raise UsageError(f"{cls.__name__} is not a dataclass.", where=where, hint=hint)
    return cls


# ----------------------------------------------------------------------------------------------- fields and their types


def _fields(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _default(field: dataclasses.Field[Any]) -> object:
    return field.default if field.default_factory is REQUIRED else field.default_factory()


def _types(cls: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError) as error:
        hint = "Import what the annotations of its fields name."
        raise UsageError(f"The options of {cls.__name__} have unclear types.", where=str(error), hint=hint) from error


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
        named = _is_named(typing.get_args(arguments[0]))
        return "comma-separated NAME=NAME" if named else f"comma-separated {type_text(arguments[0])}s"
    if typing.get_origin(annotation) is tuple and _is_named(arguments):
        return "NAME=NAME"
    if typing.get_origin(annotation) is tuple:
        return ",".join(type_text(argument) for argument in arguments)
    return annotation.__name__ if isinstance(annotation, type) and not arguments else str(annotation)


def _read(value: object, annotation: Any) -> Any:
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
            return _read(value, argument)
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
    return tuple(_read(item, argument) for item, argument in zip(value, arguments, strict=True))
