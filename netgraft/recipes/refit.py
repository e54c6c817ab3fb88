"""Weights, then every layer refitted to what its source layer computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from netgraft.architecture.attention import is_transformer
from netgraft.architecture.graph import LayerGraph
from netgraft.channels.coordinates import find_token_streams
from netgraft.plan import WantedPass
from netgraft.recipes._scale import scaled
from netgraft.recipes.graft import Graft


@dataclass(frozen=True)
class GraftAndRefit(Graft):
    """The weights of ``graft``, then a closed-form refit of each layer on synthetic images: no data, no labels.

    Each target layer is regressed, in execution order, onto what its source layer makes of the same images (OPERATORS
    part 3). The knowledge moves with the activations, so widths, kernels and kinds of layer may differ freely. A
    transformer that is to follow convolutions gets attention that reads neighbours first (pass ``neighbours``).
    """

    generator: str = field(
        default="mix", metadata={"help": "where images come from: a generator, or unlabelled ones (folder or picture)"}
    )
    refit_images: int = field(
        default=2048, metadata={"help": "most synthetic images for the refit; layers whose maps are large see fewer"}
    )
    gain: float = field(
        default=1.0, metadata={"help": "scale of kernels before a batch norm, as a multiple of He et al.'s (rescale)"}
    )
    follow: Literal["auto", "stages", "plan"] = field(
        default="auto",
        metadata={
            "help": "refit to how far the source has come, or to where the weights came from; "
            "auto: the latter between transformers"
        },
    )

    keep_head: bool = field(
        default=False, metadata={"help": "the target's own head learns the source's classes, and stays"}
    )

    def passes(self, source: LayerGraph, target: LayerGraph) -> tuple[WantedPass, ...]:
        """What runs after the moves, by name and options."""
        return (*self.refitting(source, target), ("recalibrate", {}), scaled(self.gain))

    def refitting(self, source: LayerGraph, target: LayerGraph) -> tuple[WantedPass, ...]:
        """The pass ``refit``, and what comes before it.

        Between transformers most of what was grafted is as it should be, where it stands. Attention that is to follow
        convolutions reads neighbours first.
        """
        before, after = is_transformer(source), is_transformer(target)
        pairs = self.follow if self.follow != "auto" else "plan" if before and after else "stages"
        options: dict[str, object] = {"images": self.refit_images, "pairs": pairs}
        if self.keep_head:
            options["head"] = "keep"
        if after and not before:
            return (("neighbours", {}), ("refit", options | {"values": True}))
        return (("refit", options),)


def worth_refitting(source: LayerGraph, target: LayerGraph) -> bool:
    """Whether a refit is any good: what convolutions do attention can only follow where it reads neighbours."""
    return not is_transformer(target) or is_transformer(source) or bool(find_token_streams(target))
