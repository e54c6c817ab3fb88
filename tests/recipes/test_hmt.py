"""The paper's recipe on real networks, against index arithmetic written down a second time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn import ZOO, Drawing, flat, graphs, residual
from support.nets import Branched, Flat, Perceptron, Straight, Tied, traced, weights
from support.recipe_laws import check_identity, check_laws, check_names, check_result
from torch import nn

from netgraft.architecture.graph import Slot
from netgraft.errors import PlanError, UnknownName, UsageError
from netgraft.graft import graft
from netgraft.plan import Plan, Step
from netgraft.plugins import create
from netgraft.recipes.hmt import Hmt
from netgraft.recipes.run import run_recipe

thorough = settings(deadline=None, derandomize=True, database=None, max_examples=50)

# ------------------------------------------------------------------------------------------- the reference in NumPy


def bilinear(kernel, size):
    """[h, w] to ``size``: half-pixel centres, edges clamped (HMT 2.3.2; OpenCV's and PyTorch's bilinear)."""
    (h, w), (ht, wt) = kernel.shape, size
    result = np.zeros(size)
    for i in range(ht):
        for j in range(wt):
            y = min(max((i + 0.5) * h / ht - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / wt - 0.5, 0), w - 1)
            top, left = math.floor(y), math.floor(x)
            for row, share_y in ((top, 1 - (y - top)), (min(top + 1, h - 1), y - top)):
                for column, share_x in ((left, 1 - (x - left)), (min(left + 1, w - 1), x - left)):
                    result[i, j] += share_y * share_x * kernel[row, column]
    return result


def hmt(weight, shape):
    """[out, in, h, w] to ``shape``: kernels interpolated, channels counted off in a circle (HMT 2.3.2)."""
    weight = np.asarray(weight, dtype=np.float64)
    result = np.empty(shape)
    for o in range(shape[0]):
        for i in range(shape[1]):
            result[o, i] = bilinear(weight[o % weight.shape[0], i % weight.shape[1]], shape[2:])
    return result


def cyclic(tensor, *shape):
    tensor = np.asarray(tensor)
    for axis, length in enumerate(shape):
        tensor = tensor.take(np.arange(length) % tensor.shape[axis], axis)
    return tensor


def flattened(weight, there, here, outputs):
    """[out, C*H*W] of a linear layer behind a flattened map (C, H, W) = ``there``, for a map ``here``."""
    weight = np.asarray(weight, dtype=np.float64)
    (cs, hs, ws), (ct, ht, wt) = there, here
    result = np.empty((outputs, ct * ht * wt))
    for o in range(outputs):
        for c in range(ct):
            first = (c % cs) * hs * ws
            kernel = bilinear(weight[o % len(weight), first : first + hs * ws].reshape(hs, ws), (ht, wt))
            for i in range(ht):
                for j in range(wt):
                    result[o, (c * ht + i) * wt + j] = kernel[i, j]
    return result


# -------------------------------------------------------------------------------------------------- a transfer at hand


class Transferred:
    """A plan between two networks, and the target's tensors before and after."""

    def __init__(self, source, target, sizes=((3, 16, 16), (3, 16, 16)), **options):
        graphs = [traced(build, size) for build, size in zip((source, target), sizes, strict=True)]
        pairing, moves, kept = run_recipe(create("recipes", "hmt", options), *graphs)
        self.plan = Plan("s", "t", "", "", "hmt", options, pairing, tuple(moves), tuple(kept))
        self.theirs, self.ours = weights(source, 1), weights(target, 2)
        self.result = graft(self.plan, self.theirs, self.ours)
        self.moves = {move.key: move for move in self.plan.moves}
        self.kept = {kept.key: kept.why for kept in self.plan.kept}
        for key in self.kept:
            assert torch.equal(self.result[key], self.ours[key]), key

    def is_made_of(self, key, expected):
        np.testing.assert_allclose(self.result[key].numpy(), expected, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------- the transformation


@pytest.mark.parametrize("there", [((8, 3), (12, 3)), ((5, 7), (9, 1)), ((16, 5), (6, 5))], ids=str)
@pytest.mark.parametrize("here", [((11, 5), (7, 3)), ((4, 3), (20, 7)), ((8, 1), (13, 4))], ids=str)
def test_convolutions_norms_and_head_follow_the_paper(there, here):
    done = Transferred(lambda: Straight(there, classes=5), lambda: Straight(here, classes=5))
    for i in range(2):
        for role in ("weight", "bias"):
            source, shape = done.theirs[f"convs.{i}.{role}"], done.ours[f"convs.{i}.{role}"].shape
            done.is_made_of(f"convs.{i}.{role}", hmt(source, shape) if role == "weight" else cyclic(source, *shape))
        for role in ("weight", "bias", "running_mean", "running_var"):
            done.is_made_of(f"norms.{i}.{role}", cyclic(done.theirs[f"norms.{i}.{role}"], here[i][0]))
        assert done.result[f"norms.{i}.num_batches_tracked"] == done.theirs[f"norms.{i}.num_batches_tracked"]
    done.is_made_of("head.weight", cyclic(done.theirs["head.weight"], 5, here[-1][0]))
    done.is_made_of("head.bias", done.theirs["head.bias"])
    assert not done.kept


@pytest.mark.parametrize(("rank", "conv"), [(1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)])
def test_constant_kernels_of_any_rank_stay_constant(rank, conv):
    def build(width, kernel):
        return lambda: nn.Sequential(conv(2, width, kernel), conv(width, 3, 1))

    size = (2, *[8] * rank)
    done = Transferred(build(4, 3), build(6, 5), (size, size))
    theirs = {key: torch.full_like(tensor, 0.7) for key, tensor in done.theirs.items()}
    result = graft(done.plan, theirs, done.ours)
    assert result["0.weight"].shape == (6, 2, *[5] * rank)
    assert torch.equal(result["0.weight"], torch.full_like(result["0.weight"], 0.7))


def test_grouped_convolutions_are_stacked_over_the_channels_of_a_group():
    def build(width, groups):
        return lambda: nn.Sequential(
            nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, groups=groups), nn.Conv2d(width, 2, 1)
        )

    done = Transferred(build(8, 8), build(6, 1))
    done.is_made_of("1.weight", hmt(done.theirs["1.weight"], (6, 6, 3, 3)))
    back = Transferred(build(6, 1), build(8, 8))
    back.is_made_of("1.weight", hmt(back.theirs["1.weight"], (8, 1, 3, 3)))


