"""All pairs: ours, and those of public libraries."""

from __future__ import annotations

from support.one_network.hf_pairs import hf_pairs
from support.one_network.own_pairs import own_pairs
from support.one_network.pair import Pair
from support.one_network.smp_pairs import lite_pairs, smp_pairs
from support.one_network.text_pairs import text_pairs
from support.one_network.transformer_pairs import transformer_pairs
from support.one_network.zoo_pairs import zoo_pairs


def all_pairs() -> list[Pair]:
    """Each once, by the order of families. Raises ValueError where two have one name."""
    pairs = [*own_pairs(), *transformer_pairs(), *zoo_pairs(), *hf_pairs(), *smp_pairs(), *lite_pairs(), *text_pairs()]
    names = [pair.name for pair in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Two pairs are called {', '.join(twice)}.")
    return pairs
