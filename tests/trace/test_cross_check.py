"""Symbolic tracing as a second opinion: agrees where it can see, is silent where it cannot, warns where it differs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.cases import Case
from support.cross_check import cross_check
from support.user_nets import LoopOverShape, SelfAttention, ShapeIf
from torch import Tensor, nn

from netgraft.architecture.graph import LayerGraph
from netgraft.trace import trace


def timm_case(name: str) -> Case:
    import timm

    return Case(lambda: timm.create_model(name), "", "", input_size=(3, 224, 224))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "inception_v3", "vit_tiny_patch16_224", "nfnet_f0"])
def test_it_agrees(name: str) -> None:
    case = timm_case(name)
    assert cross_check(case, trace(case)) == []


@pytest.mark.parametrize("build", [LoopOverShape, ShapeIf, SelfAttention])
def test_it_is_silent_where_symbolic_tracing_fails_or_cannot_look_inside(build: type[nn.Module]) -> None:
    case = Case(build, "", "", input_size=(5, 8) if build is SelfAttention else (4, 8, 8))
    assert cross_check(case, LayerGraph((), {})) == []


def test_it_is_silent_about_functions_kept_whole() -> None:
    from torchvision.models import swin_t

    case = Case(swin_t, "", "", input_size=(3, 224, 224))
    assert cross_check(case, trace(case)) == []


def test_it_warns_where_the_chains_differ() -> None:
    class TwoLayers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * x.shape[0])

    case = Case(TwoLayers, "", "", input_size=(3,))
    graph = trace(case)
    assert cross_check(case, graph) == []
    without_b = replace(graph, nodes=tuple(replace(n, op="mul", layer=None) if n.id == "b" else n for n in graph.nodes))
    (warning,) = cross_check(case, without_b)
    assert "longest chain of 2 layers, the recorded forward pass 1" in warning


def test_it_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    cross_check(timm_case("resnet18"), LayerGraph((), {}))
    assert torch.equal(torch.get_rng_state(), state)
