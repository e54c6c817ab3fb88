"""The table of kinds: every kind answers every question, in every room, and a new kind needs a row and no more."""

from dataclasses import fields, replace
from enum import StrEnum
from typing import get_type_hints

import pytest
import torch
from support.nets import traced
from support.refit_nets import Residual
from torch import nn

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.cost import multiply_adds
from netgraft.architecture.endings import find_endings
from netgraft.architecture.graph import Layer, LayerGraph, Node, Slot
from netgraft.architecture.kinds import KINDS, Kind, Role, kind_named
from netgraft.architecture.scaling import find_regions, find_trades
from netgraft.architecture.spine import is_identity_when_dirac, signature, spine
from netgraft.channels.groups.axes import Fixed
from netgraft.channels.groups.find import find_groups
from netgraft.channels.stretch import stretch
from netgraft.matchers.longest_chain import unlike
from netgraft.matchers.wired import Wired
from netgraft.passes.refitting.jobs import _unfit
from netgraft.trace.slots import weight_shape

C = 8
SHAPES = {"linear": (C, C), "contraction": (2, C, C), "conv_dynamic": (4, C * C), "rnn": (C, C), "embedding": (9, C)}


def graph_with(kind: str) -> LayerGraph:
    """input [2, C, ...] > a layer of the kind, which keeps the shape > output."""
    rules = kind_named(kind)
    space = int(kind[-2]) if kind[-1] == "d" else 0 if rules.out_axis == -1 else 2
    shape = (2, C, *[5] * space) if rules.out_axis == 1 else (2, 3, C)
    weight = SHAPES.get(kind, (C, C, *[3] * space) if rules.role is Role.KERNEL else (C,))
    sliding = {"stride": (1,) * space, "padding": (1,) * space, "dilation": (1,) * space} if rules.convolves else {}
    slots = {"weight": Slot("a.weight", weight, "float32")}
    layer = Layer("a", kind, weight, slots, in_shape=shape, out_shape=shape, **sliding)
    nodes = (
        Node("input", "input", shape=shape),
        Node("a", "layer", ("input",), "a", shape),
        Node("output", "output", ("a",)),
    )
    return LayerGraph(nodes, {"a": layer})


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_row_answers_every_question(kind: Kind) -> None:
    for name, wanted in get_type_hints(Kind).items():
        value = getattr(kind, name)
        assert isinstance(value, frozenset if name == "made_by" else wanted), name
    assert KINDS[kind.name] is kind
    assert kind.out_axis in (1, -1)
    assert kind.in_axis in (0, 1)


def test_no_question_has_a_default_answer() -> None:
    with pytest.raises(TypeError, match=f"{len(fields(Kind)) - 1} required"):
        Kind("new")  # type: ignore[call-arg]


ENUMS = [type_ for type_ in get_type_hints(Kind).values() if isinstance(type_, type) and issubclass(type_, StrEnum)]


@pytest.mark.parametrize("enum", ENUMS)
def test_every_rule_is_some_kind_s(enum: type[StrEnum]) -> None:
    """So the laws over all kinds come through every case of every reader."""
    field = next(name for name, type_ in get_type_hints(Kind).items() if type_ is enum)
    assert {getattr(kind, field) for kind in KINDS.values()} == set(enum)


def test_operations_belong_to_one_kind_but_for_the_dimensions_of_a_convolution() -> None:
    makers = [op for kind in KINDS.values() if not kind.convolves for op in kind.made_by]
    assert len(makers) == len(set(makers))


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_reads_every_kind(kind: str) -> None:
    graph = graph_with(kind)
    layer, rules = graph.layers["a"], KINDS[kind]
    groups = find_groups(graph)
    assert set(groups.axes) == {"a.weight"}
    assert all(stretch(graph, groups, run) is None for run in groups.variables.values())  # input and output are fixed
    assert (multiply_adds(graph) > 0) == layer.is_kernel
    assert longest_chain(graph).layers == (("a",) if layer.is_kernel else ())
    assert list(find_endings(graph)) == (["a"] if layer.is_kernel else [])
    assert unlike(layer, layer) == ""
    assert (unlike(layer, replace(layer, shape=(*layer.shape[:-1], 7))) == "") == (rules.exchange == "same kind")
    assert (_unfit(graph, layer) == "") == rules.refits
    assert weight_shape(dict(layer.tensors), kind) == layer.shape
    (_, unit, _) = spine(graph)
    assert hash(signature(graph, unit))
    assert is_identity_when_dirac(graph, unit) == rules.dirac
    assert find_trades(graph) == []
    assert [len(region.writers) for region in find_regions(graph)] == []


