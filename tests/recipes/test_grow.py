"""Growth against the only truth there is: the grown network computes what the source computes."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.nets import Net
from support.transformer_nets import Attention, Interleaved, Own, interleaved
from torch import nn

from netgraft.errors import CheckFailed, UsageError
from netgraft.graft import graft
from netgraft.models.importance import channel_norms
from netgraft.plan import KEPT, SET, Plan
from netgraft.recipes.grow import Grow
from netgraft.recipes.run import run_recipe
from netgraft.trace import trace


def looks_trained(module, seed=0):
    """Statistics and affines as after training: nothing zero, nothing one, no two channels alike."""
    rng = torch.Generator().manual_seed(seed)

    def noise(tensor):
        return torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype)

    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if key.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng, dtype=tensor.dtype))
            elif tensor.is_floating_point() and tensor.ndim <= 1:
                tensor.add_(0.2 * noise(tensor))
            elif tensor.is_floating_point():
                tensor.add_(0.02 * noise(tensor))
    return module.eval()


def grown(source, target, size, target_size=None, *, dtype=torch.float64, recipe=None):
    """(plan, source net, grown net): both in eval mode and of type ``dtype``."""
    graphs = trace(Net(source, size)), trace(Net(target, target_size or size))
    recipe = recipe or Grow()
    pairing, moves, kept = run_recipe(recipe, *graphs)
    plan = Plan("s", "t", "", "", "grow", {}, pairing, tuple(moves), tuple(kept))
    torch.manual_seed(0)
    there, here = looks_trained(source()).to(dtype), target().eval().to(dtype)
    before = {key: tensor.clone() for key, tensor in there.state_dict().items()}
    here.load_state_dict(graft(plan, there.state_dict(), here.state_dict()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in there.state_dict().items()), "source changed"
    return plan, there, here


def error(there, here, size, batch=2):
    """Relative difference of the two outputs on seeded images."""
    images = torch.randn(batch, *size, generator=torch.Generator().manual_seed(1)).to(next(there.parameters()).dtype)
    with torch.no_grad():
        expected, found = there(images), here(images)
    return ((expected - found).norm() / expected.norm()).item()


def from_source(plan):
    """Share of the target that comes from the source, zeros and kept numbers not counted."""
    coverage = plan.coverage()
    return 1 - (coverage[KEPT] + coverage[SET]) / sum(coverage.values())


def timm_net(name, **kwargs):
    import timm

    return lambda: timm.create_model(name, pretrained=False, **kwargs)


def wide_resnet18():
    """ResNet-18, half as wide again, with 5x5 kernels for 3x3."""
    net = timm_net("resnet18")()

    def wide(width):
        return width if width == 3 else width * 3 // 2

    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                kernel = 5 if child.kernel_size == (3, 3) else child.kernel_size
                padding = 2 if kernel == 5 else child.padding
                widths = wide(child.in_channels), wide(child.out_channels)
                setattr(module, name, nn.Conv2d(*widths, kernel, child.stride, padding, bias=False))
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(wide(child.num_features)))
    net.fc = nn.Linear(768, 1000)
    return net


IMAGE = (3, 64, 64)
EXACT = {
    "deeper: resnet18 to resnet34": (timm_net("resnet18"), timm_net("resnet34"), IMAGE),
    "wider, larger kernels: resnet18": (timm_net("resnet18"), wide_resnet18, IMAGE),
    "gates, depthwise: efficientnet_b0 to b1": (timm_net("efficientnet_b0"), timm_net("efficientnet_b1"), IMAGE),
    "odd ratios: mobilenetv3_small": (
        timm_net("mobilenetv3_small_075"),
        timm_net("mobilenetv3_small_100"),
        (3, 96, 96),
    ),
    "more heads: vit_tiny to vit_small": (
        timm_net("vit_tiny_patch16_224", img_size=64),
        timm_net("vit_small_patch16_224", img_size=64),
        IMAGE,
    ),
    "wider heads: a vit of head dim 32 to 64": (
        timm_net("vit_tiny_patch16_224", img_size=64, embed_dim=96, depth=2),
        timm_net("vit_tiny_patch16_224", img_size=64, embed_dim=192, depth=2),
        IMAGE,
    ),
    "shifted windows: swin_tiny to swin_small": (
        timm_net("swin_tiny_patch4_window7_224"),
        timm_net("swin_small_patch4_window7_224"),
        (3, 224, 224),
    ),
    "gated token mixing: gmlp_ti16 to gmlp_s16": (
        timm_net("gmlp_ti16_224"),
        timm_net("gmlp_s16_224"),
        (3, 224, 224),
    ),
}


@pytest.mark.parametrize("pair", EXACT)
def test_a_contained_source_is_computed_exactly(pair):
    source, target, size = EXACT[pair]
    plan, there, here = grown(source, target, size, dtype=torch.float32)
    assert plan.pairing.notes == ()
    assert error(there, here, size) <= 1e-5
    assert error(there.double(), here.double(), size) <= 1e-6  # the weights were rounded to float32
    assert from_source(plan) >= 0.95


@pytest.mark.parametrize("pair", ["wider, larger kernels: resnet18", "more heads: vit_tiny to vit_small"])
def test_growth_is_exact_beyond_float32(pair):
    source, target, size = EXACT[pair]
    _, there, here = grown(source, target, size)
    assert error(there, here, size) <= 1e-12


def test_what_cannot_be_exact_is_named_with_its_reason():
    """ConvNeXt's LayerNorm reads a depthwise convolution: 40 channels have no exact place among 48."""
    source, target = timm_net("convnext_atto"), timm_net("convnext_femto")
    plan, there, here = grown(source, target, IMAGE, dtype=torch.float32)
    assert len(plan.pairing.notes) == 4
    assert plan.pairing.notes[0].startswith("stem.0.weight[0]: 40 channels grow to 48, not a whole multiple")
    assert 1e-5 < error(there, here, IMAGE) < 0.3
    assert from_source(plan) >= 0.95
    with pytest.raises(CheckFailed, match="cannot compute exactly"):
        run_recipe(Grow(exact=True), trace(Net(source, IMAGE)), trace(Net(target, IMAGE)))


