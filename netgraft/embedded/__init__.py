"""Small nets that travel with the package, so that the main job runs without a model hub. (numbers follow)"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgraft.errors import UnknownName

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Embedded:
    """One net: ``builder`` is ``module:class``, ``weights`` the file beside this one."""

    builder: str
    weights: str
    about: str


NETS: dict[str, Embedded] = {
    "resnet20-glyphs": Embedded("netgraft.embedded.resnet20:ResNet20", "resnet20_glyphs.safetensors", ""),
    "vgg11-glyphs": Embedded("netgraft.embedded.vgg11:VGG11", "vgg11_glyphs.safetensors", ""),
}


def names() -> list[str]:
    """The names of the embedded nets, sorted."""
    return sorted(NETS)


def build(name: str, **kwargs: Any) -> nn.Module:
    """The net ``name`` with random weights; ``kwargs`` are its constructor's (``num_classes``, ``in_chans``).

    Raises ``UnknownName``.
    """
    module, _, cls = _entry(name).builder.partition(":")
    return getattr(importlib.import_module(module), cls)(**kwargs)  # type: ignore[no-any-return]


def weights_path(name: str) -> Path:
    """Where the pretrained weights of ``name`` lie. Raises ``UnknownName``."""
    return Path(str(files("netgraft.embedded") / _entry(name).weights))


def _entry(name: str) -> Embedded:
    if name not in NETS:
        raise UnknownName("embedded net", name, NETS)
    return NETS[name]
