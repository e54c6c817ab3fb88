"""Runs a source and a grafted target on the same seeded inputs, and compares what they compute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netgraft.architecture.graph import LayerGraph
from netgraft.models.model import Model
from netgraft.models.running import find_submodule, hearing_inputs, hearing_outputs, load_state, one_thread
from netgraft.plan import Plan
from netgraft.trace.forward import build_on, run
from netgraft.trace.inputs import Example, fixed_chance, given_examples
from netgraft.trace.structure import dashed, first_shape, map_tensors, tensors_in

BATCH = 2
MOST = 4
"""How many times more numbers than its own a model may be fed for the sake of equal inputs."""


@dataclass(frozen=True)
class Party:
    """One of the two models, with the weights it is to be run with."""

    model: Model
    graph: LayerGraph
    tensors: Mapping[str, Tensor]


class Comparison(NamedTuple):
    """The source's and the target's output, or what stands in for it."""

    what: str  # "output" or "features"
    error: float | None  # ||y_s - y_t|| / ||y_s||
    why: str = ""  # there is no error


@dataclass(frozen=True)
class Parity:
    """What was seen when both models ran."""

    inputs: tuple[Example, Example]  # of the source, of the target
    comparison: Comparison
    ratios: Mapping[tuple[str, str], float]  # (source layer, target layer) -> target / source of the output's std
    unmeasured: int  # pairs of layers without such a ratio


@dataclass
class _Seen:
    outputs: list[Tensor]
    head_inputs: dict[str, Tensor] = field(default_factory=dict)  # by the head's name, at its first call
    spread: dict[str, float] = field(default_factory=dict)  # standard deviation of a layer's output, first call


def measure(plan: Plan, source: Party, target: Party, *, seed: int, precision: str) -> Parity:
    """Run both models once in eval mode, on one thread, and compare them.

    ``precision`` is "float64" or "float32". Layers of inserted blocks are left out, since they correspond to nothing in
    the source, and so are those that kept their own initialisation. Whatever a model's forward pass raises is raised.
    """
    moved = {move.key for move in plan.moves}
    own = {
        name for name, layer in target.graph.layers.items() if moved.isdisjoint(s.key for s in layer.tensors.values())
    }
    own.update(plan.pairing.inserted)
    pairs = [(pair.source, pair.target) for pair in plan.pairing.pairs if pair.target not in own]
    with one_thread():
        inputs, source_seen, target_seen = _run_both(source, target, seed, precision, pairs)
        comparison = _compare(plan, source.graph, target.graph, source_seen, target_seen, inputs)
    ratios = {}
    for pair in pairs:
        before, after = source_seen.spread.get(pair[0], math.nan), target_seen.spread.get(pair[1], math.nan)
        if 0 < before < math.inf and after < math.inf:  # not NaN either
            ratios[pair] = after / before
    return Parity(inputs, comparison, ratios, len(set(pairs)) - len(ratios))


# -------------------------------------------------------------------------------------------------------------- inputs


def draw_inputs(source: Party, target: Party, seed: int) -> tuple[Example, Example]:
    """What each model is fed: normal random numbers of the traced shape, or token numbers that both models know.

    The two are equal where the models were traced with the same shapes. What ``example_inputs()`` of a user's file
    gives keeps its structure, its shapes, and what is not a number to be drawn.
    """
    vocabularies = _vocabularies([source.graph, target.graph])
    given = [next(iter(given_examples(party.model)), None) for party in (source, target)]
    batches = [tensor.shape[0] for example in given if example for tensor in tensors_of(example)[:1] if tensor.dim()]
    for party in (source, target):
        if party.graph.rung == "meta" and _input_shapes(party.graph)[0][:1] == (1,):  # a batch of two did not work
            batches.append(1)
    batch = min(batches, default=BATCH)

    def drawn(template: Example) -> Example:
        generator = torch.Generator().manual_seed(seed)
        places = itertools.count()

        def fill(tensor: Tensor) -> Tensor:
            place = next(places)
            vocabulary = vocabularies[min(place, len(vocabularies) - 1)]
            if tensor.is_floating_point():
                return torch.randn(tensor.shape, generator=generator)
            if tensor.dtype in (torch.int32, torch.int64) and vocabulary:
                return torch.randint(vocabulary, tensor.shape, generator=generator, dtype=tensor.dtype)
            return tensor

        return _mapped(fill, template)

    return (
        drawn(given[0] or _template(source.graph, batch)),
        drawn(given[1] or _template(target.graph, batch)),
    )


def _vocabularies(graphs: Sequence[LayerGraph]) -> list[int]:
    """For each input the numbers below which it may be drawn: the rows of the tables it looks up; 0 where none is.

    An input that is not known to be looked up in any of them may be for the smallest.
    """
    found: list[list[int]] = [[] for _ in range(max(len(_input_shapes(graph)) for graph in graphs))]
    every: list[int] = []
    for graph in graphs:
        places = {node.id: place for place, node in enumerate(n for n in graph.nodes if n.op == "input")}
        for node in graph.nodes:
            layer = graph.layer_of(node)
            if layer is not None and layer.kind == "embedding" and node.op == "layer":
                every.append(layer.shape[0])
                for id in node.inputs:
                    if id in places:
                        found[places[id]].append(layer.shape[0])
    return [min(sizes or every, default=0) for sizes in found]


def tensors_of(example: Example) -> list[Tensor]:
    """The tensors among the arguments, in order."""
    return tensors_in((example.args, dict(example.kwargs)))


def _template(graph: LayerGraph, batch: int) -> Example:
    """Empty tensors of the shapes that were traced; whole numbers if an embedding reads one of them."""
    images = {node.id for node in graph.nodes if node.op == "input"}
    readers = [node for node in graph.nodes if node.layer and graph.layers[node.layer].kind == "embedding"]
    tokens = any(images & set(node.inputs) for node in readers)
    shapes = [(batch, *shape[1:]) for shape in _input_shapes(graph)]
    return Example(tuple(torch.zeros(shape, dtype=torch.int64 if tokens else torch.float32) for shape in shapes))


def _input_shapes(graph: LayerGraph) -> list[tuple[int, ...]]:
    return [node.shape for node in graph.nodes if node.op == "input"] or [()]


def _mapped(function: Any, example: Example) -> Example:
    return Example(map_tensors(function, example.args), map_tensors(function, dict(example.kwargs)))


# ------------------------------------------------------------------------------------------------------------- running


def _run_both(
    source: Party, target: Party, seed: int, precision: str, pairs: list[tuple[str, str]]
) -> tuple[tuple[Example, Example], _Seen, _Seen]:
    """Both on inputs of one size, the smaller first, if both take it; else each on inputs of its own."""
    source_layers, target_layers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    own = draw_inputs(source, target, seed)
    for example in sorted(own, key=_numbers) if _differ_in_size(*own) else ():
        if _numbers(example) > MOST * min(map(_numbers, own)):
            break
        with suppress(Exception, SystemExit):
            target_seen = _run(target, example, precision, target_layers)
            return (example, example), _run(source, example, precision, source_layers), target_seen
    return own, _run(source, own[0], precision, source_layers), _run(target, own[1], precision, target_layers)


def _numbers(example: Example) -> int:
    return sum(tensor.numel() for tensor in tensors_of(example))


def _differ_in_size(one: Example, other: Example) -> bool:
    """Whether two inputs differ, and only in height, width and the like."""
    shapes = [[(t.dtype, t.dim(), t.shape[:2], t.shape[2:]) for t in tensors_of(example)] for example in (one, other)]
    return shapes[0] != shapes[1] and [shape[:3] for shape in shapes[0]] == [shape[:3] for shape in shapes[1]]


def _run(party: Party, example: Example, precision: str, names: Iterable[str]) -> _Seen:
    """One forward pass of the party's model with the party's weights, and what its layers gave."""
    if (module := _laid_in(party)) is not None:
        with suppress(Exception, SystemExit):
            return _watch(party, module, example, precision, names)
    module = build_on(party.model.build, "cpu")
    load_state(module, party.tensors)
    return _watch(party, module, example, precision, names)


def _laid_in(party: Party) -> nn.Module | None:
    """The party's model built without drawing its initial values, which takes longer than running it.

    None if it has tensors that are not in its state_dict, or reads values in its constructor.
    """
    try:
        with torch.device("meta"), fixed_chance():
            module = party.model.build()
        load_state(module, {key: t.clone() for key, t in party.tensors.items()}, assign=True)
    except Exception:  # it shows again, and counts, when the model is built on the CPU
        return None
    left = (tensor for part in module.modules() for tensor in tensors_in(vars(part)))
    return None if any(tensor.is_meta or is_lazy(tensor) for tensor in left) else module


def _watch(party: Party, module: nn.Module, example: Example, precision: str, names: Iterable[str]) -> _Seen:
    dtype = getattr(torch, precision)
    module.eval().to(dtype)
    seen = _Seen([])

    def watch_output(name: str, _: nn.Module, output: Any) -> None:
        tensor = next((tensor for tensor in tensors_in(output) if tensor.is_floating_point()), None)
        if name not in seen.spread and tensor is not None and tensor.numel() > 1:
            seen.spread[name] = tensor.double().std().item()

    def watch_input(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = next((tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()), None)
        if name not in seen.head_inputs and tensor is not None:
            seen.head_inputs[name] = tensor.detach().to(torch.float64, copy=True)

    def found(paths: Iterable[str]) -> dict[str, nn.Module]:
        return {path: layer for path in paths if (layer := find_submodule(module, path)) is not None}

    heads = [head.name for head in party.graph.heads()]
    cast = _mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, example)
    with hearing_outputs(found(names), watch_output), hearing_inputs(found(heads), watch_input):
        result = run(module, cast, "cpu")
    seen.outputs = [tensor.double() for tensor in tensors_in(result) if tensor.is_floating_point()]
    return seen


# ----------------------------------------------------------------------------------------------------------- comparing


def _compare(
    plan: Plan,
    source: LayerGraph,
    target: LayerGraph,
    source_seen: _Seen,
    target_seen: _Seen,
    inputs: tuple[Example, Example],
) -> Comparison:
    """The outputs of the two; what their heads read, where the target's head is not the source's."""
    heads = source.heads(), target.heads()
    own = {slot.key for layer in heads[1] for slot in layer.tensors.values()}
    relabelled = any(move.key in own and "labels" in {step.operator for step in move.steps} for move in plan.moves)
    shapes = [[tensor.shape for tensor in seen.outputs] for seen in (source_seen, target_seen)]
    other_head = relabelled or shapes[0] != shapes[1] or any(kept.key in own for kept in plan.kept)
    what = "features" if other_head else "output"
    fed = [tensors_of(example) for example in inputs]
    if len(fed[0]) != len(fed[1]) or not all(map(torch.equal, *fed)):
        return Comparison(what, None, f"the source takes {inputs[0]}, the target {inputs[1]}")
    if not other_head:
        return _error(what, source_seen.outputs, target_seen.outputs)
    if len(heads[0]) != len(heads[1]) or not heads[0]:
        return Comparison(what, None, f"the source has {len(heads[0])} heads, the target {len(heads[1])}")
    read = [
        [seen.head_inputs[layer.name] for layer in layers if layer.name in seen.head_inputs]
        for seen, layers in zip((source_seen, target_seen), heads, strict=True)
    ]
    if any(len(found) != len(heads[0]) for found in read):
        return Comparison(what, None, "a head is no module of its own, so that what it reads cannot be seen")
    for one, other in zip(*read, strict=True):
        if one.shape != other.shape:
            shapes_read = [dashed(first_shape(each)) for each in (one, other)]
            why = f"the heads differ; the source's reads {shapes_read[0]}, the target's {shapes_read[1]}"
            return Comparison(what, None, why)
    return _error(what, *read)


def _error(what: str, source: list[Tensor], target: list[Tensor]) -> Comparison:
    """||y_s - y_t|| / ||y_s|| over all tensors together."""
    a, b = (torch.cat([torch.zeros(0), *(tensor.reshape(-1) for tensor in found)]) for found in (source, target))
    norm, difference = a.norm().item(), (a - b).norm().item()
    if not math.isfinite(norm) or not math.isfinite(difference):
        return Comparison(what, None, f"the {what} holds NaN or infinity")
    if norm == 0:
        return Comparison(what, None, f"the source's {what} is zero")
    return Comparison(what, difference / norm)
