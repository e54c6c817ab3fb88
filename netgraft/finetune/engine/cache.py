"""Features of the frozen source on disk, so that it runs once per image and view instead of once per epoch.

A cache folder holds one folder for each key: the source's weights, the data, the transform, the layers and the
precision. Whatever changes any of these has another key, so a file can be of no use but never wrong. Augmented images
are cached by view, which takes a finite number of them (``--views``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netgraft.errors import OutputError
from netgraft.files.atomic import written
from netgraft.finetune.protocol import Batch, Outputs

LOGITS = "logits"


class FeatureCache:
    """Outputs of layers, and logits, by data set, view and image; memory-mapped, shared by processes."""

    def __init__(
        self, folder: Path, key: Mapping[str, Any], counts: Mapping[str, int], layers: tuple[str, ...]
    ) -> None:
        """``counts`` is the number of images of each data set that is cached."""
        text = json.dumps(key, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.counts, self.layers = counts, layers
        self._files: dict[tuple[str, int, str], Tensor] = {}
        self._shapes: dict[str, list[int]] = {}
        self._text = text + "\n"

    def read(self, batch: Batch, logits: bool) -> Outputs | None:
        """What is known of all these images, on their device; None if anything is missing."""
        if batch.data not in self.counts or not self._load_shapes():
            return None
        wanted = (*self.layers, *((LOGITS,) if logits else ()))
        if any(name not in self._shapes for name in wanted):
            return None
        if not all(bool(self._done(batch, name)[batch.ids].all()) for name in wanted):
            return None
        found = {name: self._values(batch, name)[batch.ids].to(batch.x.device) for name in wanted}
        empty = batch.x.new_zeros((len(batch.ids), 0))
        return Outputs(found.pop(LOGITS, empty), found)

    def write(self, batch: Batch, seen: Outputs) -> None:
        """Keep what a pass gave; values first, then the marks that say so. Raises OutputError."""
        if batch.data not in self.counts:
            return
        self._begin()
        given = dict(seen.at) | ({LOGITS: seen.logits} if seen.logits.shape[1] else {})
        self._keep_shapes({name: list(value.shape[1:]) for name, value in given.items()})
        for name, value in given.items():
            self._values(batch, name)[batch.ids] = value.detach().float().cpu()
            self._done(batch, name)[batch.ids] = 1

    def _begin(self) -> None:
        """The folder, with its key for people to read."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "key.json").exists():
                self._write("key.json", self._text)
        except OSError as error:
            raise OutputError("The cache cannot be written.", where=f"{self.folder}: {error}") from error

    def _load_shapes(self) -> bool:
        if not self._shapes and (file := self.folder / "shapes.json").is_file():
            self._shapes = json.loads(file.read_text())
        return bool(self._shapes)

    def _keep_shapes(self, shapes: Mapping[str, list[int]]) -> None:
        self._load_shapes()
        if any(name not in self._shapes for name in shapes):
            self._shapes = {**self._shapes, **shapes}
            self._write("shapes.json", json.dumps(self._shapes))

    def _write(self, name: str, text: str) -> None:
        with written(self.folder / name) as file:
            file.write(text.encode())

    def _values(self, batch: Batch, name: str) -> Tensor:  # [images, *shape] float32
        shape = (self.counts[batch.data], *self._shapes[name])
        return self._map(batch, name, torch.float32, prod(shape)).view(shape)

    def _done(self, batch: Batch, name: str) -> Tensor:  # [images] uint8
        return self._map(batch, f"{name} done", torch.uint8, self.counts[batch.data])

    def _map(self, batch: Batch, name: str, dtype: torch.dtype, size: int) -> Tensor:
        place = batch.data, batch.view, name
        if place not in self._files:
            file = self.folder / hashlib.sha256(repr(place).encode()).hexdigest()[:32]
            self._files[place] = torch.from_file(str(file), shared=True, size=size, dtype=dtype)
        return self._files[place]
