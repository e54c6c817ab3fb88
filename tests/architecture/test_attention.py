"""Attention is found by what is computed, whatever the modules are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from netgraft.architecture.attention import attentions, is_transformer
from netgraft.architecture.graph import LayerGraph
from netgraft.trace import trace_on


def timm_graph(name: str) -> LayerGraph:
    import timm

    return trace_on(lambda: timm.create_model(name), (torch.empty(2, 3, 224, 224),), "meta")


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

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = ((q * 3**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2)


def test_separate_projections_written_by_hand() -> None:
    graph = trace_on(Odd, (torch.zeros(2, 5, 6),), "meta")
    (found,) = attentions(graph)
    assert (found.query, found.key, found.value, found.fused, found.heads) == ("q", "k", "v", "", 2)