def test_half_precision_sources_are_written_in_the_types_of_the_target():
    done = Transferred(lambda: Straight(((8, 3),)), lambda: Straight(((6, 5),)))
    theirs = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in done.theirs.items()}
    result = graft(done.plan, theirs, done.ours)
    assert {key: tensor.dtype for key, tensor in result.items()} == {key: t.dtype for key, t in done.ours.items()}
    expected = hmt(theirs["convs.0.weight"].float(), (6, 3, 5, 5))
    np.testing.assert_allclose(result["convs.0.weight"].numpy(), expected, rtol=2e-3, atol=2e-3)


# ------------------------------------------------------------------------------------------------- off the chain


def test_what_is_off_the_chain_keeps_its_own_initialisation():
    done = Transferred(lambda: Straight(((6, 3), (6, 3), (6, 3), (9, 5))), lambda: Branched(8), head="always")
    for i, name in enumerate(("L1", "L2", "L3", "L4")):
        done.is_made_of(f"{name}.weight", hmt(done.theirs[f"convs.{i}.weight"], done.ours[f"{name}.weight"].shape))
    assert done.kept["L5.weight"] == done.kept["L5.bias"] == "not on the longest chain"
    assert {key for key in done.kept if key.startswith("N5.")} == {key for key in done.ours if key.startswith("N5.")}
    assert done.kept["N5.weight"] == "follows no transferred layer on the chain"
    assert done.kept["unused"] == "never used in the forward pass"
    assert done.kept["counter"] == "a buffer outside any layer"


