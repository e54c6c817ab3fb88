"""When the classifier's weights move."""

from __future__ import annotations

from netgraft.architecture.graph import Layer


def head_stays(option: str, there: Layer, here: Layer, *, from_head: bool) -> str:
    """Why the target's head ``here`` keeps its own initialisation; empty if it takes the weights of ``there``.

    ``option`` is "same-size", "always" or "never"; ``from_head``: whether ``there`` is the source's head.
    """
    if option == "always":
        return ""
    if option == "never":
        return "the head keeps its own initialisation (head=never)"
    if not from_head or there.out_channels != here.out_channels:
        sizes = f"{there.out_channels} outputs in the source, {here.out_channels} in the target"
        return f"the head keeps its own initialisation: {sizes} (--head moves it anyway)"
    return ""
