"""A second opinion from symbolic tracing (``torch.fx``), where that succeeds.

It follows code instead of a forward pass, so it errs differently: it stops at control flow that depends on shapes or
data, and what it does not stop at it may hide. Too slow for every run; the sweep and the tests ask for it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.graph import LayerGraph
from netgraft.trace.forward import build_on
from netgraft.trace.inputs import Traceable

LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)
FUNCTIONS = frozenset({F.linear, *(getattr(torch, f"conv{t}{n}d") for t in ("", "_transpose") for n in (1, 2, 3))})
NO_DATA = frozenset({"size", "dim", "numel", "shape", "ndim", "device", "dtype"})
"""Methods and attributes of tensors that say nothing of their values."""


def cross_check(model: Traceable, graph: LayerGraph) -> list[str]:
    """Warnings where the longest chain that symbolic tracing sees is not the one in ``graph``; mostly none.

    None either where symbolic tracing fails, or meets modules it cannot look into.
    """
    try:
        module = build_on(model.build, "meta")
        symbolic = fx.Tracer().trace(module)
    except Exception:  # any model may stop it, in any way
        return []
    length = _longest(symbolic, module)
    recorded = len(longest_chain(graph))
    if length is None or length == recorded:
        return []
    return [
        f"Symbolic tracing (torch.fx) sees a longest chain of {length} layers, the recorded forward pass {recorded}: "
        "shapes or data decide which layers run, or one of the two is wrong."
    ]


def _longest(graph: fx.Graph, module: nn.Module) -> int | None:
    """Most layers on a path from an input to the output; None if a module hides more than one layer."""
    length: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = max((length[other] for other in node.all_input_nodes if other in length), default=None)
        if node.op == "placeholder":
            length[node] = 0
        elif before is None or _no_data(node):
            continue
        elif node.op == "call_module":
            called = module.get_submodule(str(node.target))
            if not isinstance(called, LAYERS) and any(p.dim() >= 2 for p in called.parameters()):
                return None
            length[node] = before + isinstance(called, LAYERS)
        elif node.op == "call_function" and node.target not in FUNCTIONS and _matrices(node, module) > 1:
            return None  # a function kept whole, such as torchvision's window attention
        else:
            weight = (
                node.args[1] if node.op == "call_function" and node.target in FUNCTIONS and len(node.args) > 1 else None
            )
            length[node] = before + (isinstance(weight, fx.Node) and weight not in length)
        if node.op == "output":
            return length[node]
    return 0


def _matrices(node: fx.Node, module: nn.Module) -> int:
    """How many parameters that look like a layer's weight a call is handed directly."""
    keys = [str(other.target) for other in node.all_input_nodes if other.op == "get_attr"]
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return sum(key in parameters and parameters[key].dim() >= 2 for key in keys)


def _no_data(node: fx.Node) -> bool:
    name: Any = node.args[1] if node.target is getattr and len(node.args) > 1 else node.target
    return node.op in ("call_function", "call_method") and name in NO_DATA