def test_shorter_sources_leave_the_rest_alone():
    done = Transferred(lambda: Straight(((6, 3),)), lambda: Straight(((8, 3), (9, 3), (10, 3))))
    assert set(done.moves) == {key for key in done.ours if key.startswith(("convs.0.", "norms.0."))}
    assert done.kept["convs.1.weight"] == "layer 2 of the chain: linear head does not fit conv2d"
    assert done.kept["convs.2.weight"] == "layer 3 of the chain has no partner on the source's chain of 2"
    assert done.kept["norms.1.weight"] == "follows no transferred layer on the chain"


def test_a_bias_that_the_source_lacks_is_kept():
    def build(width, bias):
        return lambda: nn.Sequential(nn.Conv2d(3, width, 3, bias=bias), nn.Conv2d(width, 4, 3))

    done = Transferred(build(8, False), build(6, True))
    assert done.kept == {"0.bias": "0 in the source has no bias"}
    assert not Transferred(build(8, True), build(6, False)).kept


# ------------------------------------------------------------------------------------------------------- options


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
NARROW, WIDE = lambda: Straight(((8, 3), (12, 3))), lambda: Straight(((6, 3), (9, 5)))


def norm_keys(done, *roles):
    return {key for key in done.ours if key.startswith("norms.") and (not roles or key.endswith(roles))}


@pytest.mark.parametrize("target", [WIDE, NARROW], ids=["another backbone", "the same backbone"])
def test_norms(target):
    assert not norm_keys(Transferred(NARROW, target)) - set(Transferred(NARROW, target, norms="all").moves)
    affine = Transferred(NARROW, target, norms="affine")
    assert set(affine.kept) == norm_keys(affine, *STATISTICS)
    assert set(affine.kept.values()) == {"only the affine part of norms is carried along (norms=affine)"}
    none = Transferred(NARROW, target, norms="none")
    assert set(none.kept) == norm_keys(none)
    assert set(none.kept.values()) == {"norms are left out (norms=none)"}


def test_norms_of_another_kind_are_kept():
    done = Transferred(NARROW, lambda: Straight(((6, 3), (9, 5)), norm=lambda width: nn.GroupNorm(1, width)))
    assert set(done.kept) == norm_keys(done)
    assert done.kept["norms.1.bias"] == "batch_norm norms.1 does not fit group_norm"


class Twice(nn.Module):
    """A convolution with ``count`` norms behind it, and one that is called twice, with a norm for each call."""

    def __init__(self, width, count):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.behind = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(count))
        self.shared = nn.Conv2d(width, width, 3, padding=1)
        self.each = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x):
        x = self.conv(x)
        for norm in self.behind:
            x = norm(x).relu()
        for norm in self.each:
            x = norm(self.shared(x)).relu()
        return self.head(x).mean(dim=(2, 3))


@pytest.mark.parametrize(("there", "here"), [(2, 2), (3, 1), (2, 3)])
def test_of_several_norms_behind_a_layer_each_follows_its_own(there, here):
    """The first becomes the first, the second the second; of a shared layer it is the norm of its first call."""
    done = Transferred(lambda: Twice(6, there), lambda: Twice(8, here))
    for i in range(min(there, here)):
        for role in ("weight", "bias", "running_mean", "running_var"):
            done.is_made_of(f"behind.{i}.{role}", cyclic(done.theirs[f"behind.{i}.{role}"], 8))
    if here > there:
        assert done.kept["behind.2.weight"] == "no norm follows conv in the source"
    for role in ("weight", "bias", "running_mean", "running_var"):
        done.is_made_of(f"each.0.{role}", cyclic(done.theirs[f"each.0.{role}"], 8))


