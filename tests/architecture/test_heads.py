"""Rows of heads, read off the graph, against those found by sending numbers through the network."""

import pytest
import torch
from support import transformer_nets as nets
from support.nets import traced

from netgraft.architecture.attention import attentions
from netgraft.architecture.heads import find_head_rows
from netgraft.passes.refitting.heads import find_heads
from netgraft.trace.replay import Replay

NETS = {
    "fused": nets.vit,
    "registers": nets.vit_registers,
    "apart": nets.Own,
    "interleaved": nets.interleaved,
    "pytorch's": nets.Encoder,
}


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_as_found_by_running(build):
    replay = Replay(build().eval(), torch.randn(2, *nets.SIZE, generator=torch.Generator().manual_seed(0)))
    found = attentions(replay.graph)
    assert found
    for attention in found:
        rows, heads = find_head_rows(replay.graph, attention), find_heads(replay, attention)
        assert (rows.queries, rows.keys, rows.values) == (heads.queries, heads.keys, heads.values)
        assert rows.scale == pytest.approx(heads.scale, rel=1e-5)
        assert rows.projection in replay.graph.layers


def test_windows_with_a_bias_on_their_logits():
    """timm's Swin reads [queries | keys | values], each head by head."""
    graph = traced(nets.swin, nets.SIZE)
    rows = find_head_rows(graph, attentions(graph)[0])
    starts = [[head[0] for head in heads] for heads in (rows.queries, rows.keys, rows.values, rows.columns)]
    assert starts == [[0, 8], [16, 24], [32, 40], [0, 8]]
    assert rows.projection == "layers.0.blocks.0.attn.proj"


def test_what_lies_between_is_told():
    graph = traced(nets.rotated, nets.SIZE)
    (why, *_) = [find_head_rows(graph, attention) for attention in attentions(graph)]
    assert why == "something lies between blocks.0.attention.q and the heads that read its queries"


class Crossed(torch.nn.Module):
    """Queries of one sequence, keys and values of another."""

    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Conv2d(3, 32, 4, 4), torch.nn.Conv2d(3, 32, 4, 4)
        self.attention = nets.Attention(32, 4)
        self.head = torch.nn.Linear(32, 5)

    def forward(self, x):
        heads = self.attention
        sides = [side(x).flatten(2).transpose(1, 2) for side in (self.one, self.other)]
        q, k, v = (
            layer(sides[i]).unflatten(2, (4, -1)).transpose(1, 2)
            for layer, i in ((heads.q, 0), (heads.k, 1), (heads.v, 1))
        )
        return self.head(heads.out(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)).mean(1))


def test_two_sequences_are_no_attention_of_one_to_itself():
    graph = traced(Crossed, nets.SIZE)
    (attention,) = attentions(graph)
    assert find_head_rows(graph, attention) == "queries, keys and values are not made of one sequence"
