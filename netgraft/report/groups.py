"""The channel groups of an architecture: what must be permuted together, what mixes it, what may not be permuted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from netgraft.architecture.graph import LayerGraph, Slot
from netgraft.channels.groups.find import Group, Groups
from netgraft.report.text import safe, shape_text, some, table

UNUSED = "not used in the forward pass"


def groups_text(model: str, graph: LayerGraph, groups: Groups, *, all_members: bool = False) -> Iterator[str]:
    """Tables of the groups and of the tensors in none of them; names abridged unless ``all_members``."""
    fixed = dict(_fixed(graph, groups))
    tensors = sum(1 for _ in _with_channels(graph))
    count = len(groups.groups)
    holding = "channel group holds" if count == 1 else "channel groups hold"
    yield f"{safe(model)}: {count} {holding} {tensors - len(fixed)} of {tensors} tensors"
    most = 1 << 30 if all_members else 3
    if groups.groups:
        yield ""
        rows = [
            (group.name, str(group.size), str(len(group.members)), _mixed(group, most), some(_members(group), most))
            for group in groups.groups
        ]
        yield from table(("group", "channels", "members", "mixed by", "tensor[axis]"), rows, indent="  ")
    if fixed:
        yield ""
        yield "In no group, because their positions have a meaning:"
        by_reason: dict[str, list[str]] = {}
        for slot, why in fixed.items():
            by_reason.setdefault(", ".join(why[:most]), []).append(f"{slot.key} {shape_text(slot.shape)}")
        reasons = [(why, str(len(names)), some(names, most)) for why, names in by_reason.items()]
        yield from table(("given by", "tensors", "tensor"), reasons, indent="  ")
    for warning in graph.warnings:
        yield f"warning: {safe(warning)}"


def groups_document(model: str, graph: LayerGraph, groups: Groups) -> dict[str, Any]:
    """The same as plain data, nothing left out."""
    return {
        "model": model,
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "members": [{"key": key, "axis": axis} for key, axis in group.members],
                "mixed": [{"how": how, "by": node} for how, node in group.mixed],
            }
            for group in groups.groups
        ],
        "fixed": [
            {"key": slot.key, "shape": list(slot.shape), "why": list(why)} for slot, why in _fixed(graph, groups)
        ],
        "rung": graph.rung,
        "warnings": list(graph.warnings),
    }


def _with_channels(graph: LayerGraph) -> Iterator[Slot]:
    """Every tensor of more than one number, once."""
    return (slot for slot in dict.fromkeys(graph.slots.values()) if max(slot.shape, default=1) > 1)


def _fixed(graph: LayerGraph, groups: Groups) -> Iterator[tuple[Slot, tuple[str, ...]]]:
    for slot in _with_channels(graph):
        why = groups.reasons(slot.key) if slot.key in groups.axes else (UNUSED,)
        if why:
            yield slot, why


def _members(group: Group) -> list[str]:
    return [f"{key}[{axis}]" for key, axis in group.members]


def _mixed(group: Group, most: int) -> str:
    """As "mean (norm1, norm2 and 20 more)" for every way of mixing."""
    ways: dict[str, list[str]] = {}
    for how, node in group.mixed:
        ways.setdefault(how, []).append(node)
    return "; ".join(f"{how} ({some(nodes, most)})" for how, nodes in ways.items())