def test_a_whole_multiple_under_layer_norm_is_exact():
    source = timm_net("convnext_atto", depths=(1, 1, 1, 1), dims=(12, 20, 28, 36))
    target = timm_net("convnext_atto", depths=(1, 2, 1, 1), dims=(24, 60, 28, 72))
    plan, there, here = grown(source, target, IMAGE)
    assert plan.pairing.notes == ()
    assert error(there, here, IMAGE) <= 1e-12


class Mixed(nn.Module):
    """A residual, a concatenation, a grouped convolution, a gate and a flattened map, all of chosen widths."""

    def __init__(self, a=4, b=6, groups=2, squeezed=3, hidden=10):
        super().__init__()
        self.stem = nn.Conv2d(3, a, 3, padding=1)
        self.norm = nn.BatchNorm2d(a)
        self.left = nn.Conv2d(a, b, 1)
        self.right = nn.Conv2d(a, a, 3, padding=1, groups=a)
        self.grouped = nn.Conv2d(a + b, 4 * groups, 3, padding=1, groups=1)
        self.inner = nn.Conv2d(4 * groups, 2 * groups, 3, padding=1, groups=groups)
        self.squeeze = nn.Conv2d(2 * groups, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, 2 * groups, 1)
        self.hidden = nn.Linear(2 * groups * 16, hidden)
        self.head = nn.Linear(hidden, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = torch.cat([F.gelu(self.left(x)), x + self.right(x)], 1)
        x = F.relu(self.grouped(x))
        x = self.inner(x)
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)
        return self.head(F.relu(self.hidden(x)))


@pytest.mark.parametrize("symmetry", ["break", "keep"])
def test_every_kind_of_coupling_grows_exactly(symmetry):
    def target():
        return Mixed(a=7, b=6, groups=4, squeezed=5, hidden=13)

    plan, there, here = grown(Mixed, target, (3, 16, 16), recipe=Grow(symmetry=symmetry))
    assert plan.pairing.notes == ()
    assert error(there, here, (3, 16, 16)) <= 1e-12


@pytest.mark.parametrize(("symmetry", "alike"), [("break", False), ("keep", True)])
def test_copies_part_ways_in_training_unless_symmetry_is_kept(symmetry, alike):
    class Plain(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.last = nn.Linear(3, width), nn.Linear(width, 2)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)))

    _, _, here = grown(lambda: Plain(4), lambda: Plain(8), (3,), recipe=Grow(symmetry=symmetry))
    rows = here.first.weight
    assert torch.equal(rows[:4], rows[4:])
    optimizer = torch.optim.SGD(here.parameters(), lr=0.1)
    here.train()(torch.randn(16, 3, dtype=rows.dtype)).square().mean().backward()
    optimizer.step()
    assert torch.equal(here.first.weight[:4], here.first.weight[4:]) is alike


