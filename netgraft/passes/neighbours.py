from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from netgraft.architecture.attention import Attention
from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.channels.coordinates import TokenStream, find_token_streams
from netgraft.passes.protocol import Stage
from netgraft.passes.refitting.heads import Heads, find_heads
from netgraft.passes.refitting.values import AimedAttention
from netgraft.plan import SET, Pairing
from netgraft.trace.replay import Replay

TAPS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
"""(dy, dx): the neighbour that each head in turn looks at."""
SHIFT = 3
"""Taps that every other attention begins later in this list, so that few heads cover more of them together."""
AMPLITUDE = 2.0
"""Standard deviation of coordinates in the stream."""
FAR = 8.0
"""Squared distance of the tokens in front from all others. Small enough: what reads it with weight, trains badly."""
BEND = 1.4
"""Standard deviation of what hidden layers put out, for a stream of variance 1."""
Tap = tuple[int, int]


@dataclass(frozen=True)
class Neighbours:
    """Let every head of a transformer's attention read one neighbour of each token, as the taps of a convolution do.

    Cordonnier et al. (arXiv:1911.03584, quadratic encoding), as an initialisation like ConViT's
    (arXiv:2103.10697). The last channels of the residual stream are set aside for the coordinates p of a
    token, which the position embedding holds: |p|^2, x, y, 1 and 0. Nothing else writes there. What is 0 shows how
    much a LayerNorm subtracts, so the others can be read behind it up to its scale s. With d = (dx, dy) the neighbour
    that a head looks at, its queries are (1, 2 (x + dx), 2 (y + dy), |p + d|^2) and its keys (-|p|^2, x, y, -1), so
    that the attention of token i is the softmax over j of

        -sharpness |p_j - (p_i + d)|^2 / (s_i s_j),

    a Gaussian around the neighbour. Values are random projections of all other channels. Class and register tokens
    have a mark instead of coordinates; they are far from all others, and read all alike. Hidden layers get a scale at
    which activations bend. By itself this makes no network better: a refit has to follow, which fits what the heads
    carry and what reads them.
    """

    sharpness: float = field(
        default=1.0, metadata={"help": "of attention: 1 / (2 variance) of the Gaussian, in tokens"}
    )

    fate: ClassVar[str] = SET

    def __post_init__(self) -> None:
        if not self.sharpness > 0:
            raise ValueError("sharpness must be positive")

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:  # noqa: ARG002
        """Queries, keys and values, position embeddings and tokens, whatever writes to their stream, hidden layers."""
        return tuple(dict.fromkeys(key for stream in find_token_streams(target) for key in stream.keys(target)))

    @torch.no_grad()
    def __call__(self, stage: Stage) -> dict[str, Any]:
        """``attentions`` that read neighbours, their ``heads``, and the ``left`` ones.

        ``focus``: the weight that heads give to the neighbour they are to look at, on average, on synthetic images.
        """
        streams = find_token_streams(stage.target.graph)
        stage.progress(f"turning the attention of {stage.target.model.name} to neighbours")
        replay = Replay(stage.target.module, stage.shown(stage.images(4, seed=6), stage.target))
        setting = _Setting(stage, replay, self.sharpness)
        for stream in streams:
            setting.stream(stream)
        heads = [each for _, each, _ in setting.done]
        return {
            "attentions": len(heads),
            "heads": sum(len(each.queries) for each in heads),
            "focus": setting.focus(),
            "left": setting.left,
        }


