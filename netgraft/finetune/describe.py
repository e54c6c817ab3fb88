"""What a method's file says of it, read with ``ast``: nothing is imported, no file of a user's is run, no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from netgraft import plugins
from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.protocol import Need

FOLDER = "finetune.methods"


@dataclass(frozen=True)
class Described:
    """A method on paper."""

    name: str
    doc: str
    needs: frozenset[Need]
    combine: str  # its own combine rule
    options: tuple[plugins.Option, ...]


def describe(name_or_path: str) -> Described:
    """Docstring, needs and options of a method. Raises UnknownName or UsageError."""
    if ".py" in name_or_path:
        path, _, wanted = name_or_path.partition(".py")
        file: Path | None = Path(f"{path}.py").expanduser()
        wanted = wanted.removeprefix(":")
    else:
        known = plugins.listing(FOLDER)
        if name_or_path not in known:
            hint = "`netgraft methods` lists them all; your own file is given as ./own_method.py."
            error = UnknownName("method", name_or_path, known)
            error.hint = f"{error.hint} {hint}".strip()
            raise error
        file, wanted = known[name_or_path].path, ""
    bodies = list(_classes(file, wanted, name_or_path))
    doc = next((text for cls in bodies if (text := ast.get_docstring(cls))), "")
    fields: dict[str, plugins.Option] = {}
    variables: dict[str, ast.expr | None] = {}
    for cls in reversed(bodies):  # a subclass replaces what its base says
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if "ClassVar" in ast.unparse(node.annotation):
                    variables[node.target.id] = node.value
                else:
                    fields[node.target.id] = _option(node.target.id, node)
    needs = variables.get("needs")
    found = [n.attr for n in ast.walk(needs) if isinstance(n, ast.Attribute)] if needs else []
    rule = variables.get("combine")
    combine = str(rule.value) if isinstance(rule, ast.Constant) else "total"
    known_needs = frozenset(Need[name] for name in found if name in Need.__members__)
    return Described(name_or_path, doc, known_needs, combine, tuple(fields.values()))


def _classes(file: Path | None, wanted: str, name: str) -> Iterator[ast.ClassDef]:
    """The method's class, and its bases in netgraft's own files, the nearest first."""
    try:
        tree = ast.parse(file.read_bytes()) if file else None
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError("The method's file cannot be read.", where=f"{file}: {error}") from error
    classes = [n for n in (tree.body if tree else ()) if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    chosen = [cls for cls in classes if cls.name == wanted] if wanted else classes
    if tree is None or len(chosen) != 1:
        found = ", ".join(cls.name for cls in classes) or "none"
        raise UsageError(f"A method file has one public class; here: {found}.", where=str(file or name))
    yield chosen[0]
    for base in chosen[0].bases:
        for node in tree.body:
            names = (
                [a.name for a in node.names if isinstance(base, ast.Name) and base.id in (a.name, a.asname)]
                if (isinstance(node, ast.ImportFrom))
                else []
            )
            if isinstance(node, ast.ImportFrom) and names and (node.module or "").startswith("netgraft."):
                place = plugins.HERE.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
                yield from _classes(place, names[0], name)


def _option(name: str, node: ast.AnnAssign) -> plugins.Option:
    default: object = plugins.REQUIRED
    text, value = "", node.value
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        arguments = {keyword.arg: keyword.value for keyword in value.keywords}
        metadata = arguments.get("metadata")
        if isinstance(metadata, ast.Dict):
            text = next(
                (
                    str(_literal(v))
                    for k, v in zip(metadata.keys, metadata.values, strict=True)
                    if k is not None and _literal(k) == "help"
                ),
                "",
            )
        value = arguments.get("default")
    if value is not None:
        default = _literal(value)
    return plugins.Option(name, _type(node.annotation), default, text)


def _type(annotation: ast.expr) -> str:
    """Literal["a", "b"] as "one of a, b"; the rest as it is written."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Literal"):
        choices = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return f"one of {', '.join(str(_literal(choice)) for choice in choices)}"
    text = ast.unparse(annotation)
    return {"bool": "true or false"}.get(text, text.replace(" | None", " or none"))


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
