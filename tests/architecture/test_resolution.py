"""What follows from a layer graph: resolutions, attention, dead and off-input layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.resolution import (
    attentions,
    dead_layers,
    is_transformer,
    off_input_layers,
    stages,
    stride,
    unused_parameters,
)
from netgraft.trace import trace_on


def timm_graph(name: str) -> LayerGraph:
    import timm

    return trace_on(lambda: timm.create_model(name), (torch.empty(2, 3, 224, 224),), "meta")


def test_stages_of_a_resnet() -> None:
    found = stages(timm_graph("resnet18"))
    assert {found[name] for name in ("conv1", "bn1")} == {1}
    assert [found[f"layer{i}.0.conv1"] for i in (1, 2, 3, 4)] == [2, 3, 4, 5]
    assert "fc" not in found


def test_stages_of_a_transformer_count_positions() -> None:
    graph = timm_graph("vit_tiny_patch16_224")
    found = stages(graph)
    assert {found[name] for name in found if name.startswith("blocks")} == {4}
    assert stride(graph, graph.layers["blocks.0.mlp.fc1"]) == pytest.approx(16, rel=0.01)
    windows = stages(timm_graph("swin_tiny_patch4_window7_224"))
    assert [windows[f"layers.{i}.blocks.0.attn.qkv"] for i in range(4)] == [2, 3, 4, 5]


def test_a_vector_has_no_resolution() -> None:
    graph = trace_on(lambda: nn.Linear(4, 3), (torch.zeros(2, 4),), "meta")
    assert stages(graph) == {}


@pytest.mark.parametrize(
    ("name", "query", "fused", "heads", "count"),
    [
        ("vit_tiny_patch16_224", "blocks.0.attn.qkv", "qkv", 3, 12),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn.qkv", "qkv", 3, 12),
        ("beit_base_patch16_224", "blocks.0.attn.qkv", "qkv", 12, 12),
        ("pvt_v2_b1", "stages.0.blocks.0.attn.q", "kv", 1, 8),
    ],
)
def test_attention(name: str, query: str, fused: str, heads: int, count: int) -> None:
    found = attentions(timm_graph(name))
    assert len(found) == count
    assert (found[0].query, found[0].fused, found[0].heads) == (query, fused, heads)


@pytest.mark.parametrize(
    ("name", "yes"),
    [
        ("vit_tiny_patch16_224", True),
        ("swin_tiny_patch4_window7_224", True),
        ("resnet18", False),
        ("convnext_atto", False),  # layer norms, no attention
        ("mobilevit_xxs", False),  # attention between convolutions with batch norms
    ],
)
def test_what_a_transformer_is(name: str, yes: bool) -> None:
    assert is_transformer(timm_graph(name)) is yes


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.dead, self.unused, self.grid = nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(2, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("where", torch.ones(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = ((q * 3**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        self.dead(x)
        return (y.transpose(1, 2).flatten(2) + self.grid(self.where)) * self.scale


def test_separate_projections_written_by_hand() -> None:
    graph = trace_on(Odd, (torch.zeros(2, 5, 6),), "meta")
    (found,) = attentions(graph)
    assert (found.query, found.key, found.value, found.fused, found.heads) == ("q", "k", "v", "", 2)


def test_what_no_data_reaches() -> None:
    graph = trace_on(Odd, (torch.zeros(2, 5, 6),), "meta")
    assert dead_layers(graph) == ["dead"]
    assert off_input_layers(graph) == ["grid"]
    assert unused_parameters(graph) == ["unused.weight", "unused.bias"]
