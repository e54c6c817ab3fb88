"""The target's pass on every batch, each as far as somebody has asked for, and no farther.

An early layer is fitted on few batches, for its maps are large and its unknowns few. The others wait at the beginning,
and pass through it when a later layer asks for them, with the weights that it got. So nothing is computed twice, and
what is kept of many batches at a time is what late layers read, which is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, fx

from netgraft.trace.replay import Replay


class Frontier:
    """Passes of one recording by number; ``inputs`` makes what a batch shows the network."""

    def __init__(self, recording: Replay, inputs: Callable[[int], Tensor]) -> None:
        self.recording, self.inputs = recording, inputs
        self.passes: dict[int, Replay] = {}

    def reach(self, node: fx.Node, batches: Iterable[int]) -> dict[int, Replay]:
        """The passes of these batches, each of which stands before ``node``, or beyond it."""
        for k in batches:
            if k not in self.passes:
                self.passes[k] = self.recording.beside(self.inputs(k))
            self.passes[k].advance(node)
        return {k: self.passes[k] for k in batches}

    def changed(self, start: fx.Node) -> None:
        """What begins at ``start`` has got other weights: passes that are beyond it run it again up to where they are.

        What the nodes between read beside it must be held.
        """
        for each in self.passes.values():
            if each.at > each.place[start]:
                each.again(start, each.nodes[each.at - 1])

    def release(self, nodes: Iterable[fx.Node]) -> None:
        """Undo a ``hold`` of the recording, in all passes, those to come among them; and drop what is left over."""
        for node in nodes:
            for each in (self.recording, *self.passes.values()):
                each.release(node)
        for each in self.passes.values():
            each.tidy()
