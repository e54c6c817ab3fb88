"""What a matcher is: a frozen dataclass that says which source layer's weights go to which target layer.

It looks at graphs only, never at weights, and its answer does not depend on the names of layers, but for one that is
meant to go by names. Every target layer has at most one partner, and every kernel of the target without one a reason.
The smallest one is ``examples/own_matcher.py``. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from netgraft.architecture.graph import LayerGraph
from netgraft.plan import Pairing


class Matcher(Protocol):
    """See the module's text."""

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """Pairs in the target's order, and why other kernels of the target have none."""


@runtime_checkable
class Ablation(Protocol):
    """A matcher that can be wrong on purpose, to show what the right order is worth."""

    @property
    def ablation(self) -> bool: ...
