"""Tensors made by their frequencies, against SciPy, and through a forward pass."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from support import transformer_nets as nets
from support.nets import Straight, traced, weights
from support.recipe_laws import check_laws
from timm.models.vision_transformer import VisionTransformer

from netgraft.graft import graft
from netgraft.recipes.front import Front


def made(source, target, size, **options):
    """The plan, the source's weights, and the result."""
    plan = check_laws(Front(**options), traced(source, size), traced(target, size))
    theirs = weights(source)
    return plan, theirs, graft(plan, theirs, weights(target, seed=1))


def truth(weight, size, constant=True):
    frequencies, padded = dctn(weight.double().numpy(), norm="ortho"), np.zeros(size)
    corner = tuple(slice(0, min(pair)) for pair in zip(weight.shape, size, strict=True))
    padded[corner] = frequencies[corner]
    return idctn(padded, norm="ortho") * (np.sqrt(np.prod(size) / weight.numel()) if constant else 1)


@torch.no_grad()
def test_a_network_into_itself_computes_the_same():
    _, theirs, ours = made(nets.vit, nets.vit, nets.SIZE)
    outputs = []
    for state in (theirs, ours):
        net = nets.vit().eval()
        net.load_state_dict(state)
        outputs.append(net(torch.randn(2, *nets.SIZE, generator=torch.Generator().manual_seed(0))))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("keep", ["constant", "energy"])
@pytest.mark.parametrize("width", [24, 48])
def test_every_tensor_is_scipys(width, keep):
    plan, theirs, ours = made(nets.vit, lambda: nets.vit(embed_dim=width, depth=3), nets.SIZE, keep=keep)
    assert not plan.kept
    moved = [move for move in plan.moves if move.steps]
    assert len(moved) == len(plan.moves) - 1  # the head's bias
    for move in moved:
        expected = truth(theirs[move.source_key], move.shape, keep == "constant")
        np.testing.assert_allclose(ours[move.key].double().numpy(), expected, atol=1e-5)


def test_convolutions_and_their_norms():
    wider = lambda: Straight(((12, 5), (16, 3)))  # noqa: E731
    plan, theirs, ours = made(Straight, wider, (3, 16, 16))
    expected = truth(theirs["convs.0.weight"], (12, 3, 5, 5))
    np.testing.assert_allclose(ours["convs.0.weight"].double().numpy(), expected, atol=1e-5)
    variance = truth(theirs["norms.0.running_var"], (12,)).clip(min=theirs["norms.0.running_var"].min().item())
    np.testing.assert_allclose(ours["norms.0.running_var"].double().numpy(), variance, atol=1e-5)
    assert torch.equal(ours["norms.0.num_batches_tracked"], theirs["norms.0.num_batches_tracked"])
    steps = {move.key: move.steps for move in plan.moves}
    assert steps["norms.0.running_var"][0].options["floor"]
    assert "floor" not in steps["norms.0.running_mean"][0].options


def test_positions_are_interpolated_along_the_grid():
    def finer():
        return VisionTransformer(32, 4, num_classes=5, embed_dim=24, depth=2, num_heads=4, mlp_ratio=2)

    plan = check_laws(Front(), traced(nets.vit, nets.SIZE), traced(finer, (3, 32, 32)))
    (move,) = (move for move in plan.moves if move.key == "pos_embed")
    assert [step.operator for step in move.steps] == ["positions", "dct"]
    assert graft(plan, weights(nets.vit), weights(finer, seed=1))["pos_embed"].shape == (1, 65, 24)
