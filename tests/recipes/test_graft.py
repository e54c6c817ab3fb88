"""The weights-only recipe: what it lays where, in numbers; and the passes that go on from it, end to end."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.nets import Straight, traced, weights
from support.transformer_nets import swin, vit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from netgraft import plugins
from netgraft.files.checkpoint import read_provenance
from netgraft.graft import graft
from netgraft.models.importance import channel_norms
from netgraft.models.side import Side
from netgraft.operators.apply import apply_steps
from netgraft.plan import Plan, Step
from netgraft.planning import TransferRequest
from netgraft.recipes.run import run_recipe
from netgraft.transfer import transfer

SIZE = (3, 16, 16)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(source, target, recipe="graft", **options):
    """(plan, the source's tensors, the target's own, the result)"""
    theirs, ours = weights(source), weights(target, 1)
    each = plugins.create("recipes", recipe, options)
    norms = channel_norms(theirs) if each.reads_weights else None
    pairing, moves, kept = run_recipe(each, traced(source, SIZE), traced(target, SIZE), norms)
    plan = Plan("s", "t", "", "", recipe, {}, pairing, tuple(moves), tuple(kept))
    plan.check_law(ours)
    return plan, theirs, ours, graft(plan, theirs, ours)


# ------------------------------------------------------------------------------------------------------- operators


def overlaid(weight, own, **options):
    return apply_steps(weight, [Step("overlay", options)], own=own)


@pytest.mark.parametrize("rest", ["zero", "own"])
@pytest.mark.parametrize("norm", ["source", "own"])
def test_overlay_entry_by_entry(rest, norm):
    weight, own = drawn(4, 3, 2), drawn(5, 6, 2, seed=1)
    rows, columns = [2, -1, 3, 3, -1], [-1, 0, 2, -1, -1, 1]
    runs = {
        "rows": [[2, 1], [-1, 1], [3, 1], [3, 1], [-1, 1]],
        "columns": [[-1, 1], [0, 1], [2, 1], [-1, 1], [-1, 1], [1, 1]],
    }
    found = overlaid(weight, own, **runs, rest=rest, norm=norm)
    expected = own.clone()
    for p, row in enumerate(rows):
        for q, column in enumerate(columns):
            if row >= 0:
                blank = own[p, q] if rest == "own" else torch.zeros(2)
                expected[p, q] = weight[row, column] if column >= 0 else blank
    taken = [p for p, row in enumerate(rows) if row >= 0]
    if norm == "own":
        expected[taken] *= own[taken].norm() / expected[taken].norm()
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[[1, 4]], own[[1, 4]])


def test_overlay_of_vectors():
    found = overlaid(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([7.0, 8.0, 9.0, 10.0]), rows=[[2, 1], [-1, 2], [0, 1]])
    assert found.tolist() == [3, 8, 9, 1]


def test_overlay_keeps_columns_that_it_is_not_told_about():
    weight, own = drawn(3, 2), drawn(4, 2, seed=1)
    found = overlaid(weight, own, rows=[[1, 2], [-1, 2]])
    assert torch.equal(found, torch.cat([weight[1:], own[2:]]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_fold_norm_is_the_convolution_and_its_norm(bias, affine):
    conv, norm = nn.Conv2d(3, 4, 3, bias=bias).double(), nn.BatchNorm2d(4, eps=1e-3).double().eval()
    for part, value in ((norm.running_mean, drawn(4)), (norm.running_var, drawn(4, seed=1).abs() + 0.1)):
        part.copy_(value)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    source = {f"n.{k}": v for k, v in norm.state_dict().items()} | {f"c.{k}": v for k, v in conv.state_dict().items()}
    common = {"variance": "n.running_var", "gamma": "n.weight", "eps": 1e-3}
    weight = apply_steps(conv.weight, [Step("fold-norm", common)], source=source)
    options = common | {"mean": "n.running_mean"} | ({"bias": "c.bias"} if bias else {})
    shift = apply_steps(norm.bias, [Step("fold-norm", options)], source=source)
    x = drawn(2, 3, 6, 6).double()
    torch.testing.assert_close(F.conv2d(x, weight, shift), norm(conv(x)).detach())


def test_rank_one_parts_of_a_separable_kernel_give_it_back():
    filters, mixing = drawn(3, 1, 5, 5), drawn(6, 3, 1, 1, seed=1)
    dense = mixing * filters[:, 0]
    spatial, channel = (apply_steps(dense, [Step("rank-one", {"part": part})]) for part in ("spatial", "channel"))
    assert (spatial.shape, channel.shape) == (filters.shape, mixing.shape)
    torch.testing.assert_close(channel * spatial[:, 0], dense)
    torch.testing.assert_close(spatial.flatten(1).norm(dim=1), torch.ones(3))
    assert (spatial.sum((1, 2, 3)) >= 0).all()
    x = drawn(2, 3, 9, 9, seed=2)
    torch.testing.assert_close(
        F.conv2d(F.conv2d(x, spatial, groups=3), channel), F.conv2d(x, dense), rtol=1e-4, atol=1e-4
    )


def test_rank_one_of_any_kernel_is_nearest():
    dense = drawn(6, 3, 3, 3)
    spatial, channel = (apply_steps(dense, [Step("rank-one", {"part": part})]) for part in ("spatial", "channel"))
    for c in range(3):
        sizes = torch.linalg.svdvals(dense[:, c].flatten(1))
        rest = dense[:, c] - (channel * spatial[:, 0])[:, c]
        torch.testing.assert_close(rest.square().sum(), sizes[1:].square().sum(), rtol=1e-4, atol=0)


# ---------------------------------------------------------------------------------------------------------- the recipe


def wide():
    return Straight(((12, 5), (16, 3)), classes=7)


def test_new_channels_start_fresh_and_are_read_by_nothing_transferred():
    plan, theirs, ours, result = made(Straight, wide)
    first, second = result["convs.0.weight"], result["convs.1.weight"]
    assert torch.equal(first[8:], ours["convs.0.weight"][8:])
    centre = first[:8, :, 1:4, 1:4]
    ratio = centre / theirs["convs.0.weight"]
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio.mean())), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[:8].norm(), ours["convs.0.weight"][:8].norm())
    assert float(first[:8].square().sum()) == pytest.approx(float(centre.square().sum()))
    assert not second[:12, 8:].any()
    assert torch.equal(second[12:], ours["convs.1.weight"][12:])
    torch.testing.assert_close(result["norms.0.weight"][:8], theirs["norms.0.weight"])
    assert torch.equal(result["norms.0.weight"][8:], ours["norms.0.weight"][8:])
    assert {kept.key for kept in plan.kept} >= {"head.weight", "norms.0.running_mean", "norms.1.running_var"}
    assert torch.equal(result["head.weight"], ours["head.weight"])


def test_the_source_s_scale_on_request():
    _, theirs, _, result = made(Straight, wide, scale="source")
    torch.testing.assert_close(result["convs.0.weight"][:8, :, 1:4, 1:4], theirs["convs.0.weight"])
    torch.testing.assert_close(result["norms.0.running_var"][:8], theirs["norms.0.running_var"])


def test_narrower_targets_take_the_most_important_channels():
    narrow = lambda: Straight(((5, 3), (12, 3)))  # noqa: E731
    _, theirs, _, result = made(Straight, narrow, scale="source")
    out, into = theirs["convs.0.weight"].double(), theirs["convs.1.weight"].double()
    scores = out.square().sum((1, 2, 3)) / out.square().sum() + into.square().sum((0, 2, 3)) / into.square().sum()
    best = scores.argsort(descending=True)[:5].sort().values
    assert torch.equal(result["convs.0.weight"], theirs["convs.0.weight"][best])
    assert torch.equal(result["norms.0.bias"], theirs["norms.0.bias"][best])
    expected = theirs["convs.1.weight"][:, best] * (8 / 5) ** 0.5
    torch.testing.assert_close(result["convs.1.weight"], expected)


@pytest.mark.parametrize(("shrink", "index"), [("first", [0, 1, 2, 3]), ("uniform", [0, 2, 4, 6])])
def test_other_choices_of_channels(shrink, index):
    _, theirs, _, result = made(Straight, lambda: Straight(((4, 3), (12, 3))), scale="source", shrink=shrink)
    assert torch.equal(result["norms.0.weight"], theirs["norms.0.weight"][index])


def test_one_backbone_is_copied():
    plan, theirs, ours, result = made(Straight, lambda: Straight(classes=9))
    assert not any(move.steps for move in plan.moves)
    for key in ours:
        assert torch.equal(result[key], ours[key] if key.startswith("head") else theirs[key])
    assert {kept.key for kept in plan.kept} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("head", ["never", "same-size"])
def test_a_head_of_the_same_size(head):
    _, theirs, ours, result = made(Straight, Straight, head=head)
    assert torch.equal(result["head.weight"], ours["head.weight"] if head == "never" else theirs["head.weight"])


class Bare(nn.Module):
    """As ``Straight``, without norms."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)])
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.head(x.mean((2, 3)))


