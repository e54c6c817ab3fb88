"""Attention whose weights look like those of a trained network (Trockman and Kolter, ICML 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field

from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.resolution import takes_image
from netgraft.channels.coordinates import position_tables
from netgraft.channels.groups.find import find_groups
from netgraft.plan import Pairing, Step
from netgraft.recipes._attention import OTHERWISE, Known, MadeAttention, known_attentions, refuse
from netgraft.recipes.protocol import Draft, Task


@dataclass(frozen=True)
class Mimetic:
    """Self-attention as in trained networks, made of nothing: queries times keys near I, values times projection -I.

    For every layer, with Z of independent normal entries of variance 1 / d, drawn anew for each head (Z_1) and layer
    (Z_2), d the width of the stream and k that of a head,

        W_q W_k^T ~ alpha Z_1 + beta I,             the best approximation of rank k, by SVD,
        W_v W_proj ~ value_alpha Z_2 - value_beta I,  over all heads together,

    each product split evenly between its two factors; positions become sines and cosines. All else keeps the target's
    own initialisation. The source is not read: a row to measure others against.

    Source: Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (ICML 2023, arXiv:2305.09828).

    Departs from the paper:
    - Biases of queries, keys, values and projection become zero: the paper's products have none.
    - The scale by which a network multiplies its logits stays what it is, as does what a norm in front multiplies with.
    - Tokens in front of the grid get zeros as positions. Where positions are no learned table on a square grid, as in
      Swin's windows, they stay as they are.
    - Attention whose heads cannot be told from its layers (normalised or rotated queries, keys that heads share) is
      left, as are values and projection unless both lie between streams of one width, which must hold all heads.
    - The default coefficients are those that arXiv:2404.01139 gives for it; the paper tunes them for each network.
    """

    alpha: float = field(default=0.7, metadata={"help": "random part of queries times keys"})
    beta: float = field(default=0.7, metadata={"help": "diagonal of queries times keys"})
    value_alpha: float = field(default=0.4, metadata={"help": "random part of values times projection"})
    value_beta: float = field(default=0.4, metadata={"help": "diagonal of values times projection, taken negative"})
    positions: bool = field(default=True, metadata={"help": "set position embeddings to sines and cosines"})
    seed: int = field(default=0, metadata={"help": "draws the random parts"})

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:  # noqa: ARG002
        """No pairs. Raises UsageError for a target without attention that can be set."""
        known, left = known_attentions(target)
        if not known:
            raise refuse("mimetic", left.values())
        return Pairing((), left)

    def plan(self, task: Task) -> Draft:
        """Queries, keys, values, projections and positions of the target."""
        made = MadeAttention(task.target)
        known, left = known_attentions(task.target)
        seed = self.seed * 1_000_003
        for each in known:
            for queries, keys in zip(each.rows.queries, each.rows.keys, strict=True):
                seed += 1
                options = {"alpha": self.alpha, "beta": self.beta, "seed": seed}
                why = "queries and keys whose product is near the identity"
                made.set_outputs(each.attention.query, "near-diagonal", queries, why, half="left", **options)
                made.set_outputs(each.attention.key, "near-diagonal", keys, why, half="right", **options)
                made.clear_bias(each.attention.query, queries, why)
                made.clear_bias(each.attention.key, keys, why)
            seed += 1
            if reason := self._values(made, each, seed):
                left[each.rows.projection or each.attention.value] = reason
        if self.positions and takes_image(task.target):
            for table in position_tables(task.target, find_groups(task.target)):
                step = Step("sincos", {"side": table.side, "prefix": table.extra})
                made.set_table(table.key, step, "sines and cosines of the place on the grid")
        return Draft(made.moves(), left, OTHERWISE)

    def _values(self, made: MadeAttention, each: Known, seed: int) -> str:
        """Sets values and projection, or says why they are left."""
        if not each.rows.projection:
            return "no linear layer reads all heads of its attention"
        values = made.graph.layers[each.attention.value]
        projection = made.graph.layers[each.rows.projection]
        rows, columns = (sum(heads, ()) for heads in (each.rows.values, each.rows.columns))
        width = values.shape[0 if values.transposed else 1]
        if width != projection.out_channels or len(rows) > width or "weight" not in projection.tensors:
            return "values and projection do not lie between streams of one width that holds all heads"
        options = {"alpha": self.value_alpha, "beta": -self.value_beta, "seed": seed}
        why = "values and projection whose product is near minus the identity"
        made.set_outputs(values.name, "near-diagonal", rows, why, half="left", **options)
        made.set_inputs(projection.name, "near-diagonal", columns, why, half="right", **options)
        made.clear_bias(values.name, rows, why)
        made.clear_bias(projection.name, range(projection.out_channels), why)
        return ""