def test_inserted_blocks_train_at_once():
    """The end of an inserted transformer block cancels instead of being zero, so its kernels get gradients at once.

    (Its norms do not: the two halves send them opposite gradients.)
    """
    source = timm_net("vit_tiny_patch16_224", img_size=64, depth=1, num_heads=4, embed_dim=32)
    target = timm_net("vit_tiny_patch16_224", img_size=64, depth=2, num_heads=4, embed_dim=32)
    _, there, here = grown(source, target, IMAGE)
    assert error(there, here, IMAGE) <= 1e-12
    here.train()(torch.randn(2, *IMAGE, dtype=torch.float64)).square().mean().backward()
    for name, parameter in here.blocks[1].named_parameters():
        if name.endswith("weight") and "norm" not in name:
            assert parameter.grad.abs().max() > 1e-9, name


class Vgg(nn.Module):
    """A plain chain: stages of convolutions with ReLU, pooled, then linear layers."""

    def __init__(self, stages=((6,), (8, 8)), hidden=(10,), norm=True, kernel=3):
        super().__init__()
        layers, width = [], 3
        for widths in stages:
            for wide in widths:
                layers += [nn.Conv2d(width, wide, kernel, padding=kernel // 2)]
                layers += [nn.BatchNorm2d(wide), nn.ReLU()] if norm else [nn.ReLU()]
                width = wide
            layers.append(nn.MaxPool2d(2))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.ReLU()]
            width = wide
        self.layers = nn.Sequential(*layers, nn.Linear(width, 5))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("norm", [True, False])
def test_a_plain_chain_grows_deeper_by_dirac_kernels(norm):
    """Deeper, wider, with larger kernels: extra convolutions and linear layers pass their input through."""

    def source():
        return Vgg(norm=norm)

    def target():
        return Vgg(((6, 6), (12, 12, 12)), (13, 13), norm=norm, kernel=5)

    plan, there, here = grown(source, target, (3, 16, 16))
    assert plan.pairing.notes == ()
    assert len(plan.pairing.diracs) == (5 if norm else 3)
    assert error(there, here, (3, 16, 16)) <= 1e-12


def test_shrinking_undoes_growing():
    """fold(widen(W)) = W: back to the source's widths, the source comes back."""

    def narrow():
        return Mixed()

    def wide():
        return Mixed(a=8, b=12, groups=4, squeezed=6, hidden=20)

    _, there, here = grown(narrow, wide, (3, 16, 16))
    graphs = trace(Net(wide, (3, 16, 16))), trace(Net(narrow, (3, 16, 16)))
    pairing, moves, kept = run_recipe(Grow(shrink="fold"), *graphs)
    plan = Plan("s", "t", "", "", "grow", {}, pairing, tuple(moves), tuple(kept))
    back = narrow().double().eval()
    back.load_state_dict(graft(plan, here.state_dict(), back.state_dict()))
    assert error(there, back, (3, 16, 16)) <= 1e-12


@pytest.mark.parametrize("width", [48, 80])
def test_a_residual_stream_stretches_by_any_ratio(width):
    """Exact but for eps, which no state_dict holds: with the eps that the theory asks for, exact."""
    source = timm_net("vit_tiny_patch16_224", img_size=64, depth=2, num_heads=2, embed_dim=32)
    target = timm_net("vit_tiny_patch16_224", img_size=64, depth=3, num_heads=width // 16, embed_dim=width)
    plan, there, here = grown(source, target, IMAGE)
    assert any("eps is not in a state_dict" in note for note in plan.pairing.notes)
    assert error(there, here, IMAGE) <= 1e-4
    for module in here.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps *= (width // 32) * 32 / width
    assert error(there, here, IMAGE) <= 1e-12


def test_another_image_size_resizes_the_positions():
    source = timm_net("vit_tiny_patch16_224", img_size=64, depth=2)
    target = timm_net("vit_tiny_patch16_224", img_size=96, depth=2)
    plan, there, here = grown(source, target, IMAGE, (3, 96, 96))
    (note,) = plan.pairing.notes
    assert "pos_embed: positions of a 4 x 4 grid become those of 6 x 6" in note
    assert torch.equal(here.pos_embed[:, 0], there.pos_embed[:, 0])
    from timm.layers import resample_abs_pos_embed

    expected = resample_abs_pos_embed(there.pos_embed.float(), [6, 6], old_size=[4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(here.pos_embed.float(), expected, rtol=1e-4, atol=1e-5)


def test_grey_images_for_coloured_ones():
    plan, there, here = grown(timm_net("resnet18"), timm_net("resnet18", in_chans=1), IMAGE, (1, 64, 64))
    (note,) = plan.pairing.notes
    assert "images of 3 channels become images of 1" in note
    grey = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(here(grey), there(grey.expand(-1, 3, -1, -1)))


def test_a_label_map_moves_the_rows_of_the_head():
    source, target = timm_net("resnet18", num_classes=6), timm_net("resnet18", num_classes=4)
    _, there, here = grown(source, target, IMAGE, recipe=Grow(labels=(5, -1, 0, 0)))
    images = torch.randn(2, *IMAGE, dtype=torch.float64)
    with torch.no_grad():
        expected, found = there(images), here(images)
    torch.testing.assert_close(found[:, [0, 2, 3]], expected[:, [5, 0, 0]])
    assert found[:, 1].abs().max() == 0
    with pytest.raises(UsageError, match="label map"):
        grown(source, target, IMAGE, recipe=Grow(labels=(6, 0, 0, 0)))


def test_another_number_of_classes_keeps_the_head_only():
    plan, there, here = grown(timm_net("resnet18"), timm_net("resnet18", num_classes=7), IMAGE)
    assert {kept.key for kept in plan.kept} == {"fc.weight", "fc.bias"}
    images = torch.randn(2, *IMAGE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(here.forward_features(images), there.forward_features(images))


def test_the_most_important_channels_stay():
    """Half the channels of every layer zero in the source: a target of half the width computes the same."""

    class Plain(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, width, 3), nn.Linear(width, 4)

        def forward(self, x):
            return self.last(F.relu(self.first(x)).mean((2, 3)))

    wide = Plain(8).double()
    with torch.no_grad():
        for dead in (0, 3, 4, 6):
            wide.first.weight[dead] = wide.first.bias[dead] = wide.last.weight[:, dead] = 0
    graphs = [trace(Net(lambda width=width: Plain(width), (3, 8, 8))) for width in (8, 4)]
    norms = channel_norms(wide.state_dict())
    pairing, moves, kept = run_recipe(Grow(shrink="importance"), *graphs, norms=norms)
    plan = Plan("s", "t", "", "", "grow", {}, pairing, tuple(moves), tuple(kept))
    (move,) = [move for move in moves if move.key == "first.weight"]
    assert move.steps[0].options == {"dim": 0, "index": [[1, 2], [5, 1], [7, 1]]}
    narrow = Plain(4).double()
    narrow.load_state_dict(graft(plan, wide.state_dict(), narrow.state_dict()))
    narrow.last.weight.data /= 2**0.5  # fewer inputs were scaled up as if they were independent
    assert error(wide, narrow, (3, 8, 8)) <= 1e-12


ANY = [
    ("resnet34", "resnet18"),
    ("resnet18", "mobilenetv3_small_100"),
    ("resnet50", "efficientnet_b0"),
    ("vgg11", "resnet18"),
    ("densenet121", "resnet50"),
    ("convnext_tiny", "resnet50"),
    ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"),
]


@pytest.mark.parametrize(("source", "target"), ANY)
@pytest.mark.parametrize("shrink", ["uniform", "first", "fold"])
def test_any_pair_is_planned_and_says_what_is_lossy(source, target, shrink):
    graphs = [trace(Net(timm_net(name), (3, 224, 224))) for name in (source, target)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairing, moves, kept = run_recipe(Grow(shrink=shrink), *graphs)
    plan = Plan("s", "t", "", "", "grow", {}, pairing, tuple(moves), tuple(kept))
    plan.check_law(graphs[1].slots)
    assert plan.pairing.notes
    assert moves
    rng = torch.Generator().manual_seed(0)
    theirs, ours = (
        {key: torch.randn(slot.shape, generator=rng) for key, slot in graph.slots.items()} for graph in graphs
    )
    result = graft(plan, theirs, ours)
    assert all(tensor.isfinite().all() for tensor in result.values())


# ------------------------------------------------------------------------------------------------------- heads


class BuiltIn(nn.MultiheadAttention):
    def __init__(self, width, heads):
        super().__init__(width, heads, batch_first=True)

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("attention", [Attention, BuiltIn])
@pytest.mark.parametrize(("width", "heads"), [(64, 4), (48, 4), (96, 6)])
def test_wider_heads_are_exact_whoever_writes_the_attention(attention, width, heads):
    """8 channels a head become 16, 12 and 16; a stretched stream is exact but for eps (1e-5 over the variance)."""
    target = partial(Own, attention, width=width, heads=heads)
    plan, there, here = grown(partial(Own, attention), target, (3, 16, 16))
    assert error(there, here, (3, 16, 16)) < (1e-5 if width == 48 else 1e-12)
    assert all("eps" in note for note in plan.pairing.notes)


def test_queries_that_alternate_with_keys_are_not_taken_for_rows_of_queries():
    plan, *_ = grown(interleaved, partial(Own, Interleaved, width=64), (3, 16, 16))
    assert any("takes a product over them" in note for note in plan.pairing.notes)
