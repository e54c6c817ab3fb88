"""Products of queries and keys, values and projections, in every form that attention is written in."""

import math

import numpy as np
import pytest
import torch
from support import transformer_nets as nets
from support.nets import Straight, traced
from support.recipe_laws import check_laws, make_plan

from netgraft.errors import UsageError
from netgraft.graft import graft
from netgraft.recipes.mimetic import Mimetic

WIDTH, HEADS = 32, 4


def fused(net):
    q, k, _ = net.blocks[0].attn.qkv.weight.unflatten(0, (3, HEADS, -1))
    return q, k


def apart(net):
    attention = net.blocks[0].attention
    return (layer.weight.unflatten(0, (HEADS, -1)) for layer in (attention.q, attention.k))


def interleaved(net):
    q, k, _ = net.blocks[0].attention.qkv.weight.unflatten(0, (HEADS, 3, -1)).transpose(0, 1)
    return q, k


def pytorchs(net):
    q, k, _ = net.blocks.layers[0].self_attn.in_proj_weight.unflatten(0, (3, HEADS, -1))
    return q, k


FORMS = {
    # how to build it, queries and keys [heads, rank, width] as its code reads them, its first attention
    "fused": (nets.vit, fused, lambda net: net.blocks[0].attn),
    "registers": (nets.vit_registers, fused, lambda net: net.blocks[0].attn),
    "apart": (nets.Own, apart, lambda net: net.blocks[0].attention),
    "interleaved": (nets.interleaved, interleaved, lambda net: net.blocks[0].attention),
    "pytorch's": (nets.Encoder, pytorchs, lambda net: lambda x: net.blocks.layers[0].self_attn(x, x, x)[0]),
}
forms = pytest.mark.parametrize(("build", "queries_and_keys", "attention"), FORMS.values(), ids=FORMS)


def made(build, recipe):
    """The plan, and the network that it makes in float64, of a source that has nothing to do with it."""
    source, target = traced(Straight), traced(build, nets.SIZE)
    plan = check_laws(recipe, source, target)
    net = build().double().eval()
    net.load_state_dict(graft(plan, Straight().state_dict(), net.state_dict()))
    return plan, net


def wanted(seed, alpha, beta):
    noise = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    return alpha * noise / math.sqrt(WIDTH) + beta * np.eye(WIDTH)


@forms
@torch.no_grad()
def test_queries_times_keys(build, queries_and_keys, attention):  # noqa: ARG001
    _, net = made(build, Mimetic(alpha=0.6, beta=0.9))
    for head, (query, key) in enumerate(zip(*queries_and_keys(net), strict=True)):
        matrix = wanted(head + 1, 0.6, 0.9)
        left, values, right = np.linalg.svd(matrix)
        rank = WIDTH // HEADS
        best = left[:, :rank] * values[:rank] @ right[:rank]
        np.testing.assert_allclose((query.T @ key).numpy(), best, atol=1e-10)
        np.testing.assert_allclose(query.norm(dim=1), key.norm(dim=1), rtol=1e-9)


@forms
@torch.no_grad()
def test_values_times_projection(build, queries_and_keys, attention):  # noqa: ARG001
    """A single token attends to itself alone: the layer then is the product of the two, biases included."""
    _, net = made(build, Mimetic(value_alpha=0.3, value_beta=0.5))
    basis = torch.eye(WIDTH, dtype=torch.float64)
    if isinstance(net, nets.Encoder):
        found = attention(net)(basis[:, None])[:, 0]
    else:
        found = torch.stack([attention(net)(row[None, None])[0, 0] for row in basis])
    np.testing.assert_allclose(found.numpy(), wanted(HEADS + 1, 0.3, -0.5), atol=1e-9)
    assert np.diag(found.numpy()).mean() == pytest.approx(-0.5, abs=0.1)


def test_all_else_is_the_targets():
    plan, net = made(nets.vit, Mimetic())
    assert {move.key for move in plan.moves} == {"pos_embed"} | {
        f"blocks.{i}.attn.{layer}.{role}" for i in (0, 1) for layer in ("qkv", "proj") for role in ("weight", "bias")
    }
    assert plan.source_share == 0
    assert {move.fate for move in plan.moves} == {"set"}
    assert not net.blocks[1].attn.qkv.bias.any()
    first, second = (net.blocks[i].attn.qkv.weight for i in (0, 1))
    assert not torch.allclose(first, second)  # drawn anew for each layer


def test_options():
    plan, _ = made(nets.vit, Mimetic(positions=False))
    assert "pos_embed" not in [move.key for move in plan.moves]
    one, other = (made(nets.vit, Mimetic(seed=seed))[1].blocks[0].attn.qkv.weight for seed in (1, 2))
    assert not torch.allclose(one, other)


def test_windows_have_attention_but_no_positions():
    plan, _ = made(nets.swin, Mimetic())
    assert {move.key.rpartition(".")[0].rpartition(".")[2] for move in plan.moves} == {"qkv", "proj"}


def test_what_cannot_be_set_is_refused():
    source = traced(Straight)
    with pytest.raises(UsageError, match="mimetic sets how a network attends") as caught:
        make_plan(Mimetic(), source, source)
    assert "no softmax" in str(caught.value)
    with pytest.raises(UsageError, match=r"something lies between blocks\.0\.attention\.q"):
        make_plan(Mimetic(), source, traced(nets.rotated, nets.SIZE))
