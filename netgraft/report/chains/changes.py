"""What changed since the lock was written, as lines for people; a layer's line says what fed it and what it feeds."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from netgraft.lock.file import Change
from netgraft.lock.inspection import Inspected
from netgraft.report.text import safe, shape_text


def problems(result: Inspected) -> list[str]:
    """Why the architecture does not pass, safe for a terminal; empty if it does."""
    lines = []
    if result.missing:
        lines.append("not in the lock; add it with --update")
    if result.wanted:
        lines.append(f"the longest chain has {len(result.chain)} layers, fewer than {result.wanted}")
    return [safe(line) for line in (*lines, *change_lines(result.changes or ()))]


def change_lines(changes: Sequence[Change]) -> Iterator[str]:
    """One line for each change, and a unified diff of the chain."""
    told = {change.name for change in changes if change.what in ("layer added", "layer removed")}
    for change in changes:
        if change.what == "chain changed":
            yield f"chain changed: {len(change.was)} -> {len(change.now)} layers"
            diff = list(difflib.unified_diff(change.was, change.now, lineterm="", n=2))[2:]
            yield from (f"  {line}" for line in diff)
        elif change.what == "layer added":
            yield f"layer added: {change.name} ({_facts(change.now)}){_place(change.name, 'edge added', changes)}"
        elif change.what == "layer removed":
            yield f"layer removed: {change.name} ({_facts(change.was)}){_place(change.name, 'edge removed', changes)}"
        elif change.what == "layer renamed":
            yield f"layer renamed: {change.was} -> {change.name}"
        elif change.what == "layer changed":
            what = {"shape": "layer reshaped", "kind": "layer of another kind"}.get(change.fact, change.what)
            fact = "" if what != change.what else f"{change.fact} "
            yield f"{what}: {change.name}: {fact}{_value(change.fact, change.was)} -> {_value(change.fact, change.now)}"
        elif change.what == "inspected differently":
            fact = change.fact.replace("_", " ")
            yield f"inspected differently: {fact} {_value('', change.was)} -> {_value('', change.now)}"
        elif not told.intersection(change.was or change.now if change.what.startswith("edge") else ()):
            yield f"{change.what}: {change.name}"


def change_document(change: Change) -> dict[str, Any]:
    """The same as plain data, without what does not apply."""
    document = {"what": change.what, "name": change.name, "fact": change.fact, "was": change.was, "now": change.now}
    return {key: value for key, value in document.items() if value not in ("", None)}


def _facts(facts: Mapping[str, Any]) -> str:
    groups = f" groups {facts['groups']}" if facts.get("groups", 1) != 1 else ""
    return f"{facts['kind']} {_value('shape', facts['shape'])}{groups}"


def _place(name: str, what: str, changes: Sequence[Change]) -> str:
    edges = [change.now or change.was for change in changes if change.what == what]
    before, after = [a for a, b in edges if b == name], [b for a, b in edges if a == name]
    parts = [f"fed by {', '.join(before)}" if before else "", f"feeds {', '.join(after)}" if after else ""]
    return "".join(f", {part}" for part in parts if part)


def _value(fact: str, value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, list):
        return str(value)
    if all(isinstance(item, int) for item in value):
        return shape_text(tuple(value)) if fact != "padding" else ",".join(map(str, value))
    return ", ".join(map(str, value))
