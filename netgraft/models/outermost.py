"""The one model of a file that defines several: the class that the others are parts of. Nothing is executed here."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable


def choose(code: str, classes: list[str], functions: list[str], complete: Callable[[str], bool]) -> list[str]:
    """What the model may be among a file's classes: one name if it is clear.

    The outermost class, or the one among several that is ``complete`` (it can be built with the arguments given); if
    none is, the functions that return one (torchvision's way: the class takes its block as an argument).
    """
    outer = outermost(code, classes) or classes
    ready = [name for name in outer if complete(name)]
    if len(ready) == 1:
        return ready
    made = [name for cls in outer for name in makers(code, cls, functions) if complete(name)]
    return made if made and not ready else outer


def outermost(code: str, classes: Iterable[str]) -> list[str]:
    """Those of the classes that no other one uses, by name, directly or through functions and tables of the file.

    A network uses its blocks, and a class the one that it is derived from. Classes that use each other are all parts.
    """
    uses = _uses(ast.parse(code))
    reach = {name: _reach(name, uses) for name in classes}
    return [name for name in reach if not any(name in parts for other, parts in reach.items() if other != name)]


def makers(code: str, cls: str, functions: Iterable[str]) -> list[str]:
    """Those of the functions that return ``cls(...)``, at once or under a name."""
    known = set(functions)
    return [
        node.name
        for node in ast.parse(code).body
        if isinstance(node, ast.FunctionDef) and node.name in known and _returns(node, cls)
    ]


def _uses(tree: ast.Module) -> dict[str, set[str]]:
    """For each name at the file's top, the names that its definition speaks of."""
    uses: dict[str, set[str]] = {}
    for statement in tree.body:
        spoken = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        for name in _defined(statement):
            uses.setdefault(name, set()).update(spoken)
    return uses


def _defined(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return {statement.name}
    inside = ast.walk(statement)  # an assignment, or definitions under an if or try
    return {
        node.name if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else node.id
        for node in inside
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    }


def _reach(name: str, uses: dict[str, set[str]]) -> set[str]:
    """Every name that the definition of ``name`` speaks of, and so on."""
    found: set[str] = set()
    todo = [name]
    while todo:
        new = uses.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found - {name}


def _returns(function: ast.FunctionDef, cls: str) -> bool:
    made = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and _calls(node.value, cls)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    return any(_calls(value, cls) or (isinstance(value, ast.Name) and value.id in made) for value in values)


def _calls(value: ast.expr | None, cls: str) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == cls
