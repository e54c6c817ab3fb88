"""What a plug-in's file says of it, read with ``ast``: nothing is imported, no file of a user's is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from netgraft.errors import UsageError
from netgraft.plugins import registry
from netgraft.plugins.fields import NAMES, REQUIRED, Option, several


@dataclass(frozen=True)
class Description:
    """A plug-in on paper."""

    name: str
    doc: str
    options: tuple[Option, ...]
    variables: Mapping[str, str] = field(default_factory=dict)  # class variables as written: {"combine": "'dtnh'"}


class _Found(NamedTuple):
    """A class, and the file that it stands in."""

    body: ast.ClassDef
    file: ast.Module


def describe(folder: str, name_or_path: str) -> Description:
    """Docstring, options and class variables of a plug-in of this folder, or of a user's file.

    Bases in netgraft's own files count too. Raises UnknownName or UsageError.
    """
    kind = registry.noun(folder)
    file, wanted = _place(folder, name_or_path)
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise UsageError(f"The {kind}'s file cannot be read.", where=f"{file}: {error}") from error
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    chosen = [cls for cls in classes if cls.name == wanted] if wanted else classes
    if len(chosen) != 1:
        found = ", ".join(cls.name for cls in classes) or "none"
        raise UsageError(f"A {kind} file has one public class; here: {found}.", where=str(file))
    line = list(_with_bases(_Found(chosen[0], tree)))
    options: dict[str, Option] = {}
    variables: dict[str, str] = {}
    for one in reversed(line):  # a subclass replaces what its base says
        for node in one.body.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name = node.target.id
            if "ClassVar" in ast.unparse(node.annotation):
                variables[name] = ast.unparse(node.value) if node.value else ""
            else:
                options[name] = _option(name, node, one.file)
    doc = next((text for one in line if (text := ast.get_docstring(one.body))), "")
    return Description(name_or_path, doc, tuple(options.values()), variables)


def _place(folder: str, name_or_path: str) -> tuple[Path, str]:
    """The plug-in's file, and the class in it that is named, "" for its only one."""
    if own := registry.own_file(name_or_path):
        return Path(own["path"]).expanduser(), own["cls"] or ""
    known = registry.listing(folder)
    if name_or_path not in known:
        raise registry.unknown(folder, name_or_path, known)
    plugin = known[name_or_path]
    if plugin.path is None:
        what = f"The file of the {registry.noun(folder)} {name_or_path} cannot be found without importing it."
        raise UsageError(what, where=plugin.module)
    return plugin.path, plugin.module.partition(":")[2]


def _with_bases(one: _Found) -> Iterator[_Found]:
    """The class, and its bases in netgraft's own files, the nearest first."""
    yield one
    for base in one.body.bases:
        if isinstance(base, ast.Name) and isinstance((found := _definition(base.id, one.file))[0], ast.ClassDef):
            yield from _with_bases(_Found(found[0], found[1]))


def _definition(name: str, file: ast.Module) -> tuple[ast.stmt | None, ast.Module]:
    """Where a name of this file is a class, or assigned: in it, or in a file of netgraft's that it imports from."""
    for node in file.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, file
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node, file
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("netgraft."):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    place = registry.HERE.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
                    return _definition(alias.name, ast.parse(place.read_bytes())) if place.is_file() else (None, file)
    return None, file


def _option(name: str, node: ast.AnnAssign, file: ast.Module) -> Option:
    default: object = REQUIRED
    text, value = "", node.value
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        arguments = {keyword.arg: keyword.value for keyword in value.keywords}
        metadata = arguments.get("metadata")
        if isinstance(metadata, ast.Dict):
            pairs = zip(metadata.keys, metadata.values, strict=True)
            text = next((str(_literal(v)) for k, v in pairs if k is not None and _literal(k) == "help"), "")
        value = arguments.get("default")
    if value is not None:
        default = _literal(value)
    return Option(name, _type(node.annotation, file), default, text)


def _type(annotation: ast.expr, file: ast.Module) -> str:
    """An annotation in words, as ``fields.type_text`` has it: Literal["a", "b"] is "one of a, b"."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return f"{_type(annotation.left, file)} or {_type(annotation.right, file)}"
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return "none"
    if isinstance(annotation, (ast.Name, ast.Attribute)):
        named = _alias(annotation, file)
        return _type(*named) if named else {"bool": "true or false"}.get(text := ast.unparse(annotation), text)
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if (kind := ast.unparse(annotation.value)).endswith("Literal"):
            return f"one of {', '.join(str(_literal(choice)) for choice in inner)}"
        if kind == "tuple":
            if [ast.unparse(one) for one in inner] == ["str", "str"]:
                return NAMES
            texts = [_type(one, file) for one in inner]
            return several(texts[0]) if ast.unparse(inner[-1]) == "..." else ",".join(texts)
    return ast.unparse(annotation)


def _alias(name: ast.Name | ast.Attribute, file: ast.Module) -> tuple[ast.expr, ast.Module] | None:
    """What a name stands for (``Match``, or ``mmd.Estimator`` of a module of netgraft's), and where it is written."""
    if isinstance(name, ast.Name):
        found, place = _definition(name.id, file)
    else:
        found, place = None, file
        for node in file.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("netgraft."):
                for alias in node.names:
                    if isinstance(name.value, ast.Name) and name.value.id == (alias.asname or alias.name):
                        path = registry.HERE.parent.joinpath(*(node.module or "").split("."), f"{alias.name}.py")
                        if path.is_file():
                            found, place = _definition(name.attr, ast.parse(path.read_bytes()))
    return (found.value, place) if isinstance(found, ast.Assign) else None


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
