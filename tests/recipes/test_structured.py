"""What the network attends to, run on positions alone."""

import pytest
import torch
from support import transformer_nets as nets
from support.command_line import run
from support.nets import Straight, traced
from support.recipe_laws import check_laws, make_plan

from netgraft.errors import UsageError
from netgraft.graft import graft
from netgraft.recipes.auto import Auto
from netgraft.recipes.structured import Structured

SIDE = 4
FORMS = {
    # how to build it; its positions, first norm and attention
    "fused": (nets.vit, lambda net: (net.pos_embed, net.blocks[0].norm1, net.blocks[0].attn)),
    "pooled": (nets.vit_pooled, lambda net: (net.pos_embed, net.blocks[0].norm1, net.blocks[0].attn)),
    "apart": (nets.Own, lambda net: (net.places, net.blocks[0].norm1, net.blocks[0].attention)),
    "interleaved": (nets.interleaved, lambda net: (net.places, net.blocks[0].norm1, net.blocks[0].attention)),
}


def made(build, recipe):
    source, target = traced(Straight), traced(build, nets.SIZE)
    plan = check_laws(recipe, source, target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build().double().eval()
    net.load_state_dict(graft(plan, Straight().state_dict(), net.state_dict()))
    return plan, net


def taps(plan, key):
    """Of the heads that the steps on a tensor set, in order."""
    (move,) = (move for move in plan.moves if move.key == key)
    return [tuple(step.options["tap"]) for step in move.steps if step.options["half"] == "query"]


@torch.no_grad()
def attended(net, parts, monkeypatch):
    """[heads, tokens, tokens]: the weights of the first attention on positions alone."""
    positions, norm, attention = parts(net)
    seen = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda self, dim: seen.append(softmax(self, dim)) or seen[-1])
    attention.fused_attn = False  # timm's: the same in steps
    attention(norm(positions))
    return seen[0][0]


@pytest.mark.parametrize(("build", "parts"), FORMS.values(), ids=FORMS)
def test_each_head_reads_its_tap(build, parts, monkeypatch):
    plan, net = made(build, Structured())
    key = next(move.key for move in plan.moves if move.key.startswith("blocks.0") and move.key.endswith("weight"))
    weights = attended(net, parts, monkeypatch)[:, -(SIDE**2) :, -(SIDE**2) :]
    drawn = taps(plan, key)
    assert len(drawn) == 4 == len(weights)
    for (down, right), head in zip(drawn, weights, strict=True):
        on = []
        for y in range(max(0, -down), SIDE - max(0, down)):
            for x in range(max(0, -right), SIDE - max(0, right)):
                read, aim = head[SIDE * y + x], SIDE * (y + down) + x + right
                assert int(read.argmax()) == aim
                on.append(float(read[aim]))
        assert sum(on) / len(on) > 0.7


def test_options(monkeypatch):
    build, parts = FORMS["pooled"]
    blunt, sharp = (
        attended(made(build, Structured(sharpness=sharpness))[1], parts, monkeypatch).amax(2).mean()
        for sharpness in (2.0, 12.0)
    )
    assert sharp > 2 * blunt
    drawn = [tuple(taps(made(build, Structured(seed=seed))[0], "blocks.0.attn.qkv.weight")) for seed in (1, 2)]
    assert drawn[0] != drawn[1]
    plan, _ = made(build, Structured(size=1))
    assert set(taps(plan, "blocks.1.attn.qkv.weight")) == {(0, 0)}
    first, second = (made(build, Structured(temperature=temperature))[1].pos_embed for temperature in (1e4, 10.0))
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="odd"):
        Structured(size=2)


def test_all_else_is_the_targets():
    plan, net = made(nets.vit, Structured())
    assert {move.key for move in plan.moves} == {"pos_embed"} | {
        f"blocks.{i}.attn.qkv.{role}" for i in (0, 1) for role in ("weight", "bias")
    }
    assert plan.source_share == 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = nets.vit().double()
    for i in (0, 1):
        assert torch.equal(net.blocks[i].attn.qkv.weight[64:], own.blocks[i].attn.qkv.weight[64:])  # values
        assert not net.blocks[i].attn.qkv.bias[:64].any()


def test_what_cannot_be_set_is_refused():
    source = traced(Straight)
    with pytest.raises(UsageError, match="structured sets how a network attends"):
        make_plan(Structured(), source, source)
    with pytest.raises(UsageError, match="no learned positions"):
        make_plan(Structured(), source, traced(nets.swin, nets.SIZE))


@pytest.mark.parametrize("recipe", ["mimetic", "structured"])
def test_the_command_says_so(recipe, tmp_path):
    nowhere = tmp_path / "init.safetensors"
    sides = "netgraft:vgg11-glyphs", "netgraft:resnet20-glyphs"
    result = run("transfer", *sides, "--recipe", recipe, "-o", nowhere)
    assert result.exit_code == 2
    assert f"The recipe {recipe} sets how a network attends" in result.stderr
    assert not nowhere.exists()


def test_auto_never_takes_what_is_there_to_be_measured_against():
    source, target = traced(nets.vit, nets.SIZE), traced(lambda: nets.vit(embed_dim=48), nets.SIZE)
    names = {choice.name for choice in Auto().candidates(source, target, "cpu")}
    assert names
    assert not names & {"front", "mimetic", "structured", "weight-selection"}
