"""The strategy: cheap and exact first, then what else makes the forward pass run.

``meta`` runs the forward pass on the meta device, where nothing is computed or allocated. ``meta, values built on the
CPU`` is for constructors that compute with tensors' values. ``cpu`` runs it on real values, for models whose control
flow depends on data; it follows the branches that one example takes.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netgraft.architecture.graph import LayerGraph
from netgraft.errors import BuildError, ForwardError, NetgraftError, TraceError
from netgraft.models.construct import brief, user_line
from netgraft.trace.caches import forget
from netgraft.trace.forward import build_on, record, run
from netgraft.trace.inputs import Example, Traceable, examples_for, given_examples, needed_inputs
from netgraft.trace.reduce import reduce_graph
from netgraft.trace.structure import dashed

SECONDS = 120.0
"""How long forward passes on real values may take, over all inputs that are tried."""


@dataclass(frozen=True)
class Rung:
    """One way to get through a forward pass."""

    name: str
    device: str
    batches: tuple[int, ...] = (2, 1)  # tried in turn


META = Rung("meta", "meta")
PARAMETERS = Rung("meta, values built on the CPU", "meta")
CPU = Rung("cpu", "cpu", (1, 2))


@dataclass(frozen=True)
class Failure:
    """Why a rung did not hold."""

    rung: Rung
    error: BaseException
    example: Example | None = None  # None: the model was not even built


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def trace(model: Traceable, *, seconds: float = SECONDS) -> LayerGraph:
    """The layer graph of ``model``, on the first rung that holds.

    ``seconds`` limits the forward passes on real values. Raises what ``model.build`` raises, ForwardError if the
    model's own forward pass fails on every input, TraceError if it works but cannot be recorded.
    """
    given = given_examples(model)
    failures: list[Failure] = []
    for rung in (META, PARAMETERS, CPU):
        if rung is PARAMETERS and failures[-1].example is not None:
            continue  # the constructor did work without values
        try:
            return _climb(rung, model, given, seconds)
        except _Failed as failed:
            failures.append(failed.failure)
    raise _explain(model, failures) from failures[-1].error


def _climb(rung: Rung, model: Traceable, given: list[Example], seconds: float) -> LayerGraph:
    try:
        fresh: nn.Module = _build(rung, model)
    except (Exception, SystemExit) as error:
        raise _Failed(Failure(rung, error)) from error
    try:
        return _record(rung, model, given, seconds, fresh)
    finally:
        forget(fresh)


def _record(rung: Rung, model: Traceable, given: list[Example], seconds: float, fresh: nn.Module) -> LayerGraph:
    """The graph of a forward pass on the first input that works."""
    module: nn.Module | None = fresh
    deadline = time.monotonic() + seconds if rung is CPU else None
    failures: list[Failure] = []
    for example in given or examples_for(model, fresh, rung.batches):
        module = module or _build(rung, model)
        try:
            graph, module = record(lambda: _build(rung, model), example, rung.device, module=module, deadline=deadline)
        except (Exception, SystemExit) as error:
            module = None
            failures.append(Failure(rung, error, example))
            if isinstance(error, TimeoutError):
                break
            continue
        traced = reduce_graph(graph, module, rung=rung.device)
        return replace(traced, warnings=(*_remarks(rung, example, not given), *traced.warnings))
    late = isinstance(failures[-1].error, TimeoutError)
    raise _Failed(failures[-1 if late else 0])


def _remarks(rung: Rung, example: Example, made_up: bool) -> Iterator[str]:
    if example.guessed:
        size = ",".join(map(str, example.guessed))
        yield f"The input size {dashed(example.guessed)} was guessed; say --input-size {size} if it is another."
    if len(example.args) > 1 and made_up:
        yield (
            f"The {len(example.args)} inputs of forward were all given the same size; "
            "a function example_inputs() in the model's file would say what they are."
        )
    if rung is CPU:
        yield (
            "The forward pass needs real values; it was followed on one random input, "
            "and branches that this input does not take are not in the graph."
        )


# ------------------------------------------------------------------------------------------------------------ building


def _build(rung: Rung, model: Traceable) -> nn.Module:
    if rung is CPU:
        return build_on(model.build, "cpu")
    try:
        with parameters_on_meta():  # on the first rung too: model.build may take to the CPU by itself
            module = build_on(model.build, "cpu" if rung is PARAMETERS else "meta")
    except (Exception, SystemExit):
        if rung is META:
            raise
        module = build_on(model.build, "cpu")  # the constructor looks at the values of parameters too
    move_to_meta(module)
    return module


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Every parameter goes to the meta device as it is registered; other tensors keep their values."""
    original = nn.Module.register_parameter
    moved: dict[int, tuple[weakref.ref[Tensor], nn.Parameter]] = {}

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta" and not is_lazy(parameter):
            original_of, replacement = moved.get(id(parameter), (None, None))
            if original_of is None or original_of() is not parameter or replacement is None:
                replacement = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
                moved[id(parameter)] = (weakref.ref(parameter), replacement)
            parameter = replacement
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def move_to_meta(module: nn.Module) -> None:
    """Move parameters, buffers and plain tensor attributes to the meta device; what was shared stays shared.

    (``module.to("meta")`` unties tied weights, and leaves plain attributes behind.)
    """
    moved: dict[int, tuple[Tensor, Tensor]] = {}

    def move(tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta" or is_lazy(tensor):
            return tensor
        if id(tensor) not in moved:
            empty = torch.empty_like(tensor, device="meta")
            moved[id(tensor)] = (
                tensor,
                nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty,
            )
        return moved[id(tensor)][1]

    for part in module.modules():
        places: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, part.__dict__)
        for tensors in places:
            tensors.update({name: move(value) for name, value in tensors.items() if isinstance(value, Tensor)})


