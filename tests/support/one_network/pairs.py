"""All pairs: ours, and those of public libraries."""

from __future__ import annotations

from support.one_network.own_pairs import own_pairs
from support.one_network.pair import Pair
from support.one_network.transformer_pairs import transformer_pairs


def all_pairs() -> list[Pair]:
    """Each once, by the order of families. Raises ValueError where two have one name."""
    pairs = [*own_pairs(), *transformer_pairs()]
    names = [pair.name for pair in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Two pairs are called {', '.join(twice)}.")
    return pairs
