"""What goes along with paired layers: shortcuts, gates, norms, raw parameters. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from netgraft.architecture.graph import LayerGraph, Node
from netgraft.architecture.wiring import Wiring
from netgraft.matchers.longest_chain import unlike
from netgraft.plan import Pair, Pairing

Owned = dict[tuple[str, str, str, int], list[str]]


@dataclass
class Matches:
    """What has been paired so far, by the target layer, and why other target layers are left alone."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def pairing(self, target: LayerGraph) -> Pairing:
        """All of it in the order of the target's layers; a pair counts more than a reason against one."""
        ordered = tuple(self.pairs[name] for name in target.layers if name in self.pairs)
        unpaired = {name: self.why[name] for name in target.layers if name in self.why and name not in self.pairs}
        return Pairing(ordered, unpaired)


def beside(source: Wiring, target: Wiring, found: Matches, *, reuse: bool) -> None:
    """Add to ``found`` the kernels of shortcuts between paired residual blocks, and those of gates on paired layers.

    With ``reuse`` a source layer may serve several.
    """
    used: set[str] = set()

    def pair_up(candidates: Sequence[str], names: Sequence[str], text: str, lacking: str) -> None:
        free = [name for name in candidates if name not in used or reuse]
        for i, name in enumerate(names):
            if i >= len(free):
                found.why[name] = lacking
            elif reason := unlike(source.graph.layers[free[i]], target.graph.layers[name]):
                found.why[name] = reason
            else:
                used.add(free[i])
                found.pairs[name] = Pair(free[i], name, text)

    shortcuts, gated = set(source.shortcuts), _gates(source)
    for block in target.blocks:
        names = [name for name in block.kernels if name in target.shortcuts]
        partners = [source.block_of.get(found.pairs[name].source) for name in block.kernels if name in found.pairs]
        partner = next((other for other in reversed(partners) if other is not None), None)
        candidates = [name for name in partner.kernels if name in shortcuts] if partner else []
        lacking = "the source's block has nothing in this place" if partner else "its residual block has no counterpart"
        pair_up(candidates, names, "shortcut of paired blocks", lacking)
    for anchor, names in _gates(target).items():
        gates_on = found.pairs[anchor].source if anchor in found.pairs else ""
        partner = source.block_of.get(gates_on)
        candidates = gated.get(gates_on, [])
        if not candidates and partner:
            candidates = [name for kernel in partner.kernels for name in gated.get(kernel, ())]
        lacking = (
            f"{gates_on} in the source has no gate" if gates_on else "its gate scales a layer without a counterpart"
        )
        pair_up(candidates, names, "gate of paired layers", lacking)


def _gates(wiring: Wiring) -> dict[str, list[str]]:
    """The kernels of gates by the layer of the chain that they look at."""
    found: dict[str, list[str]] = {}
    for name in wiring.gates:
        found.setdefault(wiring.anchor(name), []).append(name)
    return found


def attached(source: Wiring, target: Wiring, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """(source, target, why) for every norm, scale or raw parameter in the same place beside a pair of kernels.

    Such a layer belongs to the kernel before it if nothing but single operations lie between and both stand in the same
    residual block, or outside of any; else to the first kernel that reads it: a norm at the entry of a block.
    """
    source_owned, target_owned = _owned(source), _owned(target)
    taken: set[str] = set()
    places = list(dict.fromkeys((where, kind, axes) for _, where, kind, axes in target_owned))
    for source_kernel, target_kernel in pairs:
        for place in places:
            partners = source_owned.get((source_kernel, *place), ())
            names = target_owned.get((target_kernel, *place), ())
            for partner, name in zip(partners, names, strict=False):
                if name not in taken:
                    taken.add(name)
                    where, kind, _ = place
                    yield partner, name, f"{kind} {where} {target_kernel}"


def _owned(wiring: Wiring) -> Owned:
    """Layers that are no kernels by (kernel, "after" or "before" it, kind, number of axes), in execution order."""
    graph = wiring.graph
    block_of = {name: block for block in wiring.blocks for name in block.layers}
    readers = _readers(graph)
    found: Owned = {}
    seen: set[str] = set()
    for node in graph.nodes:
        layer = graph.layer_of(node)
        if layer is None or layer.name in seen or layer.is_kernel or not layer.tensors:
            continue
        name = layer.name
        seen.add(name)
        join = _join(graph, node)
        if join is None:
            continue
        kernel, where = _before(graph, join), "after"
        if kernel is None or (layer.is_norm and block_of.get(kernel) is not block_of.get(name)):
            kernel, where = readers.get(join.id), "before"
        if kernel is not None:
            found.setdefault((kernel, where, layer.kind, len(layer.shape)), []).append(name)
    return found


def _join(graph: LayerGraph, start: Node) -> Node | None:
    """Where a layer meets the data: its own node, or the first node after it that depends on the input."""
    after = graph.walk([start.id], forwards=True, through=lambda node: node.id not in graph.from_input)
    meetings = [node for node in after if node.id in graph.from_input]
    return min(meetings, key=lambda node: graph.position[node.id], default=None)


def _before(graph: LayerGraph, node: Node) -> str | None:
    """The kernel that a node's data comes from through single operations; None if others or a norm come first."""
    while True:
        data = [source for source in node.inputs if source in graph.from_input]
        if len(set(data)) != 1:
            return None
        node = graph.by_id[data[0]]
        layer = graph.layer_of(node)
        if layer is not None and (layer.is_kernel or layer.is_norm):
            return layer.name if layer.is_kernel else None


def _readers(graph: LayerGraph) -> dict[str, str]:
    """For every node the first kernel that its data reaches through no other kernel."""
    found: dict[str, str] = {}
    first: dict[str, int] = {}
    for node in reversed(graph.nodes):
        kernel = graph.kernel_of(node)
        for source in node.inputs:
            if kernel is not None:
                reached, name = graph.position[node.id], kernel.name
            elif node.id in found:
                reached, name = first[node.id], found[node.id]
            else:
                continue
            if source not in found or reached <= first[source]:
                first[source], found[source] = reached, name
    return found