def test_without_norms_the_source_s_are_folded_in():
    _, theirs, ours, result = made(Straight, Bare)
    source, target = Straight().eval(), Bare().eval()
    source.load_state_dict(theirs)
    target.load_state_dict(result)
    assert list(result) == list(ours)
    images = drawn(4, *SIZE)
    torch.testing.assert_close(target(images), source(images), rtol=1e-3, atol=1e-2)


class Late(nn.Module):
    """The activation stands before the norm, which then cannot be folded into the convolution."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(12)])
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(F.relu(conv(x)))
        return self.head(x.mean((2, 3)))


def test_a_norm_behind_an_activation_is_not_folded():
    plan, theirs, _, result = made(Late, Bare)
    assert not any(step.operator == "fold-norm" for move in plan.moves for step in move.steps)
    assert torch.equal(result["convs.0.weight"], theirs["convs.0.weight"])


def test_skipped_and_mapped_layers():
    plan, _, ours, result = made(Straight, wide, skip=("convs.1",), maps=(("convs.0", "convs.0"),))
    assert torch.equal(result["convs.1.weight"], ours["convs.1.weight"])
    assert ("convs.0", "convs.0") in {(pair.source, pair.target) for pair in plan.pairing.pairs}


@pytest.mark.parametrize("recipe", ["refit", "distil"])
def test_the_recipes_with_passes_start_from_the_graft(recipe):
    assert made(Straight, wide, recipe)[0].moves == made(Straight, wide)[0].moves
    graphs = traced(Straight, SIZE), traced(wide, SIZE)
    names = [name for name, _ in plugins.create("recipes", recipe, {}).passes(*graphs)]
    assert names == {"refit": ["refit", "recalibrate", "rescale"], "distil": ["refit", "distil", "rescale"]}[recipe]


class Stem(nn.Module):
    """A stem that reads patches, or edges, and a layer behind it."""

    def __init__(self, patches, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4) if patches else nn.Conv2d(3, width, 3, padding=1)
        self.body, self.head = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.body(self.stem(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(("there", "here"), [(True, False), (False, True), (True, True), (False, False)])
def test_a_kernel_of_patches_is_no_kernel_of_edges(there, here):
    plan = made(partial(Stem, there), partial(Stem, here, 12))[0]
    moved = {move.key for move in plan.moves}
    assert ("stem.weight" in moved, "stem.bias" in moved) == (there == here, there == here)
    assert "body.weight" in moved


def transformer(width, depth, heads, **options):
    built = partial(VisionTransformer, 16, 4, 3, 5, class_token=False, global_pool="avg", mlp_ratio=2)
    return partial(built, embed_dim=width, depth=depth, num_heads=heads, **options)


@pytest.mark.parametrize("width", [24, 32, 40])
def test_a_wider_and_shorter_transformer_computes_the_source_s_first_blocks(width):
    """New channels would change what the norms make of the old ones, so the stream is stretched (LEMON)."""
    assert distance(width) < 1e-4


@pytest.mark.parametrize(("width", "most"), [(32, 1e-4), (40, 0.2)])
def test_a_layer_scale_is_copied_with_the_stream(width, most):
    """Whole copies are exact; what stands behind them is near the mean, for the mean of products is another number."""
    assert distance(width, init_values=1.0) < most


def distance(width, **options):
    """Of the logits of a wider, shorter transformer from those of the source's first blocks, of their size."""
    _, theirs, _, result = made(transformer(16, 3, 2, **options), transformer(width, 2, width // 8, **options))
    target = transformer(width, 2, width // 8, **options)().double().eval()
    begun = transformer(16, 2, 2, **options)().double().eval()
    begun.load_state_dict({key: theirs[key] for key in begun.state_dict()})
    target.load_state_dict(result)
    images = drawn(4, *SIZE).double()
    wanted = begun(images).detach()
    return float((target(images).detach() - wanted).norm() / wanted.norm())


class Halves(nn.Module):
    """As ``Straight``, its second convolution in a depthwise and a pointwise half."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.point(self.depth(self.first(x))).mean((2, 3)))


def test_the_norm_between_two_halves_lets_signs_through():
    plan, theirs, _, result = made(Straight, Halves)
    opened = {move.key: move for move in plan.moves if move.key.startswith("depth.1.")}
    assert opened.keys() == {"depth.1.weight", "depth.1.bias"}
    assert not any(move.source_key for move in opened.values())  # a constant is not from the source
    source, target = Straight(), Halves()
    filters, mixing = drawn(8, 3, 3), drawn(12, 8, seed=1)
    theirs["convs.1.weight"] = mixing[:, :, None, None] * filters
    target.load_state_dict(graft(plan, theirs, result))
    source.load_state_dict(theirs)
    agreement = []
    for bias in (1.0, 0.0):  # in training mode, on the statistics of the batch
        nn.init.constant_(target.depth[1].bias, bias)
        images = drawn(32, *SIZE)
        dense = source.norms[1](source.convs[1](F.relu(source.norms[0](source.convs[0](images)))))
        halves = target.point[1](target.point[0](target.depth(target.first(images))))
        one, other = (value.detach().transpose(0, 1).flatten(1) for value in (dense, halves))
        agreement.append(float(F.cosine_similarity(one - one.mean(1, True), other - other.mean(1, True)).mean()))
    assert agreement[0] > 0.8
    assert agreement[0] > agreement[1] + 0.1


def test_from_scratch_nothing_moves():
    plan, _, ours, result = made(Straight, wide, "distil", start="scratch")
    assert not plan.moves
    assert all(torch.equal(result[key], ours[key]) for key in ours)


# ---------------------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize(("recipe", "options"), [("graft", {}), ("refit", {"refit_images": 16})])
def test_a_transfer(recipe, options, tmp_path):
    sides = Side("netgraft:resnet20-glyphs", "source"), Side("examples/my_arch.py:MyNet", "target")
    done = [
        transfer(TransferRequest(*sides, recipe=recipe, options=options, output=tmp_path / f"{i}.safetensors"))
        for i in range(2)
    ]
    first, second = ((tmp_path / f"{i}.safetensors").read_bytes() for i in range(2))
    assert first == second
    plan = done[0].plan
    fates = plan.coverage()
    assert fates["refitted"] > 0 if recipe == "refit" else fates["stacked"] > 0
    assert [each.name for each in plan.passes] == (["refit", "recalibrate", "rescale"] if recipe == "refit" else [])


BARE = """
from torch import nn

def build():
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 20, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10))

input_size = (1, 16, 16)
"""


@pytest.mark.parametrize("repair", [True, False])
def test_a_target_without_norms_is_settled_unless_told_not_to(repair, tmp_path):
    (tmp_path / "bare.py").write_text(BARE)
    sides = Side("netgraft:resnet20-glyphs", "source"), Side(f"{tmp_path / 'bare.py'}:build", "target")
    out = tmp_path / "init.safetensors"
    plan = transfer(TransferRequest(*sides, out, recipe="graft", options={"repair": repair})).plan
    assert [each.name for each in plan.passes] == ["repair"] * repair
    assert plan.coverage()["stacked"] > 0  # where numbers come from stays as it was
    paired = [pair.target for pair in plan.pairing.pairs if pair.target in ("0", "2")]
    assert paired
    assert [report["layers"] for report in read_provenance(out)["passes"]] == [len(paired)] * repair


@pytest.mark.parametrize(
    ("start", "first"), [("auto", ["refit"]), ("refit", ["refit"]), ("graft", ["repair"]), ("scratch", [])]
)
def test_what_runs_before_the_steps_of_distil(start, first):
    graphs = traced(Straight, SIZE), traced(wide, SIZE)
    wanted = plugins.create("recipes", "distil", {"start": start}).passes(*graphs)
    assert [name for name, _ in wanted] == [*first, "distil", "rescale"]


@pytest.mark.parametrize(
    ("build", "recipe", "wanted"),
    [
        (vit, "refit", ["neighbours", "refit", "recalibrate", "rescale"]),
        (vit, "distil", ["neighbours", "refit", "distil", "rescale"]),
        (swin, "distil", ["repair", "distil", "rescale"]),
    ],
)
def test_a_transformer_that_follows_convolutions(build, recipe, wanted):
    """Its attention reads neighbours first; where that cannot be, it is distilled from its own initialisation."""
    graphs = traced(Straight, SIZE), traced(build, SIZE)
    assert [name for name, _ in plugins.create("recipes", recipe, {}).passes(*graphs)] == wanted
