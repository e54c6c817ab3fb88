"""Turns an architecture into a ``LayerGraph`` by watching one forward pass.

``trace(model)`` is what other rooms call; ``trace_on`` and ``record`` are its steps, on a device the caller chooses.
"""

from netgraft.trace.forward import record, trace_on
from netgraft.trace.inputs import Example, Traceable
from netgraft.trace.rungs import trace

__all__ = ["Example", "Traceable", "record", "trace", "trace_on"]