def test_norms_that_the_source_lacks_are_kept():
    done = Transferred(lambda: Straight(norm=nn.Identity), WIDE)
    assert set(done.kept) == norm_keys(done)
    assert done.kept["norms.0.weight"] == "no norm follows convs.0 in the source"


@pytest.mark.parametrize(
    ("there", "here", "options", "reason"),
    [
        (5, 5, {}, ""),
        (5, 7, {}, "5 outputs in the source, 7 in the target"),
        (5, 7, {"head": "same-size"}, "5 outputs in the source, 7 in the target"),
        (5, 7, {"head": "always"}, ""),
        (5, 5, {"head": "never"}, "head=never"),
    ],
)
@pytest.mark.parametrize(
    "kernels", [((6, 3), (9, 5)), ((8, 3), (12, 3))], ids=["another backbone", "the same backbone"]
)
def test_the_head(there, here, options, reason, kernels):
    done = Transferred(NARROW, lambda: Straight(kernels, classes=here), **options)
    assert set(done.kept) == ({"head.weight", "head.bias"} if reason else set())
    if reason:
        assert reason in done.kept["head.weight"]
    else:
        done.is_made_of("head.weight", cyclic(done.theirs["head.weight"], here, kernels[-1][0]))
        done.is_made_of("head.bias", cyclic(done.theirs["head.bias"], here))
    assert there == 5


def test_a_head_does_not_take_the_weights_of_a_hidden_layer():
    done = Transferred(
        lambda: Perceptron(width=5), lambda: nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)), [(12,)] * 2
    )
    assert set(done.moves) == {"0.weight", "0.bias"}
    assert "its partner layers.2 is not the source's head" in done.kept["2.weight"]


def test_the_ablations_are_not_bypassed_by_equal_backbones():
    done = Transferred(lambda: Straight(((8, 3),) * 5), lambda: Straight(((8, 3),) * 5), matcher="interval-chain")
    assert done.moves["convs.1.weight"].source_key == "convs.2.weight"
    assert "convs.3.weight" in done.kept


def test_unknown_options():
    with pytest.raises(UsageError, match="sometimes"):
        create("recipes", "hmt", {"head": "sometimes"})
    with pytest.raises(UnknownName, match="no-such-matcher"):
        Transferred(NARROW, WIDE, matcher="no-such-matcher")