# ---------------------------------------------------------------------------------------------------------- explaining


def _explain(model: Traceable, failures: list[Failure]) -> NetgraftError:
    """The error for a model that no rung could trace."""
    last = failures[-1]
    if isinstance(last.error, NetgraftError):
        return last.error
    where = user_line(last.error, model.file)
    if last.example is None:
        return BuildError(f"{model.name} could not be built: {brief(last.error)}", where=where)
    if isinstance(last.error, TimeoutError):
        return TraceError(
            f"The forward pass of {model.name} on an input of {last.example} did not end within the time limit.",
            where=_each(failures),
            hint="Say a smaller --input-size.",
        )
    plain, needed = _plain_failure(model, last.example)
    if plain is None:
        return TraceError(
            f"The forward pass of {model.name} works, but could not be recorded.",
            where=_each(failures),
            hint="netgraft needs PyTorch operations on one device; data that passes through other code is not seen.",
        )
    guess = " (guessed)" if last.example.guessed else ""
    if len(needed) > 1 and model.example_inputs is None:
        return ForwardError(
            f"The forward method of {model.name} takes {len(needed)} inputs ({', '.join(needed)}), "
            f"and inputs of {last.example}{guess} do not fit: {brief(plain)}",
            where=user_line(plain, model.file),
            hint="Write a function example_inputs() in the model's file that returns a tuple of them.",
        )
    return ForwardError(
        f"The forward pass of {model.name} failed on an input of {last.example}{guess}: {brief(plain)}",
        where=user_line(plain, model.file),
        hint=(
            "Say --input-size C,H,W, the input's shape without the batch axis, "
            "or write a function example_inputs() in the model's file that returns what forward takes."
        ),
    )


def _plain_failure(model: Traceable, example: Example) -> tuple[BaseException | None, list[str]]:
    """How a forward pass on the CPU fails when nothing watches it (None if it does not), and what forward needs."""
    module = build_on(model.build, "cpu").eval()
    try:
        run(module, example, "cpu")
    except (Exception, SystemExit) as error:
        return error, needed_inputs(module)
    return None, []


def _each(failures: list[Failure]) -> str:
    return "\n".join(f"{failure.rung.name}: {brief(failure.error)}" for failure in failures)
