"""Small pretrained nets that travel with the package, so that the main job runs where no model hub can be reached.

Both read the letters a to z (upper and lower case merged: 26 classes) in 16x16 grey images. They were trained on
letters drawn from 1057 fonts of 200 typeface families, free fonts packaged by Debian; no font is shipped, only weights.
They never saw a digit, so that reading digits is a new task for them.

===============  ==========  ===================  ===============  ==============
net              parameters  held-out, augmented  held-out, plain  training fonts
===============  ==========  ===================  ===============  ==============
resnet20-glyphs  273,226     92.5 %               94.5 %           95.7 %
vgg11-glyphs     581,562     92.3 %               94.9 %           95.8 %
===============  ==========  ===================  ===============  ==============

Top-1 accuracy of the shipped fp16 weights on fresh renders, every family counting the same. *Held-out* are 162 fonts of
34 families which the training never saw, some of them hardly legible (counting every font the same, 96.4 % and 96.5 %).
*Augmented* renders vary in size, place, rotation, shear, stroke weight, softness, contrast, noise and polarity, as in
the training; the training fonts' figure is of augmented renders too. *Plain* ones are upright, centred, white on black.
Nearly a quarter of the errors are i for l or the reverse: capital I and small l look alike in many fonts.

Ten epochs (one render of each letter of each font in each, about 4,300 steps of 128 images) of SGD with momentum 0.9, a
cosine from 0.1 and label smoothing 0.1; 12 and 11 CPU minutes on one core. The script is
``examples/pretrain_glyphs.py``; it also tells which fonts. Inputs are grey values in 0 to 1, less ``mean`` 0.5, over
``std`` 0.35. The weights files repeat these facts in their metadata, as JSON under ``training``.

Importing this module imports no torch.
"""

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
    """One net: ``builder`` is ``module:class``, ``weights`` a file beside this one, ``about`` one line for people.

    The net expects grey values in 0 to 1, less ``mean``, over ``std``.
    """

    builder: str
    weights: str
    about: str
    mean: float = 0.5
    std: float = 0.35


NETS: dict[str, Embedded] = {
    "resnet20-glyphs": Embedded(
        "netgraft.models.embedded.resnet20:ResNet20",
        "resnet20_glyphs.safetensors",
        "ResNet-20, 273,226 parameters: letters a-z in 16x16 grey images, 92.5% top-1 on unseen typefaces",
    ),
    "vgg11-glyphs": Embedded(
        "netgraft.models.embedded.vgg11:VGG11",
        "vgg11_glyphs.safetensors",
        "slim VGG-11 with BatchNorm, 581,562 parameters: letters a-z in 16x16 grey images, "
        "92.3% top-1 on unseen typefaces",
    ),
}


def names() -> list[str]:
    """The names of the embedded nets, sorted."""
    return sorted(NETS)


def build(name: str, **kwargs: Any) -> nn.Module:
    """The net ``name`` with random weights; ``kwargs`` are its constructor's (``num_classes``, ``in_chans``).

    Raises ``UnknownName``.
    """
    module, _, cls = _entry(name).builder.partition(":")
    net: nn.Module = getattr(importlib.import_module(module), cls)(**kwargs)
    return net


def weights_path(name: str) -> Path:
    """Where the pretrained weights of ``name`` lie. Raises ``UnknownName``."""
    return Path(str(files("netgraft.models.embedded") / _entry(name).weights))


def _entry(name: str) -> Embedded:
    if name not in NETS:
        raise UnknownName("embedded net", name, NETS)
    return NETS[name]
