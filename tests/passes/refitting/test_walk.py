"""A network refitted to another: to one of its own kind it gives the same function again, whatever its weights were."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.refit_nets import (
    Gated,
    Mlp,
    Opaque,
    Plain,
    Residual,
    Separable,
    convnext,
    features,
    images,
    in_batches,
    kept_aside,
    layers,
    made,
    refitted,
    swin,
    vit,
)
from torch import nn

from netgraft.architecture.endings import find_endings
from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.fitting import RIDGES
from netgraft.passes.refitting.jobs import Jobs
from netgraft.passes.refitting.pairing import follow
from netgraft.trace.replay import Replay


def correlation(a, b):
    """Of all features together, each about its own mean."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum() / (a.norm() * b.norm()))


def share(a, b):
    """How much of b a gives: 1 - |a - b|^2 / |b|^2."""
    return 1 - float((a - b).square().sum() / b.square().sum())


def stirred(build):
    """The same network with kernels that share nothing with its own, and large branches."""
    net, other = made(build), made(build)
    rng = torch.Generator().manual_seed(3)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        if one.dim() > 1 and "token" not in str(one.shape) and one.shape[0] != 1:
            if one.dim() == 2:
                one.mul_(4)
                two.mul_(4)
            two.copy_(two.std() * torch.randn(two.shape, generator=rng))
    return net, other


def fitted_images():
    """Those of the images by default that a refit fits on."""
    return images()[kept_aside(images()) :]


WITH_NORMS = {
    "plain": (Plain, 0.97, 0.99),
    "without biases": (lambda: Plain(bias=False), 0.97, 0.99),
    "grouped": (lambda: Plain(groups=4), 0.97, 0.99),
    "residual": (Residual, 0.95, 0.99),
}
"""Networks; at least the correlation of the features, and their share, afterwards."""


@pytest.mark.parametrize(("build", "correlated", "shared"), WITH_NORMS.values(), ids=WITH_NORMS)
def test_a_network_is_refitted_to_itself(build, correlated, shared):
    source, target = stirred(build)
    x = images(seed=3)
    assert correlation(features(target, x), features(source, x)) < 0.5
    done, left = refitted(source, target, x=images(128))
    assert not left
    assert all(each.partner == name for name, each in done.items())
    kernels = {name for name, part in source.named_modules() if isinstance(part, nn.Conv2d)}
    assert set(done) == kernels
    assert all(each.r2 > 0.85 for each in done.values())
    assert correlation(features(target, x), features(source, x)) > correlated
    assert share(features(target, x), features(source, x)) > shared


SCALE_FREE = {
    "no norms": (lambda: Plain(norm=False), 0.97),
    "norm behind the activation": (lambda: Plain(late=True), 0.85),
    "swin": (swin, 0.95),
    "convnext": (convnext, 0.9),
    "separable": (Separable, 0.85),
}


@pytest.mark.parametrize(("build", "correlated"), SCALE_FREE.values(), ids=SCALE_FREE)
def test_the_same_features_up_to_their_scale(build, correlated):
    source, target = stirred(build)
    x = images(seed=3)
    before = correlation(features(target, x), features(source, x))
    _, left = refitted(source, target, x=images(128))
    after = correlation(features(target, x), features(source, x))
    assert not left
    assert after > correlated
    assert after > before + 0.05


@pytest.mark.parametrize("build", [Mlp, vit], ids=["perceptron", "vit"])
def test_on_the_images_themselves(build):
    """Few positions, many inputs: nothing is said about other images."""
    source, target = stirred(build)
    x = images(256)
    before = correlation(features(target, x), features(source, x))
    done, left = refitted(source, target, x=x)
    assert correlation(features(target, x), features(source, x)) > before + 0.3
    assert done
    assert not left


def test_activations_of_the_first_layer_are_those_of_the_source():
    """With so many images and so little penalty on one layer, its norm's output is the source's."""
    source, target = stirred(Plain)
    refitted(source, target)
    x = fitted_images()
    theirs, ours = (net.norms[0](net.convs[0](x)) for net in (source, target))
    assert share(ours, theirs) > 0.97
    torch.testing.assert_close(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), rtol=0.01, atol=0.01)
    torch.testing.assert_close(ours.std((0, 2, 3)), theirs.std((0, 2, 3)), rtol=0.02, atol=0.01)


