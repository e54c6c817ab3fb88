"""The options that say what to do with single layers, for the recipes that have them."""

from __future__ import annotations

from collections.abc import Sequence

from netgraft.architecture.graph import LayerGraph
from netgraft.matchers._overrides import override
from netgraft.plan import Pairing


def overridden(
    pairing: Pairing, source: LayerGraph, target: LayerGraph, maps: Sequence[str], skip: Sequence[str]
) -> Pairing:
    """``pairing`` with the layers of ``maps`` ("SOURCE=TARGET") paired, and those that ``skip`` matches left alone.

    Raises UsageError as ``matchers._overrides.override``.
    """
    pairs = [(there, here) for there, _, here in (text.partition("=") for text in maps)]
    return override(pairing, source, target, pairs, list(skip))
