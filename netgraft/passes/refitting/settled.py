"""What is as it should be before anything is fitted: layers that give what the source gives."""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import partial

import torch
from torch import Tensor, fx

from netgraft.architecture.endings import Ending, find_endings
from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.fitting import EXACT
from netgraft.passes.refitting.layout import Layout, channel_axis, layout_of, rows_of, sample
from netgraft.passes.refitting.regression import share
from netgraft.trace.replay import Replay

MOST_ROWS = 4096


def find_settled(
    sources: Sequence[Replay],
    targets: Sequence[Replay],
    pairs: Sequence[tuple[Layer, Layer]],  # (of the source, of the target): where weights came from
    channels: OutputChannels,
    moved: Container[str],  # layers of the target that hold weights of the source
    generator: torch.Generator,
) -> frozenset[str]:
    """Layers of the target that are to be left alone, norms and parameters among them.

    A kernel whose value at the end of its branch is the source's, with an R^2 of EXACT at least, and all that this
    value is computed from; then norms that came from the source and read only what such kernels give. The passes of
    both networks are on the same images, none of which anything is fitted on.
    """
    source, target = sources[0], targets[0]
    rows = -(-MOST_ROWS // len(sources))
    ends = [end for pair in pairs if (end := _compared(source, target, channels, *pair, rows, generator)) is not None]
    for side, passes in enumerate((sources, targets)):
        wanted: dict[fx.Node, list[_Compared]] = {}
        for end in ends:
            wanted.setdefault(passes[0].ends[end.nodes[side]], []).append(end)
        for each in passes:
            each.watch({node: partial(_take, side, at) for node, at in wanted.items()})
    graph = target.graph
    exact = [end.nodes[1] for end in ends if end.r2 >= EXACT]
    settled = {node.layer for node in graph.walk(exact) if node.layer is not None}
    for layer in graph.layers.values():
        if layer.rules.has_statistics and layer.name in moved and layer.name not in settled:
            before = _kernels_before(graph, layer)
            if before and before <= settled:
                settled.add(layer.name)
    return frozenset(settled)


class _Compared:
    """A value of either network, sampled in the same places of every pass."""

    def __init__(
        self, nodes: tuple[str, str], layouts: tuple[Layout, Layout], channels: tuple[Tensor, Tensor], rows: Tensor
    ) -> None:
        self.nodes, self.layouts, self.channels, self.rows = nodes, layouts, channels, rows
        self.sampled: tuple[list[Tensor], list[Tensor]] = [], []  # of either, pass by pass

    @property
    def r2(self) -> float:
        """The share of the source's variance that the target gives; 1 for two equal constants."""
        wanted, given = (torch.cat(values).double() for values in self.sampled)
        left, whole = (given - wanted).square().sum(), (wanted - wanted.mean(0)).square().sum()
        return 1.0 if float(left) == 0 else share(float(left), float(whole))


def _take(side: int, at: Sequence[_Compared], value: Tensor) -> None:
    for each in at:
        rows, channels = each.rows.to(value.device), each.channels[side].to(value.device)
        each.sampled[side].append(rows_of(value, each.layouts[side], rows)[:, channels].clone())


def _compared(
    source: Replay,
    target: Replay,
    channels: OutputChannels,
    source_layer: Layer,
    layer: Layer,
    rows: int,
    generator: torch.Generator,
) -> _Compared | None:
    """None where the two have no value of the same size and meaning."""
    endings = find_endings(source.graph).get(source_layer.name), find_endings(target.graph).get(layer.name)
    if endings[0] is None or endings[1] is None or _role(endings[0]) != _role(endings[1]):
        return None
    nodes = endings[0].node, endings[1].node
    layouts = _layout(source, nodes[0], source_layer), _layout(target, nodes[1], layer)
    places = [[n for i, n in enumerate(each.shape) if i != each.axis] for each in layouts]
    index = torch.tensor(list(channels(source_layer, layer)))
    mapped = (index >= 0).nonzero().flatten()
    whole = layouts[0].channels == source_layer.out_channels and layouts[1].channels == len(index)
    if places[0] != places[1] or not whole or not len(mapped):
        return None
    return _Compared(nodes, layouts, (index[mapped], mapped), sample(*layouts, rows, generator))


def _role(ending: Ending) -> tuple[bool, bool]:
    return ending.add is not None, ending.main


def _layout(replay: Replay, id: str, layer: Layer) -> Layout:
    shape = tuple(replay.ends[id].meta["shape"])
    return layout_of(shape, channel_axis(shape, layer), replay.inputs[0].shape[0])


def _kernels_before(graph: LayerGraph, layer: Layer) -> set[str]:
    starts = [node.id for node in graph.nodes if node.layer == layer.name]
    return {kernel.name for node in graph.walk(starts) if (kernel := graph.kernel_of(node)) is not None}
