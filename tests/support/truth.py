"""A network's wiring, found without looking at operations: by changing one layer's result and watching the rest.

Every layer that is a module's call is watched by hooks. Real values in double precision; parameters and the statistics
of norms are made unlike their initialisation, which leaves many paths without effect (zero gains, layer scales).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netgraft.architecture.graph import LayerGraph
from netgraft.trace.forward import build_on, calm
from netgraft.trace.inputs import Example, Traceable, examples_for, given_examples
from netgraft.trace.structure import map_tensors, tensors_in

SCALES = (0.5, -1.0, 10.0, 1e-3)
"""How strongly a layer's result is changed; tried in turn, since a saturated activation may swallow a change."""


class Specimen:
    """A model with real values, ready to be poked, and its layer graph."""

    def __init__(self, model: Traceable, graph: LayerGraph) -> None:
        self.graph = graph
        with double():
            self.example = self._example(model)
        self.module, self.untouched = self._make(model), self._make(model)
        self.plain = self._watch()
        self.nodes = self._nodes()

    def _make(self, model: Traceable) -> nn.Module:
        """The model afresh (some keep tensors of a forward pass), with weights that are nowhere neutral."""
        with double():
            module = build_on(model.build, "cpu").eval()
            if any(is_lazy(p) for p in module.parameters()):
                with calm("cpu"):
                    module(*self.example[0], **self.example[1])
        module.double()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                parameter.add_(0.1 * (spread or 1.0) * torch.rand_like(parameter))
            for name, buffer in module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(0, 0.1)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
        return module

    def changed_by(self, id: str) -> set[str]:
        """Ids of the watched nodes whose input changes with the result of node ``id``."""
        found: set[str] = set()
        for scale in SCALES:
            now = self._watch(self.nodes[id], scale)
            found |= {other for other, call in self.nodes.items() if not _same(self.plain[call], now.get(call))}
            if found == self.descendants(id):
                break
        return found

    def descendants(self, id: str) -> set[str]:
        """Ids of the watched nodes that the layer graph puts behind node ``id``."""
        seen, stack = set(), [id]
        while stack:
            for other in self.graph.dag.successors(stack.pop()):
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
        return seen & self.nodes.keys()

    def with_gradient(self) -> set[str]:
        """Names of the layers with a parameter that the gradient of the output reaches."""
        torch.manual_seed(2)
        module = self.untouched
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        args, kwargs = map_tensors(torch.clone, self.example)
        with double():
            outputs = [t for t in tensors_in(module(*args, **kwargs)) if t.requires_grad]
        named = dict(module.named_parameters())
        loss = sum((t * torch.randn_like(t)).sum() for t in outputs)
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        reached = {key for key, grad in zip(named, grads, strict=True) if grad is not None and bool(grad.ne(0).any())}
        return {
            name
            for name, layer in self.graph.layers.items()
            if any(slot.key in reached for slot in layer.tensors.values())
        }

    def _example(self, model: Traceable) -> tuple[tuple[Any, ...], dict[str, Any]]:
        module = build_on(model.build, "cpu").eval()
        examples: list[Example] = given_examples(model) or list(examples_for(model, module))
        for example in examples:
            args, kwargs = map_tensors(
                lambda t: torch.randn(t.shape, dtype=torch.float64) if t.is_floating_point() else t, example.on("cpu")
            )
            try:
                with calm("cpu"):
                    module(*args, **kwargs)
            except Exception:  # e.g. real numbers where tokens are meant
                continue
            return args, kwargs
        raise AssertionError("no example fits")

    def _nodes(self) -> dict[str, tuple[str, int]]:
        """Node ids of layers and the call of a module that each is; layers that are no module's call are left out."""
        calls = Counter(name for name, _ in self.plain)
        seen: Counter[str] = Counter()
        found = {}
        for node in self.graph.nodes:
            if (
                node.op == "layer"
                and node.layer is not None
                and calls[node.layer] == self.graph.layers[node.layer].calls
            ):
                found[node.id] = (node.layer, seen[node.layer])
                seen[node.layer] += 1
        return found

    def _watch(self, poked: tuple[str, int] | None = None, scale: float = 0.0) -> dict[tuple[str, int], list[Tensor]]:
        """(layer, call) -> the tensors that went in; the result of call ``poked`` is changed."""
        seen: dict[tuple[str, int], list[Tensor]] = {}
        count: dict[str, int] = defaultdict(int)
        chance = torch.Generator().manual_seed(0)

        def before(name: str, inputs: Any, kwargs: Any) -> None:
            seen[name, count[name]] = [tensor.detach().clone() for tensor in tensors_in((inputs, kwargs))]

        def after(name: str, output: Any) -> Any:
            call = (name, count[name])
            count[name] += 1
            return map_tensors(change, output) if call == poked else output

        def change(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            noise = torch.rand(tensor.shape, generator=chance, dtype=torch.float64) + 0.5
            return tensor + scale * noise * (tensor.abs().mean() + 0.01)

        with self._hooks(before, after), calm("cpu"), double():
            args, kwargs = map_tensors(torch.clone, self.example)
            self.module(*args, **kwargs)
        return seen

    @contextmanager
    def _hooks(self, before: Any, after: Any) -> Iterator[None]:
        handles = []
        for name, module in self.module.named_modules():
            if (name or "(model)") not in self.graph.layers:
                continue
            name = name or "(model)"
            handles += [
                module.register_forward_pre_hook(lambda _m, i, k, name=name: before(name, i, k), with_kwargs=True),
                module.register_forward_hook(lambda _m, _i, output, name=name: after(name, output)),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def double() -> Iterator[None]:
    """Tensors that the forward pass makes itself are in double precision too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _same(one: list[Tensor], other: list[Tensor] | None) -> bool:
    if other is None or len(one) != len(other):
        return False
    return all(torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) for a, b in zip(one, other, strict=True))
