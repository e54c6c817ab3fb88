"""Maps from the target's features to the source's: what makes layers of different widths comparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.protocol import FeaturePair, Outputs, Part, Run
from netgraft.finetune.toolbox.taps import submodule

LAST = nn.Linear, nn.LayerNorm
"""Layers that put their channels last, in maps too: [B, H, W, C]."""


def pairs_of(run: Run) -> tuple[FeaturePair, ...]:
    """The run's pairs with the shapes of maps as (C, H, W), whatever order the networks compute in."""

    def first(module: nn.Module | None, layer: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[2], *shape[:2]) if len(shape) == 3 and _is_last(module, layer) else shape

    return tuple(
        FeaturePair(
            pair.source,
            pair.target,
            first(run.source_module, pair.source, pair.source_shape),
            first(run.target_module, pair.target, pair.target_shape),
        )
        for pair in run.pairs
    )


def features(module: nn.Module | None, seen: Outputs) -> dict[str, Tensor]:
    """The outputs of all tapped layers of a network, maps as [B, C, H, W]."""
    return {
        layer: output.permute(0, 3, 1, 2) if output.dim() == 4 and _is_last(module, layer) else output
        for layer, output in seen.at.items()
    }


def _is_last(module: nn.Module | None, layer: str) -> bool:
    return module is not None and isinstance(submodule(module, layer), LAST)


def width(shape: tuple[int, ...]) -> int:
    """The number of channels of an output: (C, H, W), (tokens, width) or (features,)."""
    return shape[0] if len(shape) == 3 else shape[-1]


def adapter(shape: tuple[int, ...], channels: int) -> nn.Module:
    """A linear map of the channels at each place, from an output of this shape to so many ``channels``.

    A 1x1 convolution of maps, a linear layer of tokens and vectors. Neither BatchNorm nor ReLU follow: layers are
    often compared before their activation, and a ReLU can never match what is negative there.
    """
    return nn.Conv2d(width(shape), channels, 1) if len(shape) == 3 else nn.Linear(width(shape), channels)


def parts_with_adapters(run: Run, pairs: Iterable[FeaturePair]) -> dict[str, Part]:
    """The target, and a part "adapters" if the networks' widths differ in any of the pairs.

    A linear map from the target's channels to the source's where they are another number; else they are compared as
    they are. ``adapters_of`` finds them again.
    """
    adapters = nn.ModuleList(_where_wider(pair) for pair in pairs)
    trained = {"adapters": Part(adapters)} if any(True for _ in adapters.parameters()) else {}
    return {"target": Part(run.target_module), **trained}


def adapters_of(parts: Mapping[str, Part], pairs: Iterable[FeaturePair]) -> list[nn.Module]:
    """The map of each pair, in a method whose parts are those of ``parts_with_adapters``."""
    return list(parts["adapters"].module.children()) if "adapters" in parts else [nn.Identity() for _ in pairs]


def _where_wider(pair: FeaturePair) -> nn.Module:
    channels = width(pair.source_shape)
    return nn.Identity() if channels == width(pair.target_shape) else adapter(pair.target_shape, channels)


def channel_axis(module: nn.Module | None, layer: str, dimensions: int) -> int:
    """Which axis of the layer's own output of so many dimensions, as it computes it, are the channels."""
    return 1 if dimensions == 4 and not _is_last(module, layer) else dimensions - 1


def check_places(pairs: Iterable[FeaturePair]) -> None:
    """Raise UsageError where places have no counterpart: maps are resized, tokens are not."""
    for pair in pairs:
        if len(pair.target_shape) == 2 and pair.source_shape[0] != pair.target_shape[0]:
            where = f"{pair.source} {pair.source_shape}, {pair.target} {pair.target_shape}"
            hint = "Name other layers: --pairs SOURCE:TARGET; or give the source an input of another size."
            raise UsageError("Layers with different numbers of tokens cannot be compared.", where=where, hint=hint)