@pytest.mark.parametrize("build", [Plain, Residual, Separable, lambda: Plain(late=True)])
def test_statistics_of_norms_are_those_of_what_they_read(build):
    source, target = stirred(build)
    refitted(source, target)
    seen = {}
    for name, part in target.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(lambda _m, given, name=name: seen.update({name: given[0].clone()}))
    target(fitted_images())
    assert seen
    for name, given in seen.items():
        norm = target.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, given.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, given.var((0, 2, 3)), rtol=1e-2, atol=1e-5)


def test_one_scale_for_all_that_a_stream_adds_up():
    """What one block hands to the next keeps its proportion to what that block adds to it."""
    net = made(vit)
    for block in net.blocks:
        block.ls2.gamma.fill_(100.0)  # the stream grows
    x = images()
    batches = in_batches(x)
    replay = Replay(net, batches.source(0))
    graph = replay.graph
    pairs = [(layer.name, layer.name) for layer in graph.kernels()]
    channels = OutputChannels(graph, graph, layers(graph, graph, pairs), None)
    jobs = {
        job.layer.name: job for job in Jobs(replay, replay, batches, channels, torch.Generator(), 40_000).make(pairs)
    }
    blocks = []
    for block in net.blocks:
        block.register_forward_hook(lambda _m, _i, output: blocks.append(output))
    net(x)
    spread = {name: torch.cat(list(job.wanted.values())).std() for name, job in jobs.items()}
    ends = [spread[f"blocks.{i}.mlp.fc2"] for i in range(len(blocks))]
    assert blocks[1].std() / blocks[0].std() > 1.2
    torch.testing.assert_close(ends[1] / ends[0], blocks[1].std() / blocks[0].std(), rtol=1e-4, atol=0)
    torch.testing.assert_close(spread["blocks.0.mlp.fc1"], torch.tensor(1.0))


@pytest.mark.parametrize(("source", "centred"), [(Plain, True), (lambda: Plain(norm=False), False)])
def test_a_target_that_loses_the_norms_is_centred(source, centred):
    net, target = made(source), made(lambda: Plain(norm=False), seed=5)
    for norm in net.norms:
        if isinstance(norm, nn.BatchNorm2d):
            norm.bias.fill_(0.5)
    for conv in net.convs:
        conv.bias.fill_(0.5)
    refitted(net, target)
    offsets = []
    for conv in target.convs:
        conv.register_forward_hook(lambda _m, _i, out: offsets.append(out.mean((0, 2, 3)).abs().mean() / out.std()))
    target(images())
    assert [bool(offset < 0.01) for offset in offsets] == [centred] * 3


# ------------------------------------------------------------------------------------- about the weights that it has


def shaken(build, share=0.3):
    """A network, and a copy whose kernels are in part noise: every one of them, so that nothing is exact."""
    source = made(build)
    target = copy.deepcopy(source)
    rng = torch.Generator().manual_seed(3)
    for tensor in target.parameters():
        if tensor.dim() > 1:
            tensor.add_(share * tensor.std() * torch.randn(tensor.shape, generator=rng))
    return source, target


KERNELS = {
    "plain": (Plain, [f"convs.{i}" for i in range(3)]),
    "no norms": (lambda: Plain(norm=False), [f"convs.{i}" for i in range(3)]),
    "separable": (Separable, ["stem", "deep", "point"]),
}


@pytest.mark.parametrize(("build", "kernels"), KERNELS.values(), ids=KERNELS)
def test_few_images_do_not_throw_away_what_weights_know(build, kernels):
    agreed = []
    for grafted in ((), kernels):
        source, target = shaken(build)
        x = images(200, seed=3)
        if not agreed:
            agreed.append(correlation(features(target, x), features(source, x)))
        refitted(source, target, pairs=[(name, name) for name in kernels], x=images(3, seed=8), grafted=grafted)
        agreed.append(correlation(features(target, x), features(source, x)))
    before, about_zero, about_weights = agreed
    assert about_weights > about_zero
    assert about_weights > before - 0.01


def test_weights_that_are_right_up_to_their_size_stay_and_get_it():
    """As behind a graft, which drops a norm's statistics and gives a kernel another length."""
    source = made(Plain)
    source.norms[0].weight[:4].mul_(-1)
    target = copy.deepcopy(source)
    for conv, norm in zip(target.convs, target.norms, strict=True):
        conv.weight.mul_(3)
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
    before = copy.deepcopy(target.state_dict())
    kernels = [f"convs.{i}" for i in range(3)]
    done, left = refitted(source, target, grafted=kernels)
    assert not done
    assert set(left) == set(kernels)
    assert all(torch.equal(target.get_parameter(f"{name}.weight"), before[f"{name}.weight"]) for name in kernels)
    x = images(seed=5)
    assert share(features(target, x), features(source, x)) > 0.98
    assert (target.norms[0].weight[:4] < 0).all()


