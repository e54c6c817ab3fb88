"""Finding plug-ins, and loading them: netgraft's folders, users' own files, installed packages."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import re
import sys
import types
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from netgraft.errors import UnknownName, UsageError
from netgraft.plugins.fields import REQUIRED, default_of, fields_of, read, type_text, types_of

HERE = Path(__file__).parents[1]
"""Netgraft's folders of plug-ins stand in this one."""
NO_PLUGINS = frozenset({"protocol", "run", "apply"})
"""Files beside the plug-ins of a folder that are none: what a plug-in is, and what calls it."""


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A plug-in that could be loaded."""

    name: str
    summary: str  # first docstring line of the class, else of the module
    module: str  # "netgraft.matchers.longest_chain"; "package.module:Class" for an installed package
    path: Path | None  # None where an installed package's file cannot be found without importing it


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
    if own := own_file(name_or_path):
        return _single_class(_run(Path(own["path"]).expanduser(), kind), own["cls"], kind, own["path"])
    if name_or_path in (files := _files(folder)):
        path = files[name_or_path]
        return _single_class(_import(_module_name(folder, path), kind, name_or_path), None, kind, str(path))
    if name_or_path in (installed := _installed(folder)):
        entry = installed[name_or_path]
        module = _import(entry.module, kind, name_or_path)
        return _single_class(module, entry.attr or None, kind, entry.value)
    raise unknown(folder, name_or_path, [*files, *installed])


def create(folder: str, name_or_path: str, options: Mapping[str, object]) -> Any:
    """The plug-in with these options, strings read as the fields' types say. Raises UnknownName, UsageError."""
    cls = load(folder, name_or_path)
    where = f"{noun(folder)} {name_or_path}"
    hints = types_of(cls)
    known = fields_of(cls)
    values = {}
    for name, value in options.items():
        if name not in known:
            error = UnknownName("option", name, known, where=where)
            error.hint = error.hint or "It has no options."
            raise error
        try:
            values[name] = read(value, hints[name])
        except ValueError:
            expected = type_text(hints[name])
            raise UsageError(f"The option {name} cannot be {value!r}; expected {expected}.", where=where) from None
    for name, field in known.items():
        if name not in values and default_of(field) is REQUIRED:
            hint = f"Give it as {name}=<{type_text(hints[name])}>."
            raise UsageError(f"The option {name} is missing.", where=where, hint=hint)
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(str(error), where=where) from error


def known(folder: str, name_or_path: str) -> type[Any] | None:
    """The plug-in's class, if no file has to be run for it that has not run yet; None otherwise, and for unknown ones.

    For names that stand in a file which somebody else may have written.
    """
    own = own_file(name_or_path)
    with contextlib.suppress(UnknownName, UsageError):
        if own is None or _name_in_memory(Path(own["path"]).expanduser()) in sys.modules:
            return load(folder, name_or_path)
    return None


def noun(folder: str) -> str:
    """What a plug-in of this folder is called in messages: "matchers" holds a matcher, "passes" a pass."""
    last = folder.rpartition(".")[2]
    return {"passes": "pass"}.get(last) or last.removesuffix("s")


def unknown(folder: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that no plug-in of the folder has."""
    kind = noun(folder)
    error = UnknownName(kind, name, known)
    error.hint = f"{error.hint} `netgraft {kind}s` lists them all; your own file is given as ./own_{kind}.py.".strip()
    return error


# ---------------------------------------------------------------------------------------------- finding and importing


def own_file(name_or_path: str) -> re.Match[str] | None:
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


def _summary(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
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


def _name_in_memory(path: Path) -> str:
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
