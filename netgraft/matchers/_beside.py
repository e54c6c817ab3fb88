"""What goes along with paired layers: shortcuts, gates, norms, raw parameters. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from netgraft.architecture.graph import LayerGraph, Node
from netgraft.architecture.wiring import Wiring
from netgraft.matchers.longest_chain import unlike
from netgraft.plan import Pair

Owned = dict[tuple[str, str, str, int], list[str]]


def beside(theirs: Wiring, ours: Wiring, pairs: dict[str, Pair], why: dict[str, str], reuse: bool) -> None:
    """Pair the kernels of shortcuts between paired residual blocks, and those of gates on paired layers."""
    used: set[str] = set()

    def pair_up(there: Sequence[str], here: Sequence[str], text: str, lacking: str) -> None:
        there = [name for name in there if name not in used or reuse]
        for i, name in enumerate(here):
            if i >= len(there):
                why[name] = lacking
            elif reason := unlike(theirs.graph.layers[there[i]], ours.graph.layers[name]):
                why[name] = reason
            else:
                used.add(there[i])
                pairs[name] = Pair(there[i], name, text)

    shortcuts, gated = set(theirs.shortcuts), _gates(theirs)
    for block in ours.blocks:
        here = [name for name in block.kernels if name in ours.shortcuts]
        partners = [theirs.block_of.get(pairs[name].source) for name in block.kernels if name in pairs]
        partner = next((other for other in reversed(partners) if other is not None), None)
        there = [name for name in partner.kernels if name in shortcuts] if partner else []
        lacking = "the source's block has nothing in this place" if partner else "its residual block has no counterpart"
        pair_up(there, here, "shortcut of paired blocks", lacking)
    for anchor, here in _gates(ours).items():
        source = pairs[anchor].source if anchor in pairs else ""
        partner = theirs.block_of.get(source)
        there = gated.get(source, [])
        if not there and partner:
            there = [name for kernel in partner.kernels for name in gated.get(kernel, ())]
        lacking = f"{source} in the source has no gate" if source else "its gate scales a layer without a counterpart"
        pair_up(there, here, "gate of paired layers", lacking)


def _gates(wiring: Wiring) -> dict[str, list[str]]:
    """The kernels of gates by the layer of the chain that they look at."""
    found: dict[str, list[str]] = {}
    for name in wiring.gates:
        found.setdefault(wiring.anchor(name), []).append(name)
    return found


def attached(theirs: Wiring, ours: Wiring, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """(source, target, why) for every norm, scale or raw parameter in the same place beside a pair of kernels.

    Such a layer belongs to the kernel before it if nothing but single operations lie between and both stand in the same
    residual block, or outside of any; else to the first kernel that reads it: a norm at the entry of a block.
    """
    there, here = _owned(theirs), _owned(ours)
    taken: set[str] = set()
    places = list(dict.fromkeys((where, kind, axes) for _, where, kind, axes in here))
    for source, target in pairs:
        for where, kind, axes in places:
            for one, other in zip(
                there.get((source, where, kind, axes), ()), here.get((target, where, kind, axes), ()), strict=False
            ):
                if other not in taken:
                    taken.add(other)
                    yield one, other, f"{kind} {where} {target}"


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
