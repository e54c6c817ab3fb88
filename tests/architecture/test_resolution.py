"""How far the sides of an input have been halved where a layer works, and which grid tokens stand on."""

from __future__ import annotations

import pytest
import torch
from support.drawn import Drawing
from torch import nn

from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.resolution import grid_of, levels
from netgraft.trace import trace_on


def timm_graph(name: str) -> LayerGraph:
    import timm

    return trace_on(lambda: timm.create_model(name), (torch.empty(2, 3, 224, 224),), "meta")


def test_levels_of_a_resnet() -> None:
    found = levels(timm_graph("resnet18"))
    assert found["conv1"] == found["bn1"] == 1
    assert [found[f"layer{i}.0.conv1"] for i in (1, 2, 3, 4)] == [2, 3, 4, 5]
    assert found["fc"] == pytest.approx(7.807, abs=1e-3)  # log2(224): a single position is left


def test_levels_of_a_transformer_count_tokens() -> None:
    found = levels(timm_graph("vit_tiny_patch16_224"))
    assert found["patch_embed.proj"] == 4
    assert found["blocks.0.mlp.fc1"] == pytest.approx(4, abs=0.01)  # one token more than patches
    windows = levels(timm_graph("swin_tiny_patch4_window7_224"))
    assert [windows[f"layers.{i}.blocks.0.attn.qkv"] for i in range(4)] == [2, 3, 4, 5]


def test_without_an_image_or_without_shapes_no_level_is_known() -> None:
    graph = trace_on(lambda: nn.Linear(4, 3), (torch.zeros(2, 4),), "meta")
    assert set(levels(graph).values()) == {0.0}
    d = Drawing()
    d.output(d.conv(d.input(), shape=(8, 3, 3, 3)))
    assert levels(d.graph()) == {"L1": 0.0}


@pytest.mark.parametrize(
    ("tokens", "found"), [(196, (14, 0)), (197, (14, 1)), (201, (14, 5)), (210, None), (1, (1, 0))]
)
def test_grid_of_tokens(tokens: int, found: tuple[int, int] | None) -> None:
    assert grid_of(tokens) == found
