"""One decoder that two networks of different widths share: where their features meet, and what they reconstruct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, FeaturePair, Outputs, Part, Run
from netgraft.finetune.toolbox.adapters import features, pairs_of, width
from netgraft.finetune.toolbox.mirror import Mirror, as_map, image_shape, mirror, mirrored_chain, resized
from netgraft.models.running import find_submodule, hearing_outputs

DECODER, SOURCE_ADAPTER, TARGET_ADAPTER = "decoder", "source_adapter", "target_adapter"
"""Names of the parts: the decoder, and how each network's features enter it."""


def decoder_modules(run: Run, factor: float) -> dict[str, nn.Module]:
    """The mirror of the target up to the features of the last pair, and a 1x1 convolution from each side to its width.

    ``factor`` multiplies the widths inside of the mirror. Raises UsageError where no mirror can be built.
    """
    pair = _meeting(run)
    decoder = mirror(run.graph, layers_before(run, pair.target), width(pair.target_shape), factor=factor)
    return {
        DECODER: decoder,
        SOURCE_ADAPTER: nn.Conv2d(width(pair.source_shape), decoder.width, 1),
        TARGET_ADAPTER: nn.Conv2d(width(pair.target_shape), decoder.width, 1),
    }


def layers_before(run: Run, path: str) -> tuple[str, ...]:
    """The layers of the target's chain that have run when the module at ``path`` is done, in order."""
    chain, module = mirrored_chain(run.graph), run.target_module
    found = {name: find_submodule(module, name) for name in (*chain, path)}
    done: list[str] = []

    def keep(name: str, _: nn.Module, __: Any) -> None:
        done.append(name)

    with torch.no_grad(), hearing_outputs({name: m for name, m in found.items() if m is not None}, keep):
        run.target(torch.zeros(1, *image_shape(run.graph), device=run.device), train=False)
    before = set(done[: done.index(path) + 1])
    last = max((place for place, name in enumerate(chain) if name in before), default=-1)
    return chain[: last + 1]


class SharedDecoder:
    """T1 with the networks' features in front of it."""

    def __init__(self, run: Run, parts: Mapping[str, Part]) -> None:
        self.run, self.pair = run, _meeting(run)
        decoder = parts[DECODER].module
        assert isinstance(decoder, Mirror)
        self.decoder: Mirror = decoder
        self.source_adapter, self.target_adapter = parts[SOURCE_ADAPTER].module, parts[TARGET_ADAPTER].module

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that both reconstructions share: of the decoder, without the adapters."""
        return [p for p in self.decoder.parameters() if p.requires_grad]

    def of_source(self, batch: Batch | Tensor) -> Tensor:
        """T1 o S of a batch, or of images as networks read them: images [B, C, H, W] in float32."""
        seen = features(self.run.source_module, self.run.source(batch, logits=False))
        return self._decode(self.source_adapter, seen[self.pair.source])

    def of_target(self, seen: Outputs) -> Tensor:
        """T1 o T2 of what a pass of the target gave: images [B, C, H, W] in float32."""
        return self._decode(self.target_adapter, features(self.run.target_module, seen)[self.pair.target])

    def _decode(self, adapter: nn.Module, seen: Tensor) -> Tensor:
        with self.run.autocast():
            placed = resized(as_map(seen, self.decoder.image), self.decoder.size)
            image: Tensor = self.decoder(adapter(placed))
        return image.float()


def _meeting(run: Run) -> FeaturePair:
    return pairs_of(run)[-1]
