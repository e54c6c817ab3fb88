"""Finds residual streams of tokens into which coordinates fit, so that attention can read neighbouring tokens.

An attention layer can compute what a convolution computes, one head for each tap of its kernel, if the tokens carry
their coordinates (Cordonnier et al., arXiv:1911.03584). They can be written to the position embedding, where a learned
one is added to tokens on a square grid: a ViT with patches of 16 has 14 x 14 tokens of 192 channels, and six of these
are enough for x^2 + y^2, x, y, 1, 0 and a mark on the class token. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import NamedTuple

from netgraft.architecture.attention import Attention, attentions
from netgraft.architecture.endings import find_endings
from netgraft.architecture.graph import Layer, LayerGraph, Node
from netgraft.architecture.operations import MOVES
from netgraft.architecture.resolution import grid_of, takes_image
from netgraft.architecture.scaling import usable_layers
from netgraft.channels.groups.axes import Var, normal, variables
from netgraft.channels.groups.find import Groups, find_groups
from netgraft.channels.stretch import stretch

CODES = 5
"""Channels that coordinates take: x^2 + y^2, x, y, 1 and 0; one more marks tokens in front of the grid."""
TERMS = 4
"""Products that a distance is a sum of: channels that a head needs."""
LEAST_WIDTH = 4 * (CODES + 1)
LEAST_SIDE = 3


@dataclass(frozen=True)
class TokenStream:
    """A residual stream of tokens in reading order, and what in it has to do with coordinates."""

    positions: str  # key of the position embedding [.., tokens, channels]
    side: int  # of the square grid, in tokens
    extra: int  # tokens in front of the grid that the embedding covers: class and register tokens
    width: int  # channels
    tokens: tuple[str, ...]  # keys of further tokens, [.., n, channels], that are put in front
    writers: tuple[Layer, ...]  # kernels whose outputs are added to the stream, or begin it
    attentions: tuple[Attention, ...]  # those whose queries, keys and values read it
    hidden: tuple[Layer, ...]  # other layers that read it, with an activation behind them
    norm: str  # "layer_norm" or "rms_norm": how it is normalised

    @property
    def codes(self) -> range:
        """The channels set aside for coordinates: the last ones."""
        return range(self.width - CODES - self.in_front, self.width)

    @property
    def in_front(self) -> bool:
        """Whether there are tokens in front of the grid."""
        return bool(self.extra or self.tokens)

    def keys(self, graph: LayerGraph) -> tuple[str, ...]:
        """Of all tensors that change when its attention is told to read neighbours."""
        names = [name for each in self.attentions for name in (each.query, each.key, each.value)]
        layers = [*self.writers, *(graph.layers[name] for name in names), *self.hidden]
        slots = [slot for layer in layers for role in ("weight", "bias") if (slot := layer.tensors.get(role))]
        parameters = [graph.slots[key] for key in (self.positions, *self.tokens)]
        return tuple(dict.fromkeys(key for slot in (*parameters, *slots) for key in slot.keys))


class PositionTable(NamedTuple):
    """A position embedding [.., tokens, channels] of tokens on a square grid."""

    key: str
    run: Var  # of channels that it lies in
    side: int  # of the grid, in tokens
    extra: int  # tokens in front of the grid that it covers


def find_token_streams(graph: LayerGraph) -> list[TokenStream]:
    """The streams of ``graph`` that can hold coordinates, with at least one attention that can read them.

    The stream must be only added to, normalised (LayerNorm or RMSNorm) and read, so that what is written once stays;
    the attention must see all of its tokens. So windows, downsampled keys, norms behind the addition are left out, and
    streams to which a layer writes whose weight is shared or prepared before use.
    """
    found: list[TokenStream] = []
    attending = attentions(graph) if takes_image(graph) else []
    if not attending:
        return found
    groups, usable = find_groups(graph), usable_layers(graph)
    for table in position_tables(graph, groups):
        run = table.run
        if table.side < LEAST_SIDE or run.size < LEAST_WIDTH:
            continue
        norm = stretch(graph, groups, run, scaled=True)
        if norm is None:
            continue
        seen = tuple(each for each in attending if _reads(graph, groups, usable, run, each, table.side))
        stream = _stream(graph, groups, usable, table, norm, seen) if seen else None
        if stream is not None and all(layer.name in usable for layer in stream.writers):
            found.append(stream)
    return found


def position_tables(graph: LayerGraph, groups: Groups) -> Iterator[PositionTable]:
    """The learned tables that are added to tokens which are a square grid, perhaps behind a few others."""
    seen = set()
    for node in graph.nodes:
        position = _position(graph, groups, node)
        grid = None if position is None else grid_of(node.shape[-2])
        if position is not None and grid is not None and position[0] not in seen:
            seen.add(position[0])
            yield PositionTable(*position, *grid)


def _position(graph: LayerGraph, groups: Groups, node: Node) -> tuple[str, Var] | None:
    """The position embedding that the node adds to data, and the run of channels it lies in."""
    if node.op != "add" or len(node.inputs) != 2 or len(node.shape) != 3 or node.id not in graph.from_input:
        return None
    for id in node.inputs:
        layer = _parameter(graph, id)
        if layer is None:
            continue
        slot = next(iter(layer.tensors.values()))
        run = _run(groups, slot.key, -1)
        if slot.shape[-2:] == node.shape[-2:] and set(slot.shape[:-2]) <= {1} and run is not None:
            return slot.key, run
    return None


def _parameter(graph: LayerGraph, id: str) -> Layer | None:
    """The raw parameter that a node passes on as it is."""
    node = graph.by_id[id]
    while node.op in MOVES and len(node.inputs) == 1 and node.op != "slice":
        node = graph.by_id[node.inputs[0]]
    return graph.layer_of(node) if node.op == "parameter" else None


def _run(groups: Groups, key: str, axis: int) -> Var | None:
    axes = groups.axes.get(key, ())
    found = normal(axes[axis]) if len(axes) >= abs(axis) else None
    return found if isinstance(found, Var) else None


def _reads(graph: LayerGraph, groups: Groups, usable: Set[str], run: Var, attention: Attention, side: int) -> bool:
    """Whether queries, keys and values are plain linear maps of the stream, of all its tokens."""
    tokens = grid_of(graph.by_id[attention.node].shape[-2])
    if attention.heads is None or tokens is None or tokens[0] != side or graph.by_id[attention.node].shape[-1] < TERMS:
        return False
    for name in (attention.query, attention.key, attention.value):
        layer = graph.layers[name]
        if not _is_linear(layer, usable) or _run(groups, layer.tensors["weight"].key, 1) is not run:
            return False
    return True


def _is_linear(layer: Layer, usable: Set[str]) -> bool:
    """Whether it is a linear layer with its weight as [out, in]."""
    return layer.is_linear and not layer.transposed and layer.name in usable


def _stream(
    graph: LayerGraph,
    groups: Groups,
    usable: Set[str],
    table: PositionTable,
    norm: str,
    seen: tuple[Attention, ...],
) -> TokenStream:
    run, key = table.run, table.key
    writers, tokens, hidden = [], [], []
    endings = find_endings(graph)
    attending = {name for each in seen for name in (each.query, each.key, each.value)}
    for layer in graph.layers.values():
        slots = layer.tensors
        if layer.is_kernel and "weight" in slots:
            out = groups.axes[slots["weight"].key][1 if layer.transposed else 0]
            if any(var is run for var in variables(out)):
                writers.append(layer)
            elif (
                layer.name not in attending
                and _is_linear(layer, usable)
                and _run(groups, slots["weight"].key, 1) is run
            ):
                ending = endings.get(layer.name)
                hidden += [layer] if ending is not None and ending.activated else []
        elif layer.is_kernel and any(_touches(groups, slot.key, run) for slot in slots.values()):
            writers.append(layer)  # its weight is computed from these: it is not usable
        elif layer.kind == "parameter":
            slot = next(iter(slots.values()))
            if slot.key != key and len(slot.shape) > 1 and _run(groups, slot.key, -1) is run:
                tokens += [slot.key] if _joins(graph, layer) else []
    whole = tuple(tokens), tuple(writers), seen, tuple(hidden)
    return TokenStream(key, table.side, table.extra, run.size, *whole, norm)


def _touches(groups: Groups, key: str, run: Var) -> bool:
    return any(var is run for axis in groups.axes.get(key, ()) for var in variables(axis))


def _joins(graph: LayerGraph, layer: Layer) -> bool:
    """Whether a parameter is put in front of other tokens, or added to them, rather than multiplied with."""
    starts = [node.id for node in graph.nodes if node.layer == layer.name]
    reached = graph.walk(starts, forwards=True, through=lambda node: node.op in MOVES or node.id in starts)
    return any(node.op in ("cat", "add") for node in reached)
