"""Which output channels of its layers each head of an attention takes as queries, keys and values.

Implementations differ in the order of channels (heads first, roles first, interleaved) and in where they divide by the
root of a head's width. So both are found by sending numbers from the layers to the attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from netgraft.architecture.attention import Attention
from netgraft.trace.replay import Replay

Rows = tuple[int, ...]


@dataclass(frozen=True)
class Heads:
    """The heads of one attention, in order: head i multiplies channels ``queries[i]`` of one layer with ``keys[i]``."""

    queries: tuple[Rows, ...]
    keys: tuple[Rows, ...]
    values: tuple[Rows, ...]  # the channels that head i mixes
    scale: float  # what softmax reads, divided by the product of queries and keys as the layers put them out
    places: tuple[int, ...]  # the head at each place of the attention's leading axes, flattened
    operands: tuple[fx.Node, fx.Node]  # what is multiplied: queries [.., tokens, channels], and keys
    transposed: bool  # keys are [.., channels, tokens] there
    inner: float  # what softmax reads, divided by the product of the operands

    def attended(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[places, tokens, tokens]: the weight that each token gives to each, from the values of ``operands``."""
        queries, keys = queries.flatten(0, -3), keys.flatten(0, -3)
        products = queries @ (keys if self.transposed else keys.transpose(-2, -1))
        return (products.float() * self.inner).softmax(-1)


def find_heads(replay: Replay, attention: Attention) -> Heads | None:
    """None where queries, keys or values are more than the channels of their layers, perhaps times a number."""
    product, mixed = replay.ends[attention.product], replay.ends[attention.node]
    fused = product is mixed
    inner = _scale(product) if fused else _factor_between(replay, attention)
    query, key, value = (_node(each) for each in (*product.args[:2], mixed.args[2 if fused else 1]))
    layers = (attention.query, attention.key, attention.value)
    sent = [_sent(replay, layer, node) for layer, node in zip(layers, (query, key, value), strict=True)]
    if inner is None or any(each is None for each in sent):
        return None
    (q, q_factor), (k, k_factor), (v, _) = (each for each in sent if each is not None)
    if not fused:
        k = k.transpose(-2, -1)
    if q.shape != k.shape or any(bool((each != each[..., :1, :]).any()) for each in (q, k, v)):
        return None  # tokens that are read differently, or queries that share keys
    rows = [[tuple(row) for row in x.flatten(0, -3)[:, 0].tolist()] for x in (q, k, v)]
    if len(rows[0]) != len(rows[2]):
        return None
    each = list(zip(*rows, strict=True))
    heads = {head: number for number, head in enumerate(dict.fromkeys(each))}
    return Heads(
        queries=tuple(head[0] for head in heads),
        keys=tuple(head[1] for head in heads),
        values=tuple(head[2] for head in heads),
        scale=q_factor * k_factor * inner,
        places=tuple(heads[head] for head in each),
        operands=(query, key),
        transposed=not fused,
        inner=inner,
    )


def _node(argument: object) -> fx.Node:
    assert isinstance(argument, fx.Node)
    return argument


def _scale(node: fx.Node) -> float:
    """Of a fused attention."""
    given = node.kwargs.get("scale")
    query = _node(node.args[0]).meta["shape"]
    return float(given) if isinstance(given, (int, float)) else float(query[-1] ** -0.5)


def _factor_between(replay: Replay, attention: Attention) -> float | None:
    """What is between the product and softmax multiplies with this number; None if it does anything else."""
    product, weights = replay.ends[attention.product], replay.ends[attention.softmax]
    like = torch.ones(tuple(product.meta["shape"]), device=replay.device)
    return _factor(replay, product, _node(weights.args[0]), like)


def _sent(replay: Replay, layer: str, node: fx.Node) -> tuple[Tensor, float] | None:
    """The layer's channel behind every number that arrives at the node, and what it is multiplied with."""
    start = replay.ends[layer]
    shape = tuple(start.meta["shape"])
    numbers = torch.arange(shape[-1], dtype=torch.float32, device=replay.device).expand(shape)
    factor = _factor(replay, start, node, torch.ones_like(numbers))
    arrived = None if factor is None else replay.send(start, numbers, node)
    if factor is None or arrived is None:
        return None
    found = (arrived / factor).round()
    exact = torch.allclose(arrived, found * factor, rtol=1e-4, atol=1e-3 * abs(factor))
    return (found.long(), factor) if exact else None


def _factor(replay: Replay, start: fx.Node, end: fx.Node, ones: Tensor) -> float | None:
    """The number that every value is multiplied with between two nodes."""
    one, none = (replay.send(start, value, end) for value in (ones, torch.zeros_like(ones)))
    if one is None or none is None:
        return None
    difference = one - none
    factor = float(difference.flatten()[0])
    same = bool(torch.allclose(difference, difference.new_tensor(factor), rtol=1e-4))
    return factor if same and factor != 0 and bool(none.isfinite().all()) else None
