"""Attention that reads neighbours: what it attends to, against the formula, and what must stay as it is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.nets import Straight
from support.staged import check_pass, grafted, taught
from support.stages import network, stage
from support.transformer_nets import (
    SIZE,
    Encoder,
    Own,
    bare,
    buffered,
    convnext,
    interleaved,
    post_norm,
    prepared,
    rms,
    rotated,
    swin,
    vit,
    vit_pooled,
    vit_registers,
)
from torch import nn

from netgraft import plugins
from netgraft.channels.coordinates import find_token_streams
from netgraft.errors import UsageError
from netgraft.passes.neighbours import SHIFT, TAPS, Neighbours
from netgraft.passes.refit import Refit
from netgraft.passes.refitting.heads import find_heads
from netgraft.plan import Pairing
from netgraft.trace.replay import Replay

TRANSFORMERS = [vit, vit_registers, vit_pooled, Own, interleaved, Encoder, bare]


def turned(build, **options):
    work = stage(network(build, SIZE, seed=1), network(build, SIZE))
    report = Neighbours(**options)(work)
    return work, report


def attend(monkeypatch, module, images):
    """The weights of every attention, [B, heads, tokens, tokens] or flattened, however it is written."""
    found = []
    fused, softmax = F.scaled_dot_product_attention, torch.Tensor.softmax

    def attention(q, k, v, *args, **kwargs):
        found.append(softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1))
        return fused(q, k, v, *args, **kwargs)

    def normalised(x, *args, **kwargs):
        found.append(softmax(x, *args, **kwargs))
        return found[-1]

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", attention)
        patch.setattr(torch.Tensor, "softmax", normalised)
        torch.backends.mha.set_fastpath_enabled(False)
        module(images)
        torch.backends.mha.set_fastpath_enabled(True)
    return [weights.unflatten(0, (len(images), -1)) if weights.dim() == 3 else weights for weights in found]


def spreads(module, images):
    """What the first norm of every block divides each token by, [B, tokens]."""
    found = []
    norms = [part for name, part in module.named_modules() if name.endswith("norm1")]
    hooks = [
        norm.register_forward_pre_hook(lambda _, x: found.append((x[0].var(-1, unbiased=False) + 1e-5).sqrt()))
        for norm in norms
    ]
    with torch.no_grad():
        module(images)
    for hook in hooks:
        hook.remove()
    return found


def gaussian(tap, sharpness, spread, extra):
    """The attention of a head that looks at one neighbour, from the squares of distances."""
    side = int((spread.shape[1] - extra) ** 0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    at = torch.stack([y.flatten(), x.flatten()], 1).double()
    squares = ((at[None] - at[:, None] - torch.tensor(tap)) ** 2).sum(-1)  # [token, neighbour]
    scale = spread[:, extra:].double()
    return (-sharpness * squares / (scale[:, :, None] * scale[:, None])).softmax(-1)


@pytest.mark.parametrize("build", TRANSFORMERS)
@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_every_head_attends_to_its_neighbour(build, sharpness, monkeypatch):
    work, report = turned(build, sharpness=sharpness)
    assert (report["attentions"], report["heads"], report["left"]) == (2, 8, [])
    module, images = work.target.module, torch.rand(3, *SIZE)
    codes = len(find_token_streams(work.target.graph)[0].codes)
    for name in ("patch_embed.proj.weight", "patches.weight"):  # data in the other channels, of any size
        if name in module.state_dict():
            module.get_parameter(name)[:-codes] *= 5
    attended, spread = attend(monkeypatch, module, images), spreads(module, images)
    assert len(attended) == len(spread) == 2
    extra = attended[0].shape[-1] - 16
    for block, (weights, scale) in enumerate(zip(attended, spread, strict=True)):
        torch.testing.assert_close(weights[:, :, :extra], torch.full_like(weights[:, :, :extra], 1 / (16 + extra)))
        for head in range(4):
            found = weights[:, head, extra:, extra:].double()
            given = found.sum(-1, keepdim=True)  # the rest is for the tokens in front
            assert float(given.mean()) > 0.9
            wanted = gaussian(TAPS[head + SHIFT * block], sharpness, scale, extra)
            torch.testing.assert_close(found / given, wanted, rtol=2e-3, atol=2e-4)


def test_focus_is_what_the_heads_give_to_their_neighbours(monkeypatch):
    work, report = turned(vit)
    found = []
    for block, weights in enumerate(
        attend(monkeypatch, work.target.module, work.shown(work.images(4, seed=6), work.target))
    ):
        grid = weights[:, :, 1:, 1:].unflatten(2, (4, 4)).unflatten(4, (4, 4))
        for head in range(4):
            dy, dx = TAPS[head + SHIFT * block]
            found += [
                grid[:, head, y, x, y + dy, x + dx]
                for y in range(4)
                for x in range(4)
                if 0 <= y + dy < 4 and 0 <= x + dx < 4
            ]
    assert report["focus"] == pytest.approx(float(torch.cat(found).mean()), abs=2e-3)
    assert report["focus"] > 0.5


@pytest.mark.parametrize("build", TRANSFORMERS)
def test_nothing_writes_to_the_coordinates_and_no_value_reads_them(build):
    work, _ = turned(build)
    module, stream = work.target.module, find_token_streams(work.target.graph)[0]
    read = []
    hooks = [
        part.register_forward_pre_hook(lambda _, x: read.append(x[0][..., list(stream.codes)]))
        for name, part in module.named_modules()
        if name.endswith(("norm1", "norm2"))
    ]
    with torch.no_grad():
        module(torch.rand(2, *SIZE))
    for hook in hooks:
        hook.remove()
    assert len(read) == 4
    for codes in read:
        torch.testing.assert_close(codes, read[0][:1].expand_as(codes))
    assert read[0][0, -1, -1] == 0
    for attention in stream.attentions:
        heads = find_heads(Replay(module, torch.rand(2, *SIZE)), attention)
        layer = work.target.graph.layers[attention.value]
        weight = module.get_parameter(layer.tensors["weight"].key)
        rows = [row for head in heads.values for row in head]
        assert not weight[rows][:, list(stream.codes)].any()
        assert float(weight[rows].square().sum(1).mean()) == pytest.approx(27 / 32, rel=0.2)


@pytest.mark.parametrize("build", TRANSFORMERS)
def test_only_what_it_names_changes(build):
    target = network(build, SIZE)
    _, before, changed = check_pass(Neighbours(), stage(network(Straight, SIZE), target))
    graph = target.graph
    heads = {slot.key for layer in graph.heads() for slot in layer.tensors.values()}
    norms = {slot.key for layer in graph.layers.values() if layer.is_norm for slot in layer.tensors.values()}
    assert changed
    assert not changed & (heads | norms)
    assert len(changed) > len(before) / 3


@pytest.mark.parametrize("build", [Straight, swin, convnext, post_norm, rms, buffered, prepared])
def test_where_coordinates_find_no_place_nothing_is_touched(build):
    """Convolutions; windows; norms behind additions or put together by hand; positions, kernels that are computed."""
    net = network(build, SIZE)
    assert Neighbours().touches(net.graph, net.graph, None) == ()
    report, _, changed = check_pass(Neighbours(), stage(net, network(build, SIZE)))
    assert not changed
    assert report == {"attentions": 0, "heads": 0, "focus": None, "left": []}


def test_queries_that_are_more_than_channels_are_left_alone():
    report, _, changed = check_pass(Neighbours(), stage(network(Straight, SIZE), network(rotated, SIZE)))
    assert (report["attentions"], len(report["left"])) == (0, 2)
    assert not changed


def test_the_rows_of_each_head():
    """Against the order in which timm and the interleaved attention lay their rows out."""
    net = network(vit, SIZE)
    stream = find_token_streams(net.graph)[0]
    heads = find_heads(Replay(net.module, torch.rand(2, *SIZE)), stream.attentions[0])
    assert heads.queries == tuple(tuple(range(8 * h, 8 * h + 8)) for h in range(4))
    assert heads.keys == tuple(tuple(range(32 + 8 * h, 40 + 8 * h)) for h in range(4))
    assert heads.values == tuple(tuple(range(64 + 8 * h, 72 + 8 * h)) for h in range(4))
    assert heads.scale == pytest.approx(8**-0.5)
    net = network(interleaved, SIZE)
    heads = find_heads(Replay(net.module, torch.rand(2, *SIZE)), find_token_streams(net.graph)[0].attentions[1])
    assert heads.queries == tuple(tuple(range(24 * h, 24 * h + 8)) for h in range(4))
    assert heads.keys == tuple(tuple(range(24 * h + 8, 24 * h + 16)) for h in range(4))
    assert heads.values == tuple(tuple(range(24 * h + 16, 24 * h + 24)) for h in range(4))
    assert heads.scale == pytest.approx(8**-0.5)


class Patches(nn.Module):
    """Convolutions over patches: each but the first mixes neighbours."""

    def __init__(self):
        super().__init__()
        convs = (nn.Conv2d(3, 16, 4, 4), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)))
        self.body = nn.Sequential(*(nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU()) for conv in convs))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def followed(build, *passes):
    """A stage after the passes, and R^2 by layer of the last one."""
    work = grafted(taught(Patches, SIZE), build)
    reports = [each(work) for each in passes]
    return work, {layer["layer"]: layer["r2"] for layer in reports[-1]["layers"]}


def outputs(found):
    """Of the layers behind attention."""
    return [r2 for name, r2 in found.items() if name.endswith((".proj", ".out")) and "block" in name]


@pytest.mark.parametrize("build", [vit, vit_pooled, Own])
def test_a_refit_leaves_the_coordinates_and_follows_convolutions_further(build):
    work, after = followed(build, Neighbours(), Refit(images=128))
    _, before = followed(build, Refit(images=128))
    stream = find_token_streams(work.target.graph)[0]
    for layer in stream.writers:
        for slot in layer.tensors.values():
            assert not work.target.module.get_parameter(slot.key)[list(stream.codes)].any()
    assert len(outputs(after)) == len(outputs(before)) == 2
    assert outputs(after)[0] > outputs(before)[0] + 0.05


@pytest.mark.parametrize("build", [vit, vit_pooled, Own, interleaved, Encoder])
def test_chosen_values_carry_more_than_random_ones(build):
    """And read no coordinates; what heads look at stays as it is."""
    work, chosen = followed(build, Neighbours(), Refit(images=128, values=True))
    random, drawn = followed(build, Neighbours(), Refit(images=128))
    stream = find_token_streams(work.target.graph)[0]
    values = [attention.value for attention in stream.attentions]
    assert [name for name in chosen if name in values] == values
    assert not any(name in drawn for name in values)
    ends = [name for name in drawn if name.endswith((".proj", ".out", "out_proj"))]
    assert ends
    assert sum(chosen[name] for name in ends) > sum(drawn[name] for name in ends) + 0.02
    for attention in stream.attentions:
        heads = find_heads(Replay(work.target.module, torch.rand(2, *SIZE)), attention)
        for name, rows in ((attention.query, heads.queries), (attention.key, heads.keys)):
            key = work.target.graph.layers[name].tensors["weight"].key
            places = [row for head in rows for row in head]
            before, after = (each.target.module.get_parameter(key)[places] for each in (random, work))
            assert torch.equal(before, after)
        weight = work.target.module.get_parameter(work.target.graph.layers[attention.value].tensors["weight"].key)
        assert not weight[[row for head in heads.values for row in head]][:, list(stream.codes)].any()


def test_values_are_in_the_ledger_where_they_are_chosen():
    source, target = network(Straight, SIZE).graph, network(vit, SIZE).graph
    without = Refit().touches(source, target, Pairing(()))
    more = set(Refit(values=True).touches(source, target, Pairing(()))) - set(without)
    assert more == {f"blocks.{i}.attn.qkv.weight" for i in range(2)}


def test_options():
    assert plugins.create("passes", "neighbours", {"sharpness": "2"}) == Neighbours(2.0)
    with pytest.raises(UsageError, match="positive"):
        plugins.create("passes", "neighbours", {"sharpness": 0})


def test_the_same_seed_gives_the_same_values():
    states = [copy.deepcopy(turned(Own)[0].target.module.state_dict()) for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
