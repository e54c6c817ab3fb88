"""One operation of the forward pass, as the rules for operations see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from netgraft.architecture.graph import Node
from netgraft.channels.groups.axes import Axis, Fixed, fix, run

Axes = list[Axis]
Mixed = list[tuple[Axis, str, str]]  # an axis, how its positions are mixed, and by which node
Rule = Callable[["Call"], Axes]


class NoRule(Exception):
    """A rule that does not cover this use of its operation."""


class Call:
    """One operation: its operands' axes, its plain arguments, and the shape of its result."""

    def __init__(self, node: Node, axes: Mapping[str, Axes], mixed: Mixed) -> None:
        self.node = node
        self.shape = node.shape
        self.mixed = mixed
        self.axes = axes
        self.args: list[Any] = list(node.facts.get("args", ()))
        self.keywords: Mapping[str, Any] = {k: v for k, v in node.facts.items() if k != "args"}

    def tensor(self, value: Any) -> Axes | None:
        """The axes of an argument if it is a tensor.

        A constant's positions all have a meaning of their own, except along axes where it says the same everywhere.
        """
        if isinstance(value, str) and value.startswith("%"):
            return self.axes.get(value[1:])
        if isinstance(value, dict) and "constant" in value:
            uniform = value.get("uniform", ())
            return [run(size) if d in uniform else Fixed(size) for d, size in enumerate(value["constant"])]
        return None

    def tensors(self) -> list[Axes]:
        """Every tensor among the arguments, in order."""
        found = []
        for value in (*self.args, *self.keywords.values()):
            for item in value if isinstance(value, list) else [value]:
                if (axes := self.tensor(item)) is not None:
                    found.append(axes)
        return found

    def mixes(self, axis: Axis, how: str) -> None:
        """Note that the positions of an axis are mixed: "mean", "variance", "sum", "softmax" or "product"."""
        self.mixed.append((axis, how, self.node.id))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.keywords.get(name, default)

    def dims(self, value: Any, rank: int) -> list[int]:
        """Axis numbers counted from the front; all axes for None. NoRule if they are no numbers."""
        if value is None:
            return list(range(rank))
        given = value if isinstance(value, list) else [value]
        if not all(type(d) is int for d in given):
            raise NoRule
        return [d % rank for d in given] if rank else []


def unknown(call: Call) -> Axes:
    """Fix everything the operation reads."""
    for axes in [*call.tensors(), *(call.axes[i] for i in call.node.inputs if i in call.axes)]:
        for axis in axes:
            fix(axis)
    return [Fixed(size) for size in call.shape]
