from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from netgraft import plugins
from netgraft.data.generators._draw import checked


@dataclass(frozen=True)
class Mix:
    """Equal shares of several generators with their usual options, shuffled: the fair default for an unknown domain."""

    of: tuple[str, ...] = field(
        default=("blobs", "strokes", "pink", "leaves", "noise"),
        metadata={"help": "the generators, by name or ./own_generator.py"},
    )

    def __post_init__(self) -> None:
        if not self.of or "mix" in self.of:
            raise ValueError(f"of must name one or more other generators: {', '.join(self.of) or 'none'}")

    def __call__(self, count: int, size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        parts = [plugins.create("data.generators", name, {}) for name in self.of]
        images = torch.empty((count, *size), dtype=torch.float32, device=generator.device)
        order = torch.randperm(count, generator=generator, device=generator.device)
        for k, (name, part) in enumerate(zip(self.of, parts, strict=True)):
            places = order[k :: len(parts)]
            if len(places):
                images[places] = checked(part(len(places), size, generator), (len(places), *size), name)
        return images
