"""What a network does behind one of its layers, run again and again on other outputs of that layer.

A pass is recorded once: the outputs of all modules that were done before the layer was. Later passes take them from the
recording instead of running the modules, and run only what is behind the layer. That needs no trace of the network:
what stands in a ``forward`` between its modules is run each time, which is cheap beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from netgraft.finetune.toolbox.taps import each_tensor, first_tensor, submodule, with_first

CLOSE = 1e-2
"""Largest difference, by the norms, of a result from the recording and the network's: a wrong recording is far off."""


class Suffix:
    """A recorded pass of ``module`` in eval mode, without gradients, and what is behind ``layer`` in it.

    ``run(copies)`` runs the network once on that many copies of the batch, below each other, and returns what is to be
    compared, ``[copies * B, ...]``. ``output`` is what the layer put out, ``result`` what ``run`` returned for it. A
    layer that runs several times in a pass counts the first time. ``listened`` are layers that are called in every pass
    too, because somebody listens to them; before the layer they put out what is recorded.
    """

    def __init__(
        self, module: nn.Module, layer: str, run: Callable[[int], Tensor], batch: int, listened: Sequence[str] = ()
    ) -> None:
        self.module, self.layer, self._run, self._batch = module, submodule(module, layer), run, batch
        self._done: list[Any] = []  # outputs before the layer was done, in order, of calls from callers that were not
        self._open: set[nn.Module] = set()  # modules that had begun when the layer ran, and were not done
        paths = {path for name in listened for path in _around(name)}
        self._around = {submodule(module, path) for path in paths}  # run themselves, for the sake of what is in them
        self._whole: Any = None  # what the layer returned, of which ``output`` is the first tensor
        with _eager(module), self._recording():
            self.result = run(1)
        self.output: Tensor = first_tensor(self._whole)
        if not self._repeats():
            self._done = []

    @property
    def partial(self) -> bool:
        """Whether only what is behind the layer is run: not where nothing is before it, or the recording fails."""
        return bool(self._done)

    def __call__(self, outputs: Tensor) -> Tensor:
        """What ``run`` returns where the layer puts out these, ``[copies * B, ...]``, for copies of the batch."""
        copies = len(outputs) // len(self.output)
        replaced = with_first(_repeated(self._whole, copies, self._batch), outputs)
        with _eager(self.module), self._playing(replaced, copies):
            return self._run(copies)

    def _repeats(self) -> bool:
        """Whether two copies of the layer's own output give twice the same, from the recording."""
        if not self._done:
            return False
        try:
            found = self(self.output.repeat(2, *[1] * (self.output.dim() - 1)))
        except (RuntimeError, StopIteration, ValueError, IndexError, TypeError, AttributeError, KeyError):
            return False
        expected = self.result.repeat(2, *[1] * (self.result.dim() - 1))
        return found.shape == expected.shape and bool((found - expected).norm() <= CLOSE * expected.norm())

    @contextmanager
    def _recording(self) -> Iterator[None]:
        begun: list[tuple[nn.Module, int]] = []  # running modules, and how many were done before each
        recording = True

        def enter(module: nn.Module, _: Any) -> None:
            if recording:
                begun.append((module, len(self._done)))

        def leave(module: nn.Module, _: Any, output: Any) -> None:
            nonlocal recording
            if not recording:
                return
            _, before = begun.pop()
            if module is self.layer or module not in self._around:
                del self._done[before:]
            if module is self.layer:
                self._whole, recording = each_tensor(output, Tensor.clone), False
                self._open = {caller for caller, _ in begun}
            elif module not in self._around:
                self._done.append(each_tensor(output, Tensor.clone))  # what follows may work in place

        handles = [m.register_forward_pre_hook(enter) for m in self.module.modules()]
        handles += [m.register_forward_hook(leave) for m in self.module.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _playing(self, replaced: Any, copies: int) -> Iterator[None]:
        """Modules before the layer put out what is recorded, and the layer what it is given; then all as they are."""
        recorded, runs = iter(self._done), self._open | self._around
        behind = False

        def playing(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def play(*args: Any, **kwargs: Any) -> Any:
                nonlocal behind
                if behind or (module is not self.layer and (module in runs or not self._done)):
                    return forward(*args, **kwargs)
                if module is self.layer:
                    behind = True
                    if module in self._around:
                        forward(*args, **kwargs)
                    return replaced
                return _repeated(next(recorded), copies, self._batch)

            return play

        own = {module: vars(module).get("forward") for module in self.module.modules()}
        for module in own:
            module.forward = playing(module, module.forward)
        try:
            yield
        finally:
            for module, forward in own.items():
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward


@contextmanager
def _eager(module: nn.Module) -> Iterator[None]:
    """A compiled network runs as if it were not: what is compiled does not ask the modules."""
    compiled, module._compiled_call_impl = module._compiled_call_impl, None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled


def _around(path: str) -> list[str]:
    """The modules that a module is in, but for the whole: ``a`` and ``a.b`` of ``a.b.c``."""
    names = path.split(".")
    return [".".join(names[:depth]) for depth in range(1, len(names))]


def _repeated(value: Any, copies: int, batch: int) -> Any:
    """Copies below each other of tensors that have rows for each image; the others are the same for all images."""

    def repeat(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or len(tensor) % batch:
            return tensor.clone()
        return tensor.repeat(copies, *[1] * (tensor.dim() - 1))

    return each_tensor(value, repeat)
