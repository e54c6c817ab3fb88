"""Attention that begins as a convolution with random one-tap filters (Zheng, Li and Lucey, 2024)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from netgraft.architecture.graph import LayerGraph
from netgraft.channels.coordinates import TokenStream, find_token_streams
from netgraft.plan import Pairing, Step
from netgraft.recipes._attention import OTHERWISE, MadeAttention, known_attentions, refuse
from netgraft.recipes.protocol import Draft, Task


@dataclass(frozen=True)
class Structured:
    """Self-attention that begins as a convolution: each head reads one neighbour of each token, drawn at random.

    Positions become sines and cosines P. For every head a tap of a ``size`` x ``size`` filter is drawn, H being the
    matrix that moves each token of the grid by it, and queries and keys are set such that

        softmax(scale N(P) W_q W_k^T N(P)^T) ~ H,

    N the norm in front of the attention (LayerNorm or RMSNorm): an impulse filter, on positions alone. Values,
    projections and all else keep the target's own initialisation. The source is not read: a row to measure others
    against.

    Source: Zheng, Li and Lucey, "Structured Initialization for Attention in Vision Transformers" (arXiv:2404.01139;
    NeurIPS 2025 as arXiv:2505.19985).

    Departs from the paper:
    - The paper fits W_q and W_k through the softmax by 10,000 steps of Adam on the squared error. Here the logits are
      fitted to H by least squares, in closed form (operator ``impulse``), and scaled to ``sharpness``. With
      sinusoidal positions products are sums of a function of the columns and one of the rows, so that the tap's row and
      column of the grid get half of its logit each; the softmax does the rest.
    - A rotation spreads what was fitted over all channels of a head, so that none begins at zero.
    - Tokens in front of the grid (the paper's networks have none) get zeros as positions; no head aims at them.
    - Biases of queries and keys become zero.
    - Only learned positions on a square grid of at least 3 x 3 tokens and 24 channels, added to a stream that is then
      only added to and normalised: what moves or scales tokens otherwise (windows, rotary positions) is left.
    """

    size: int = field(default=3, metadata={"help": "side of the filters that taps are drawn from, odd"})
    sharpness: float = field(default=10.0, metadata={"help": "the tap's logit over the mean logit of its token"})
    temperature: float = field(default=1e4, metadata={"help": "one over the lowest frequency of the positions"})
    seed: int = field(default=0, metadata={"help": "draws the taps"})

    def __post_init__(self) -> None:
        if self.size < 1 or not self.size % 2:
            raise ValueError("size must be odd and positive")
        if not (self.sharpness > 0 and self.temperature > 1):
            raise ValueError("sharpness must be positive, temperature above 1")

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:  # noqa: ARG002
        """No pairs. Raises UsageError for a target without attention that can be set."""
        known, left = known_attentions(target)
        streams = find_token_streams(target)
        if not any(known_attentions(target, stream.attentions)[0] for stream in streams):
            lacking = "no learned positions on a grid of 3 x 3 tokens or more, in a plain stream of 24 channels or more"
            raise refuse("structured", [*left.values(), *([lacking] if known else [])])
        return Pairing((), left)

    def plan(self, task: Task) -> Draft:
        """Queries, keys and positions of the target."""
        made = MadeAttention(task.target)
        chance = random.Random(self.seed)
        for stream in find_token_streams(task.target):
            self._stream(made, stream, chance)
        return Draft(made.moves(), {}, OTHERWISE)

    def _stream(self, made: MadeAttention, stream: TokenStream, chance: random.Random) -> None:
        grid = {"side": stream.side, "temperature": self.temperature}
        known, _ = known_attentions(made.graph, stream.attentions)
        if not known:
            return
        made.set_table(
            stream.positions,
            Step("sincos", {**grid, "prefix": stream.extra}),
            "sines and cosines of the place on the grid, which queries and keys read",
        )
        reach = min(self.size // 2, stream.side - 1)
        taps = [[down, right] for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)]
        for each in known:
            for queries, keys in zip(each.rows.queries, each.rows.keys, strict=True):
                options = {
                    **grid,
                    "tap": chance.choice(taps),
                    "scale": each.rows.scale,
                    "sharpness": self.sharpness,
                    "centred": stream.norm == "layer_norm",
                    "seed": chance.randrange(2**31),
                }
                sides = (each.attention.query, queries, "query"), (each.attention.key, keys, "key")
                for name, rows, half in sides:
                    why = "each head reads the token one tap away, drawn at random"
                    made.set_outputs(name, "impulse", rows, why, **options, half=half)
                    made.clear_bias(name, rows, why)