def test_an_unknown_kind_is_an_error_that_names_the_table() -> None:
    layer = Layer("a", "conv4d", (8, 8))
    for question in ("is_kernel", "is_norm", "is_conv", "out_axis", "rules"):
        with pytest.raises(
            ValueError, match=r"no kind of layer 'conv4d': give it a row in netgraft.architecture.kinds"
        ):
            getattr(layer, question)


# --------------------------------------------------------------------------------------------------- one more kind


def renamed(graph: LayerGraph, kind: str, name: str) -> LayerGraph:
    """The same graph with another kind in the place of one."""
    return replace(
        graph,
        layers={n: replace(layer, kind=name) if layer.kind == kind else layer for n, layer in graph.layers.items()},
    )


def test_a_new_row_is_all_that_a_kind_like_another_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = traced(lambda: Residual(8)), traced(lambda: Residual(12))
    monkeypatch.setitem(KINDS, "shifted2d", replace(KINDS["conv2d"], name="shifted2d", family=""))
    old = (source, target)
    new = tuple(renamed(graph, "conv2d", "shifted2d") for graph in old)
    for before, after in zip(old, new, strict=True):
        assert {layer.kind for layer in after.kernels()} == {"shifted2d", "linear"}
        assert find_groups(after).groups == find_groups(before).groups
        assert multiply_adds(after) == multiply_adds(before)
        assert longest_chain(after) == longest_chain(before)
        assert find_endings(after) == find_endings(before)
        assert {_unfit(after, layer) for layer in after.kernels()} == {""}
    pairs = Wired()(*old).pairs
    assert len(pairs) > 3
    assert [(p.source, p.target) for p in Wired()(*new).pairs] == [(p.source, p.target) for p in pairs]
    name = next(layer.name for layer in source.kernels() if layer.kind == "conv2d")
    assert unlike(new[0].layers[name], target.layers[name]) == f"shifted2d {name} does not fit conv2d"


@torch.library.custom_op("netgraft_tests::soft_norm", mutates_args=())
def soft_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Somebody's own norm, channel by channel."""
    return x / (1 + x.square()).sqrt() * weight.view(1, -1, 1, 1)


@soft_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return torch.empty_like(x)


class SoftNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return soft_norm(x, self.weight)


def soft_net(width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3), SoftNorm(width), nn.ReLU(), nn.Conv2d(width, 6, 3), SoftNorm(6)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


def test_somebody_s_own_norm_is_traced_grouped_and_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a row its channels are fixed; with one they are those of the convolutions around it."""
    before = traced(lambda: soft_net(8))
    assert before.layers["1.weight"].kind == "parameter"
    assert find_groups(before).axes["0.weight"][0] == Fixed(8)
    row = replace(KINDS["batch_norm"], name="soft_norm", made_by=frozenset({"netgraft_tests::soft_norm"}))
    monkeypatch.setitem(KINDS, "soft_norm", row)
    source, target = traced(lambda: soft_net(8)), traced(lambda: soft_net(12))
    assert [layer.kind for layer in source.layers.values()] == ["conv2d", "soft_norm"] * 2 + ["linear"]
    members = {group.members for group in find_groups(source).groups}
    assert (("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("3.weight", 1)) in members
    assert {(p.source, p.target) for p in Wired()(source, target).pairs} == {(str(i), str(i)) for i in (0, 1, 3, 4, 7)}