class _Setting:
    """Sets the weights of one stream after the other."""

    def __init__(self, stage: Stage, replay: Replay, sharpness: float) -> None:
        self.stage, self.replay, self.sharpness = stage, replay, sharpness
        self.tensors: dict[str, Tensor] = dict(stage.target.module.named_parameters(remove_duplicate=False))
        self.generator = torch.Generator().manual_seed(stage.seed)
        self.done: list[tuple[TokenStream, Heads, list[Tap]]] = []
        self.left: list[str] = []

    def stream(self, stream: TokenStream) -> None:
        found = [(each, find_heads(self.replay, each)) for each in stream.attentions]
        self.left += [each.node for each, heads in found if heads is None]
        known = [(each, heads) for each, heads in found if heads is not None]
        if not known:
            return
        units = self._place(stream)
        for number, (attention, heads) in enumerate(known):
            taps = [TAPS[(k + SHIFT * (number % 2)) % len(TAPS)] for k in range(len(heads.queries))]
            self._look(stream, attention, heads, taps, units)
            values = sorted({row for head in heads.values for row in head})
            self._project(stream, self.stage.target.graph.layers[attention.value], values)
            self.done.append((stream, heads, taps))
            data = tuple(range(stream.codes.start))
            aimed = AimedAttention(attention.query, attention.key, attention.value, heads, data)
            self.stage.prepared.attentions.append(aimed)
        for layer in stream.hidden:
            weight = self.tensors[layer.tensors["weight"].key]
            weight.mul_(BEND / sqrt(stream.width) / weight.std())

    def _place(self, stream: TokenStream) -> Tensor:
        """Writes coordinates to the embedding, and keeps all else from there; how large each code's unit is written."""
        *codes, _ = stream.codes
        table = self.tensors[stream.positions]
        grid = coordinates(stream.side).to(table)
        codes_of_tokens = torch.stack([(grid**2).sum(1), *grid.T, torch.ones(len(grid)).to(table)], 1)
        units = AMPLITUDE / torch.cat(
            [codes_of_tokens[:, :3].std(0, unbiased=False), codes_of_tokens.new_ones(1 + stream.in_front)]
        )
        table.zero_()
        places = table.view(-1, stream.width)
        places[stream.extra :, codes[:4]] = codes_of_tokens * units[:4]
        places[: stream.extra, codes[4:]] = AMPLITUDE
        for key in stream.tokens:
            self.tensors[key][..., stream.codes] = 0.0
            self.tensors[key][..., codes[4:]] = 0.0 if stream.extra else AMPLITUDE
        for layer in stream.writers:
            for slot in (layer.tensors[role] for role in ("weight", "bias") if role in layer.tensors):
                tensor = self.tensors[slot.key]
                (tensor.T if layer.transposed and tensor.dim() == 2 else tensor)[stream.codes] = 0.0
            self.stage.prepared.held[layer.name] = tuple(stream.codes)
        return units

    def _look(
        self,
        stream: TokenStream,
        attention: Attention,
        heads: Heads,
        taps: list[Tap],
        units: Tensor,
    ) -> None:
        layers = self.stage.target.graph.layers
        root = sqrt(self.sharpness / heads.scale)
        *codes, nought = stream.codes
        read = torch.zeros(len(codes), stream.width, device=units.device)
        read[range(len(codes)), codes] = 1 / units
        read[:, nought] = -1 / units  # what a norm has taken away from all
        square, x, y, one, *mark = read
        away = FAR * sum(mark, torch.zeros_like(square))
        for name, rows in ((attention.query, heads.queries), (attention.key, heads.keys)):
            all_rows = sorted({row for head in rows for row in head})
            for slot in (layers[name].tensors[role] for role in ("weight", "bias") if role in layers[name].tensors):
                self.tensors[slot.key][all_rows] = 0.0
        queries, keys = (self.tensors[layers[name].tensors["weight"].key] for name in (attention.query, attention.key))
        for (dy, dx), query, key in zip(taps, heads.queries, heads.keys, strict=True):
            squared = square + 2 * (dx * x + dy * y) + (dx**2 + dy**2) * one  # |p + d|^2
            queries[list(query[:4])] = root * torch.stack([one, 2 * (x + dx * one), 2 * (y + dy * one), squared])
            keys[list(key[:4])] = root * torch.stack([-square - away, x, y, -one])

    def _project(self, stream: TokenStream, layer: Layer, rows: list[int]) -> None:
        """Values: random projections, of variance 1 where the stream's is, that do not read coordinates."""
        weight = self.tensors[layer.tensors["weight"].key]
        values = torch.randn(len(rows), stream.width, generator=self.generator) / sqrt(stream.width)
        values[:, stream.codes] = 0.0
        weight[rows] = values.to(weight)

    def focus(self) -> float | None:
        """The weight on the neighbours meant, where they are inside the grid."""
        values: dict[fx.Node, Tensor] = {}
        nodes = {node for _, heads, _ in self.done for node in heads.operands}
        self.replay.watch({node: partial(values.__setitem__, node) for node in nodes})
        found = [
            _on_taps(heads.attended(*(values[node] for node in heads.operands)), stream.side, heads.places, taps)
            for stream, heads, taps in self.done
        ]
        return round(float(torch.cat(found).mean()), 3) if found else None


def coordinates(side: int) -> Tensor:
    """[side^2, 2]: x and y of each token of a square grid in reading order, from its centre."""
    line = torch.arange(side) - (side - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def _on_taps(attended: Tensor, side: int, places: Sequence[int], taps: Sequence[Tap]) -> Tensor:
    """The weights of all tokens on their neighbours inside the grid; ``attended``: [places, tokens, tokens]."""
    grid = attended[:, -(side**2) :, -(side**2) :].unflatten(1, (side, side)).unflatten(3, (side, side))
    found = []
    for weights, place in zip(grid, places, strict=True):
        dy, dx = taps[place]
        ys, xs = (torch.arange(max(0, -d), side - max(0, d), device=grid.device) for d in (dy, dx))
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        found.append(weights[y, x, y + dy, x + dx].flatten())
    return torch.cat(found)