def test_what_explains_nothing_on_other_images_is_not_written():
    """Ten images of noise and 768 inputs: what was fitted on is explained, and nothing else."""
    source, target = stirred(Mlp)
    before = copy.deepcopy(target.state_dict())
    noise = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    done, left = refitted(source, target, pairs=[("a", "a")], x=noise)
    assert not done
    assert "no more" in left["a"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_numbers_that_are_not_finite_are_not_fitted():
    source, target = stirred(Plain)
    source.norms[1].weight.fill_(torch.inf)
    before = target.convs[1].weight.clone()
    _, left = refitted(source, target)
    assert "finite" in left["convs.1"]
    assert torch.equal(target.convs[1].weight, before)


def test_behind_a_gate_too():
    source, target = stirred(Residual)[0], made(lambda: Residual(gated=Gated), seed=5)
    x = images(seed=3)
    before = correlation(features(target, x), features(source, x))
    done, left = refitted(source, target, x=images(128))
    assert not left
    assert done["blocks.1.conv2"].partner == "blocks.1.conv2"
    after = correlation(features(target, x), features(source, x))
    assert after > max(0.9, before + 0.2)


def test_r2_is_that_on_the_images_kept_aside():
    """Where images are few and inputs many, what was fitted on is explained and other images are not."""
    source, target = stirred(Mlp)
    done, _ = refitted(source, target, x=images(24))
    assert all(each.r2 < 0.7 for each in done.values())
    source, target = stirred(Mlp)
    more, _ = refitted(source, target, x=images(1500))
    assert more["a"].r2 > 0.8


def test_kernels_before_norms_keep_their_length():
    source, target = stirred(Residual)
    before = {name: p.norm().clone() for name, p in target.named_parameters() if p.dim() == 4}
    refitted(source, target)
    for name, length in before.items():
        torch.testing.assert_close(target.get_parameter(name).norm(), length, rtol=1e-4, atol=0)


def test_a_kernel_of_zeros_is_fitted_all_the_same():
    source, target = stirred(Plain)
    target.convs[1].weight.zero_()
    refitted(source, target)
    x = images(seed=3)
    assert target.convs[1].weight.norm() > 0
    assert correlation(features(target, x), features(source, x)) > 0.97


def test_a_depthwise_layer_follows_a_depthwise_one():
    source, target = stirred(Separable)
    pairs = [("stem", "stem"), ("deep", "deep"), ("point", "point")]
    done, left = refitted(source, target, pairs=pairs, x=images(128))
    assert not left
    assert done["deep"].how == "ridge regression, group by group"
    x = images(seed=3)
    assert correlation(features(target, x), features(source, x)) > 0.95


def test_a_depthwise_layer_makes_filters_for_the_pointwise_one():
    source, target = stirred(Plain), stirred(Separable)
    done, _ = refitted(source[0], target[1], pairs=[("convs.0", "stem"), ("convs.2", "deep"), ("convs.2", "point")])
    assert done["deep"].how.startswith("filters")
    assert torch.equal(target[1].deep_norm.weight, torch.ones(8))
    assert torch.equal(target[1].deep_norm.bias, torch.ones(8))


def test_a_wider_target_keeps_its_new_channels():
    source = made(Plain)
    target = made(lambda: Plain((12, 16, 20)), seed=5)
    before = copy.deepcopy(target.state_dict())
    done, left = refitted(source, target, x=images(128))
    assert set(done) == {"convs.0", "convs.1", "convs.2"}
    assert not left
    x = images(seed=3)
    assert correlation(features(target, x)[:, :12], features(source, x)) > 0.95
    for i, width in enumerate((8, 12, 12)):
        assert torch.equal(target.convs[i].weight[width:], before[f"convs.{i}.weight"][width:])
        assert not torch.equal(target.convs[i].weight[:width], before[f"convs.{i}.weight"][:width])
        assert torch.equal(target.norms[i].weight[width:], before[f"norms.{i}.weight"][width:])


def test_a_narrower_target_follows_the_first_channels_of_its_map():
    source, target = made(Plain), made(lambda: Plain((4, 6, 6)), seed=5)
    done, left = refitted(source, target, x=images(128))
    assert set(done) == {"convs.0", "convs.1", "convs.2"}
    x = images(seed=3)
    theirs = features(source, x)
    best = [max(abs(correlation(mine[:, None], each[:, None])) for each in theirs.T) for mine in features(target, x).T]
    assert min(best) > 0.3
    assert not left


def test_same_bytes_twice():
    results = []
    for _ in range(2):
        source, target = stirred(Residual)
        refitted(source, target, rows=500, seed=1)
        results.append(target.state_dict())
    assert all(torch.equal(tensor, results[1][key]) for key, tensor in results[0].items())


def test_the_source_is_not_touched():
    source, target = stirred(Residual)
    before = copy.deepcopy(source.state_dict())
    refitted(source, target)
    assert all(torch.equal(tensor, before[key]) for key, tensor in source.state_dict().items())


# ---------------------------------------------------------------------------------------------- what cannot be fitted


class Odd(nn.Module):
    """A transposed convolution, a layer called twice, one with a prepared weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.prepared = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.twice(F.relu(self.twice(F.relu(self.stem(x))))))
        x = F.relu(self.up(F.max_pool2d(x, 2)))
        weight = self.prepared.weight - self.prepared.weight.mean((1, 2, 3), keepdim=True)
        x = F.relu(F.conv2d(x, weight, self.prepared.bias, padding=1))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


def test_layers_left_are_left_with_a_reason():
    source, target = made(lambda: Plain((8, 8, 8), norm=False)), made(Odd, seed=2)
    before = copy.deepcopy(target.state_dict())
    here = Replay(target, images()).graph
    names = [layer.name for layer in here.kernels() if layer.name != "head"]
    done, left = refitted(source, target, pairs=[("convs.1", name) for name in names])
    reasons = dict(left)
    assert set(done) == {"stem", "last"}
    assert "more than once" in reasons.pop("twice")
    assert "not refitted" in reasons.pop("up")
    assert "prepared" in " ".join(reasons.values())
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key.split(".")[0] not in done)


def test_a_source_that_is_no_map_has_no_counterpart():
    source, target = made(swin), made(Plain)
    done, left = refitted(
        source, target, pairs=[("layers.0.blocks.0.attn.qkv", "convs.0"), ("patch_embed.proj", "convs.1")]
    )
    assert set(done) == {"convs.1"}
    assert "counterpart" in left["convs.0"]


def test_the_scale_of_a_branch_becomes_one_only_where_its_layer_is_refitted():
    source, target = stirred(convnext)
    pairs = [(name, name) for name in ("stages.0.blocks.0.mlp.fc2", "stages.0.blocks.1.mlp.fc1")]
    before = target.stages[0].blocks[1].gamma.clone()
    refitted(source, target, pairs=pairs)
    assert torch.equal(target.stages[0].blocks[0].gamma, torch.ones(8))
    assert torch.equal(target.stages[0].blocks[1].gamma, before)


def test_as_many_channels_as_columns():
    """8 channels on 8 x 8 pixels: a linear layer that ends in a permuted map is fitted along the right axis."""
    source, target = stirred(convnext)
    assert source.stages[0](source.stem(images(2))).shape == (2, 8, 16, 16)
    assert source.stages[1](source.stages[0](source.stem(images(2)))).shape == (2, 8, 8, 8)
    done, _ = refitted(source, target, x=images(128))
    assert done["stages.1.blocks.0.mlp.fc2"].r2 > 0.1  # 0.0 along the wrong one


# -------------------------------------------------------------------------------------------------------------- pairing


def graph_of(build):
    return Replay(made(build), images(2)).graph


@pytest.mark.parametrize("build", [Plain, Residual, Separable, Mlp, vit, swin, convnext])
def test_a_network_follows_itself(build):
    graph = graph_of(build)
    pairs = {b: a for a, b in follow(graph, graph)}
    heads = {layer.name for layer in graph.heads()}
    depthwise = {layer.name for layer in graph.kernels() if layer.groups > 1}
    assert all(a == b for b, a in pairs.items() if b not in depthwise)
    assert set(pairs) == set(find_endings(graph)) - heads


@pytest.mark.parametrize("there", [Plain, Residual])
@pytest.mark.parametrize("here", [Plain, Residual, lambda: Plain((4, 4, 4, 8, 8)), lambda: Residual(6)])
def test_the_last_follows_the_last(there, here):
    last = {Plain: "convs.2", Residual: "blocks.1.conv2"}[there]
    target = graph_of(here)
    pairs = follow(graph_of(there), target)
    order = [name for name in target.layers if name in {b for _, b in pairs}]
    assert [b for _, b in pairs] == order
    final = [name for name in order if "down" not in name][-1]
    assert {b: a for a, b in pairs}[final] == last


@pytest.mark.parametrize("end", [Gated, Opaque])
def test_a_stem_never_follows_the_last_block(end):
    """Whether the ends of the blocks after it are known or not; and what is behind a gate follows what has none."""
    target = graph_of(lambda: Residual(gated=end))
    pairs = {b: a for a, b in follow(graph_of(Residual), target)}
    assert pairs["stem"] == "stem"
    assert ("blocks.1.conv2" in pairs) == (end is Gated)
    assert pairs.get("blocks.1.conv2", "blocks.1.conv2") == "blocks.1.conv2"
    back = {b: a for a, b in follow(target, graph_of(Residual))}
    assert (back.get("blocks.1.conv2") == "blocks.1.conv2") == (end is Gated)


def test_a_projection_follows_the_projection():
    source, target = graph_of(Residual), graph_of(lambda: Residual(6))
    assert {b: a for a, b in follow(source, target)}["blocks.1.down.0"] == "blocks.1.down.0"
    assert {b: a for a, b in follow(graph_of(Plain), target)}["blocks.1.down.0"] == "convs.2"


def test_layers_inside_a_block_follow_the_points_on_the_way():
    """A plain source has no layer in their place: the first half of a block follows what lies half-way."""
    plain = graph_of(lambda: Plain((4, 6, 6, 8, 8, 8, 8)))
    pairs = {b: a for a, b in follow(plain, graph_of(Residual))}
    ends = [int(pairs[f"blocks.{i}.conv2"].rpartition(".")[2]) for i in range(2)]
    inner = [int(pairs[f"blocks.{i}.conv1"].rpartition(".")[2]) for i in range(2)]
    before = [int(pairs["stem"].rpartition(".")[2]), ends[0]]
    for start, middle, end in zip(before, inner, ends, strict=True):
        assert start < middle <= end
        assert middle < end or end - start == 1


@pytest.mark.parametrize("late", [True, False])
def test_what_a_rectifier_would_cut_off_goes_to_free_channels(late):
    """A transformer's stream is read whole; before a ReLU that stands before the norm its negative is kept as well."""
    source, target = made(lambda: vit(width=8)), made(lambda: Plain(widths=(12, 16, 20), late=late))
    before = copy.deepcopy(target)
    done, _ = refitted(source, target, x=images(96))
    assert done
    for name, free in zip(done, (4, 8, 8), strict=True):
        weight, old = target.get_submodule(name).weight, before.get_submodule(name).weight
        mirrored, own = weight[8 : 8 + free], old[8 : 8 + free]
        if late:
            torch.testing.assert_close(mirrored, -weight[:free], rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(mirrored, own)
        torch.testing.assert_close(weight[8 + free :], old[8 + free :])


def test_convolutions_that_were_rectified_already_have_no_mirror():
    source, target = made(lambda: Plain(widths=(4, 6, 8))), made(lambda: Plain(widths=(12, 16, 20), late=True))
    before = copy.deepcopy(target)
    done, _ = refitted(source, target, x=images(96))
    for name in done:
        width = source.get_submodule(name).weight.shape[0]
        torch.testing.assert_close(target.get_submodule(name).weight[width:], before.get_submodule(name).weight[width:])


# ------------------------------------------------------------------------------------------------------- the penalty


@pytest.mark.parametrize("count", [12, 240])
def test_the_penalty_is_that_which_leaves_least_of_other_images(count):
    """Chosen layer by layer without a look at the images that R^2 is measured on; no fixed one is clearly better."""
    found = {}
    for ridge in (None, *RIDGES):
        source, target = stirred(Mlp)
        done, _ = refitted(source, target, pairs=[("a", "a")], x=images(count), ridge=ridge)
        found[ridge] = done["a"].r2 if "a" in done else 0.0
    assert found[None] >= max(found[ridge] for ridge in RIDGES) - 0.03
    assert found[None] == pytest.approx(found[RIDGES[0] if count == 12 else RIDGES[-1]], abs=0.03)
