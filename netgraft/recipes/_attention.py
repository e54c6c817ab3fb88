"""What recipes that make attention anew have in common: the heads they can set, and the steps for each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from netgraft.architecture.attention import Attention, attentions
from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.architecture.heads import HeadRows, find_head_rows
from netgraft.architecture.scaling import usable_layers
from netgraft.channels import index_map
from netgraft.errors import UsageError
from netgraft.plan import Move, Step, moves_to

OTHERWISE = "this recipe makes attention alone, of nothing of the source's"
"""Why all that is not of an attention is kept."""


class Known(NamedTuple):
    """An attention whose heads can be set."""

    attention: Attention
    rows: HeadRows
    layers: tuple[str, ...]  # of queries, keys and values


def known_attentions(graph: LayerGraph, only: Iterable[Attention] | None = None) -> tuple[list[Known], dict[str, str]]:
    """The attentions whose heads can be set, in order, and why the layers of the others are left, by layer.

    ``only`` these; by default all of the graph.
    """
    usable = usable_layers(graph)
    found: list[Known] = []
    left: dict[str, str] = {}
    for attention in attentions(graph) if only is None else only:
        names = tuple(dict.fromkeys((attention.query, attention.key, attention.value)))
        rows = find_head_rows(graph, attention)
        shared = [name for name in names if name not in usable]
        if isinstance(rows, str) or shared:
            why = rows if isinstance(rows, str) else f"the weight of {shared[0]} is shared, or made of others"
            left |= dict.fromkeys(names, why)
        else:
            found.append(Known(attention, rows, names))
    return found, left


def refuse(recipe: str, why: Iterable[str]) -> UsageError:
    """The error for a target that has no attention that the recipe can set."""
    reasons = list(dict.fromkeys(why))
    return UsageError(
        f"The recipe {recipe} sets how a network attends, and there is nothing in the target that it can set.",
        where="; ".join(reasons[:3]) or "no softmax of a product of activations, times a third, was found in it",
        hint="Take a transformer as TARGET, or another recipe: netgraft recipes",
    )


@dataclass
class MadeAttention:
    """Steps for tensors of the target, made from its own initial values; several may set parts of one tensor."""

    graph: LayerGraph
    steps: dict[str, list[Step]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def set_outputs(self, name: str, operator: str, rows: Sequence[int], why: str, **options: object) -> None:
        """A step on these outputs of a linear layer."""
        layer = self.graph.layers[name]
        self._add(layer, operator, rows, 1 if layer.transposed else 0, why, options)

    def set_inputs(self, name: str, operator: str, columns: Sequence[int], why: str, **options: object) -> None:
        """A step on these inputs of a linear layer."""
        layer = self.graph.layers[name]
        self._add(layer, operator, columns, 0 if layer.transposed else 1, why, options)

    def clear_bias(self, name: str, rows: Iterable[int], why: str) -> None:
        """No bias for these outputs of a layer."""
        bias = self.graph.layers[name].tensors.get("bias")
        if bias is not None:
            runs = [list(run) for run in index_map.runs(sorted(set(rows)))]
            self.set_table(bias.key, Step("fill", {"value": 0.0, "rows": runs}), why)

    def set_table(self, key: str, step: Step, why: str) -> None:
        """A step on a tensor by its key."""
        self.steps.setdefault(key, []).append(step)
        self.why.setdefault(key, why)

    def moves(self) -> Iterator[Move]:
        """One for each key."""
        for key, steps in self.steps.items():
            slot = self.graph.slots[key]
            yield from moves_to(slot, "", slot.shape, tuple(steps), self.why[key])

    def _add(
        self, layer: Layer, operator: str, rows: Sequence[int], dim: int, why: str, options: dict[str, object]
    ) -> None:
        runs = [list(run) for run in index_map.runs(rows)]
        self.set_table(layer.tensors["weight"].key, Step(operator, {"rows": runs, "dim": dim, **options}), why)
