"""What decides where a layer belongs, for the matchers: wiring, resolution, role.

Read off the data flow and the shapes, never off names; nothing here imports torch. Graphs drawn without shapes do too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netgraft.architecture.blocks import Block, Spaces, find_blocks
from netgraft.architecture.chain import longest_chain
from netgraft.architecture.gates import without_gates
from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.architecture.resolution import halvings, input_image, levels


@dataclass(frozen=True)
class Place:
    """What decides where a kernel layer belongs, whatever it is called."""

    layer: Layer
    reads: tuple[int, ...]  # channel spaces
    writes: tuple[int, ...]
    stem: bool  # no kernel before it
    head: bool  # no kernel after it
    from_stream: bool | None  # reads a space that residual additions write; None where a network has none
    to_stream: bool | None  # None for a depthwise layer too: it writes what it reads
    depthwise: bool
    attention: bool
    resolution: float | None  # halvings from the input to its output, over the most in the network; None: all equal
    depth: float  # 0 for the first of its sequence, 1 for the last
    block: Block | None
    opens: bool | None  # first of its sequence to write a stream: the step from one stage to the next
    run: int  # equal for neighbours from one reading of a stream to the next writing: a block, residual or not
    sizes: tuple[float, float, float]  # logarithms of output channels, input channels, kernel size


class Wiring:
    """One network, seen by a matcher."""

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self.ungated = without_gates(graph)
        self.chain = tuple(dict.fromkeys(longest_chain(graph, gates=False).layers))
        self.spaces = Spaces(self.ungated)
        self.blocks = find_blocks(self.ungated)
        self.block_of = {name: block for block in self.blocks for name in block.kernels}
        self.heads = graph.head_names
        self.resolution = self._resolutions()
        self.fed_by = _fed_by(self.graph)
        on_chain = self.position = {name: i for i, name in enumerate(self.chain)}
        reaching = {node.layer for node in graph.nodes if node.id in graph.to_output and node.layer}
        ungated = {node.layer for node in self.ungated.nodes if node.id in self.ungated.to_output and node.layer}
        self.gates: list[str] = []
        self.shortcuts: list[str] = []
        self.others: list[str] = []
        self.idle: list[str] = []
        for layer in graph.kernels():
            if layer.name in on_chain:
                continue
            if layer.name not in reaching:
                self.idle.append(layer.name)
            elif layer.name not in ungated:
                self.gates.append(layer.name)
            elif layer.name in self.block_of and on_chain.keys() & self.block_of[layer.name].kernels:
                self.shortcuts.append(layer.name)
            else:
                self.others.append(layer.name)

    def _resolutions(self) -> dict[str, float]:
        """The resolution of every layer; empty where all layers of the chain have the same."""
        level, pooled = levels(self.graph), halvings(input_image(self.graph), 1)
        inner = [level[name] for name in self.chain if name not in self.heads and level[name] < pooled] or [0.0]
        if min(inner) == max(inner):
            return {}
        return {name: min(value / max(inner), 1.0) for name, value in level.items()}

    def places(self, names: Iterable[str]) -> list[Place]:
        """The places of these layers, in the order given."""
        names = list(names)
        seen: set[int] = set()
        found: list[Place] = []
        for i, (name, run) in enumerate(zip(names, self._runs(names), strict=True)):
            layer, block = self.graph.layers[name], self.block_of.get(name)
            reads, writes = self.spaces.of(name)
            to_stream = None if layer.is_depthwise else self.spaces.is_stream(writes)
            found.append(
                Place(
                    layer=layer,
                    reads=reads,
                    writes=writes,
                    stem=not self.fed_by[name],
                    head=name in self.heads,
                    from_stream=self.spaces.is_stream(reads),
                    to_stream=to_stream,
                    opens=to_stream and not seen.intersection(writes),
                    depthwise=layer.is_depthwise,
                    attention=block is not None and block.attention,
                    resolution=self.resolution.get(name),
                    depth=i / max(len(names) - 1, 1),
                    block=block,
                    run=run,
                    sizes=_sizes(layer),
                )
            )
            seen.update(writes)
        return found

    def _runs(self, names: Sequence[str]) -> list[int]:
        """A number for each layer of a sequence, equal for those of one run."""
        spaces = [self.spaces.of(name) for name in names]
        reading, writing = ([bool(self.spaces.is_stream(both[side])) for both in spaces] for side in (0, 1))
        blocks = [self.block_of.get(name) for name in names]
        runs: list[int] = []
        while len(runs) < len(names):
            start = len(runs)
            end = start + 1
            if blocks[start] is not None:
                while end < len(names) and blocks[end] is blocks[start]:
                    end += 1
            elif reading[start] and not writing[start]:
                while end < len(names) and not (
                    reading[end] or writing[end - 1] or blocks[end] or names[end] in self.heads
                ):
                    end += 1
                if not writing[end - 1]:
                    end = start + 1
            runs += [start] * (end - start)
        return runs

    def kind(self, name: str) -> tuple[str, bool]:
        """What the weights of a layer can be made from, and whether it is a head."""
        return self.graph.layers[name].rules.exchanges_as, name in self.heads

    def anchor(self, name: str) -> str:
        """The nearest layer of the chain before a layer that is not on it; empty if there is none."""
        seen = {name}
        stack = [name]
        found = ""
        while stack:
            for other in self.fed_by[stack.pop()]:
                if other in self.position:
                    found = max(found, other, key=lambda n: self.position.get(n, -1))
                elif other not in seen:
                    seen.add(other)
                    stack.append(other)
        return found


def _sizes(layer: Layer) -> tuple[float, float, float]:
    outputs = max(layer.out_channels, 1)
    inputs = max(math.prod(layer.shape[:2]) * layer.groups // outputs, 1)
    taps = layer.shape[2:]
    return math.log(outputs), math.log(inputs), math.log(max(math.prod(taps), 1)) / max(len(taps), 1)


def _fed_by(graph: LayerGraph) -> dict[str, list[str]]:
    """For each kernel the kernels whose data arrives at it through no further kernel, in execution order."""
    arriving: dict[str, dict[str, None]] = {}
    found: dict[str, dict[str, None]] = {layer.name: {} for layer in graph.kernels()}
    for node in graph.nodes:
        before = {name: None for source in node.inputs for name in arriving[source]}
        if node.layer is not None and node.layer in found:
            found[node.layer].update(before)
            before = {node.layer: None}
        arriving[node.id] = before
    return {name: [other for other in before if other != name] for name, before in found.items()}