# ------------------------------------------------------------------------------------------------ flattened features


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ((4, 4, 4), (6, 4, 4)),  # other channels, one resolution
        ((6, 4, 4), (6, 8, 8)),  # one width, another resolution
        ((6, 4, 4), (9, 2, 2)),  # both
        ((16, 2, 2), (4, 4, 4)),  # both, and one and the same length of the flat axis
        ((6, 4, 4), (8, 1, 1)),  # down to a vector, which no longer says it was a map
        ((8, 1, 1), (6, 4, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("outputs", [10, 7])
def test_a_flattened_map_is_stacked_over_channels_and_interpolated_over_positions(there, here, outputs):
    def build(features, hidden):
        return lambda: Flat((4, features[0]), side=16, hidden=hidden, pools=4 - int(math.log2(features[1])))

    done = Transferred(build(there, 10), build(here, outputs))
    done.is_made_of("hidden.weight", flattened(done.theirs["hidden.weight"], there, here, outputs))
    done.is_made_of("hidden.bias", cyclic(done.theirs["hidden.bias"], outputs))
    done.is_made_of("head.weight", cyclic(done.theirs["head.weight"], 5, outputs))
    steps = done.moves["hidden.weight"].steps
    assert [steps[0].operator, steps[-1].operator] == ["unflatten", "flatten"]


def test_the_same_backbone_at_another_resolution_moves_its_head_position_by_position():
    class Net(nn.Module):
        def __init__(self, side):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * side * side, 5)

        def forward(self, x):
            return self.head(self.conv(x).flatten(1))

    done = Transferred(lambda: Net(6), lambda: Net(9), ((3, 6, 6), (3, 9, 9)))
    assert not done.kept
    assert torch.equal(done.result["conv.weight"], done.theirs["conv.weight"])
    done.is_made_of("head.weight", flattened(done.theirs["head.weight"], (4, 6, 6), (4, 9, 9), 5))


def test_equal_maps_are_copied():
    graph = flat()
    moves = run_recipe(Hmt(matcher="interval-chain"), flat(classes=7), graph)[1]
    assert not next(move for move in moves if move.key == "L1.weight").steps
    done = Transferred(lambda: Flat(), lambda: Flat((5, 6)))  # another first width: not the same backbone
    assert done.moves["hidden.weight"].steps == ()
    assert torch.equal(done.result["hidden.weight"], done.theirs["hidden.weight"])


def test_maps_of_equal_flat_length_are_not_mistaken_for_one_another():
    d = Drawing()
    d.output(d.linear(d.op("view", d.conv(d.input(), shape=(4, 3, 3, 3))), shape=(5, 64), flattened=(4, 4, 4)))
    moves = run_recipe(Hmt(), flat_head(16, 2), d.graph())[1]
    steps = {move.key: move.steps for move in moves}["L2.weight"]
    assert steps == (
        Step("unflatten", {"dim": 1, "shape": [16, 2, 2]}),
        Step("bilinear", {"size": [4, 4]}),
        Step("cyclic", {"dim": 1, "size": 4}),
        Step("flatten", {"dim": 1, "ndim": 3}),
    )


def flat_head(channels, side):
    d = Drawing()
    x = d.op("view", d.conv(d.input(), shape=(channels, 3, 3, 3)))
    d.output(d.linear(x, shape=(5, channels * side * side), flattened=(channels, side, side)))
    return d.graph()


# ----------------------------------------------------------------------------------------------------- same backbone


def test_resnet18_with_other_classes_copies_everything_but_the_head():
    def build(classes):
        return lambda: timm.create_model("resnet18", num_classes=classes)

    source, target = traced(build(1000), (3, 224, 224)), traced(build(10), (3, 224, 224))
    _, moves, kept = run_recipe(Hmt(), source, target)
    assert {fate.key for fate in kept} == {"fc.weight", "fc.bias"}
    assert all(move.source_key == move.key and not move.steps for move in moves)
    assert len(moves) == len(target.slots) - 2
    _, moves, kept = run_recipe(Hmt(head="always"), source, target)
    assert not kept
    steps = {move.key: move.steps for move in moves}
    assert steps["fc.weight"] == steps["fc.bias"] == (Step("cyclic", {"dim": 0, "size": 10}),)


def test_the_same_backbone_needs_equal_widths():
    _, moves, kept = run_recipe(Hmt(), residual(width=8, classes=3), residual(width=12, classes=3))
    assert kept  # the projections beside the chain
    assert any(move.steps for move in moves)


def test_loose_tensors_of_the_same_backbone_are_copied_where_they_fit():
    source, target = residual(), residual()
    loose = {"grid": Slot("grid", (3,), "float32", True), "table": Slot("table", (4,), "float32", True)}
    other = {**loose, "table": Slot("table", (5,), "float32", True)}
    pairing, moves, kept = run_recipe(Hmt(), replace(source, loose=loose), replace(target, loose=other))
    assert pairing.pairs
    assert "grid" in {move.key for move in moves}
    assert [(fate.key, fate.why) for fate in kept] == [("table", "a buffer outside any layer")]


# -------------------------------------------------------------------------------------------------------- tied weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("here", [(6, 1), (9, 1), (9, 3)], ids=["equal", "wider", "wider and deeper"])
def test_tied_weights_move_under_both_keys(bias, here):
    done = Transferred(lambda: Tied(6, bias=bias), lambda: Tied(*here, bias=bias), [(6,), (here[0],)], head="always")
    expected = cyclic(done.theirs["first.weight"], here[0], here[0])
    done.is_made_of("first.weight", expected)
    assert torch.equal(done.result["last.weight"], done.result["first.weight"])
    module = Tied(*here, bias=bias)
    module.load_state_dict(done.result, strict=True)
    assert module.first.weight is module.last.weight
    assert torch.equal(module.first.weight, done.result["first.weight"])


def test_a_tied_source_fills_an_untied_target():
    untied = lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 6))  # noqa: E731
    done = Transferred(lambda: Tied(6), untied, [(6,), (6,)])
    done.is_made_of("0.weight", cyclic(done.theirs["first.weight"], 9, 6))
    done.is_made_of("4.weight", cyclic(done.theirs["first.weight"], 6, 9))


