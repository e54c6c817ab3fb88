"""How a test case of tracing is written down: an architecture, and what a reader would draw of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from netgraft.architecture.graph import LayerGraph


@dataclass(frozen=True)
class Case:
    """An architecture with the facts its layer graph must state.

    ``layers`` are the kernel layers in execution order as ``name:kind``; ``edges`` are ``a>b`` for every kernel layer
    (or ``in``, ``out``) whose result reaches another without passing a third; ``chain`` is the layers of the longest
    chain, None where several tie.
    """

    build: Callable[[], nn.Module]
    layers: str
    edges: str
    chain: str | None = None
    input_size: tuple[int, ...] | None = None
    example_inputs: Callable[[], Any] | None = None
    others: str = ""  # all other layers, name:kind, in any order
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # layer -> attribute -> value
    rung: str = "meta"
    warnings: tuple[str, ...] = ()  # how they begin
    file: Path | None = None

    @property
    def name(self) -> str:
        return getattr(self.build, "__name__", "net")


CASES: list[Case] = []


def case(layers: str, edges: str, **facts: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Class decorator: the module class (built without arguments) is a case with these facts."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES.append(Case(build, layers, edges, **facts))
        return build

    return register


def kernel_edges(graph: LayerGraph) -> set[str]:
    """``a>b`` for all kernel nodes, inputs and outputs connected without another kernel node between them."""
    sources: dict[str, set[str]] = {}  # node -> the kernel nodes and inputs it shows
    edges = set()
    for node in graph.nodes:
        before = set().union(*(sources[id] for id in node.inputs)) if node.inputs else set()
        kernel = node.op == "layer" and graph.layers[node.layer or ""].is_kernel
        if kernel or node.op == "output":
            edges |= {f"{source}>{'out' if node.op == 'output' else node.id}" for source in before}
        if kernel or node.op == "input":
            sources[node.id] = {node.id.replace("input", "in", 1) if node.op == "input" else node.id}
        else:
            sources[node.id] = before
    return edges
