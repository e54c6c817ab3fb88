"""Architectures as users write them: the layer graph is exactly what a reader would draw."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import support.user_nets  # noqa: F401  (registers the cases)
import torch
from support.cases import CASES, Case, kernel_edges
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.graph import LayerGraph
from netgraft.trace import trace
from netgraft.trace.forward import run
from netgraft.trace.inputs import examples_for, given_examples

WITHOUT_MODULES = (
    *(
        "FunctionalLayers",
        "BareMatmuls",
        "AnotherModulesWeight",
        "BatchedExperts",
        "ParameterLists",
        "CrossAttention",
        "Router",
    ),
)
"""Cases in which no layer is the call of a module, so that hooks see nothing."""

_graphs: dict[str, LayerGraph] = {}


def traced(case: Case) -> LayerGraph:
    if case.name not in _graphs:
        _graphs[case.name] = trace(case)
    return _graphs[case.name]


def every_case(test: Any) -> Any:
    return pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)(test)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@every_case
def test_layers_and_their_kinds(case: Case) -> None:
    graph = traced(case)
    calls = [node for node in graph.nodes if node.op == "layer" and graph.layers[node.layer or ""].is_kernel]
    assert " ".join(f"{node.id}:{graph.layers[node.layer or ''].kind}" for node in calls) == case.layers
    others = [f"{layer.name}:{layer.kind}" for layer in graph.layers.values() if not layer.is_kernel]
    assert sorted(others) == sorted(case.others.split())


@every_case
def test_edges_between_kernel_layers(case: Case) -> None:
    assert kernel_edges(traced(case)) == set(case.edges.split())


@every_case
def test_longest_chain(case: Case) -> None:
    chain = longest_chain(traced(case))
    if case.chain is None:
        assert chain.ties > 1
    else:
        assert (" ".join(chain.layers), chain.ties) == (case.chain, 1)


@every_case
def test_facts(case: Case) -> None:
    graph = traced(case)
    for name, facts in case.facts.items():
        layer = graph.layers[name]
        for fact, value in facts.items():
            if fact == "tensors":
                assert {role: slot.key for role, slot in layer.tensors.items()} == value
            else:
                assert getattr(layer, fact) == value, (name, fact)


@every_case
def test_rung_and_warnings(case: Case) -> None:
    graph = traced(case)
    assert graph.rung == case.rung
    assert len(graph.warnings) == len(case.warnings), graph.warnings
    for said, expected in zip(graph.warnings, case.warnings, strict=True):
        assert said.startswith(expected)


@every_case
def test_every_tensor_of_the_state_dict_is_in_one_place(case: Case) -> None:
    graph = traced(case)
    module = case.build()
    run(module, _example(case, module), "cpu")  # lazy layers
    slots = [slot for layer in graph.layers.values() for slot in layer.tensors.values()] + list(graph.loose.values())
    keys = [key for slot in slots for key in (slot.key, *slot.aliases)]
    assert sorted(keys) == sorted(module.state_dict())
    for slot in slots:
        assert slot.shape == tuple(module.state_dict()[slot.key].shape)


@every_case
def test_shapes_and_settings_are_those_of_the_modules(case: Case) -> None:
    """What a plain forward pass on real values shows to hooks, and what the modules say of themselves."""
    graph, module = traced(case), case.build()
    example = _example(case, module)
    run(module, example, "cpu")
    seen: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for name, part in module.named_modules():
        part.register_forward_hook(
            lambda _m, inputs, output, name=name: seen[name].append((_first(inputs), _first(output)))
        )
    run(module.eval(), example, "cpu")
    checked = 0
    for name, layer in graph.layers.items():
        if not seen.get(name) or name not in dict(module.named_modules()) or layer.kind == "other":
            continue
        part = module.get_submodule(name)
        checked += 1
        batch = graph.nodes[0].shape[:1]
        if batch == _first(example.args or tuple(example.kwargs.values()))[:1]:
            assert (layer.in_shape, layer.out_shape) == seen[name][0], name
        assert layer.calls >= len(seen[name])
        if isinstance(part, nn.modules.conv._ConvNd):
            assert layer.shape == tuple(part.weight.shape)
            assert (layer.groups, layer.stride, layer.dilation) == (part.groups, part.stride, part.dilation)
            if part.padding_mode == "zeros" and not isinstance(part.padding, str):
                assert layer.padding == part.padding
            assert layer.out_channels == part.out_channels
        elif isinstance(part, nn.Linear):
            assert (layer.shape, layer.transposed) == ((part.out_features, part.in_features), False)
    assert checked or case.name in WITHOUT_MODULES


def _example(case: Case, module: nn.Module) -> Any:
    return (given_examples(case) or list(examples_for(case, module, (2, 1))))[0]


def _first(structure: Any) -> tuple[int, ...]:
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(structure) if isinstance(leaf, Tensor)]
    return shapes[0] if shapes else ()


def test_tracing_leaves_no_patch_behind() -> None:
    before = (nn.Module.__call__, torch.nn.functional.linear, Tensor.__matmul__, torch.matmul)
    for case in CASES[:5]:
        trace(case)
    assert (nn.Module.__call__, torch.nn.functional.linear, Tensor.__matmul__, torch.matmul) == before