def test_a_tied_head_that_stays_keeps_the_weight_it_shares_where_nothing_else_moves_it():
    done = Transferred(lambda: Tied(6), lambda: Tied(9), [(6,), (9,)], head="never")
    assert torch.equal(done.result["last.weight"], done.result["first.weight"])
    assert "head=never" in done.kept["last.bias"]


# ------------------------------------------------------------------------------- the laws, on drawn and on any graphs


@pytest.mark.parametrize("target", ZOO)
def test_laws_on_drawn_graphs(target):
    for source in ZOO.values():
        check_everything(source, ZOO[target])


@thorough
@given(source=graphs(), target=graphs())
def test_laws_on_any_graphs(source, target):
    check_everything(source, target)


def check_everything(source, target):
    plan = check_laws(Hmt(), source, target)
    check_result(plan, source, target)
    check_names(Hmt(), source, target, plan)


@pytest.mark.parametrize("name", ZOO)
def test_equal_drawn_graphs_are_copied_as_a_whole(name):
    check_identity(Hmt(), ZOO[name])


@thorough
@given(graph=graphs())
def test_equal_graphs_are_copied_whatever_they_are(graph):
    check_identity(Hmt(), graph)


@thorough
@given(
    source=graphs(),
    target=graphs(),
    norms=st.sampled_from(["all", "affine", "none"]),
    head=st.sampled_from(["same-size", "always", "never"]),
    matcher=st.sampled_from(["longest-chain", "shuffled-chain", "interval-chain"]),
)
def test_laws_with_any_options(source, target, norms, head, matcher):
    check_laws(Hmt(matcher=matcher, norms=norms, head=head), source, target)


# ----------------------------------------------------------------------------------------------------- against misuse


def test_a_plan_for_other_models_is_refused():
    done = Transferred(NARROW, WIDE)
    with pytest.raises(PlanError, match="exactly one fate"):
        graft(done.plan, done.theirs, {**done.ours, "more": torch.ones(1)})


class Joined(nn.Module):
    """Dense blocks as densenet's: what a layer writes is joined to what there was, and a norm reads both."""

    def __init__(self, growth=6):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, growth, 3, padding=1), nn.BatchNorm2d(8 + growth)
        self.third, self.head = nn.Conv2d(8 + growth, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(self.norm2(torch.cat([x, self.second(x)], 1)))
        return self.head(self.third(x).mean((2, 3)))


@pytest.mark.parametrize("joined", ["source", "target"])
def test_a_norm_goes_along_only_with_the_layer_whose_channels_it_has(joined):
    sides = [Joined, lambda: Straight(((8, 3), (6, 3), (8, 3)))]
    graphs = [traced(build, (3, 8, 8)) for build in (sides if joined == "source" else sides[::-1])]
    pairing = Hmt().pair(*graphs)
    norms = {pair.target for pair in pairing.pairs if graphs[1].layers[pair.target].is_norm}
    assert norms == ({"norms.0"} if joined == "source" else {"norm1"})
    left = pairing.unpaired["norms.1" if joined == "source" else "norm2"]
    assert "norm2 normalises 14 channels, of which second wrote 6" in left
