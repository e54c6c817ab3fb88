"""What a layer reads, against torch's own unfolding."""

import pytest
import torch
import torch.nn.functional as F
from support.nets import traced
from torch import nn

from netgraft.passes.refitting.regression import patches


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CONVS = {
    "plain": ({"kernel_size": 3, "padding": 1}, (9, 9)),
    "pointwise": ({"kernel_size": 1}, (5, 7)),
    "strided": ({"kernel_size": 3, "padding": 1, "stride": 2}, (9, 8)),
    "strided, no padding": ({"kernel_size": 2, "stride": 2}, (9, 8)),
    "patch embedding": ({"kernel_size": 4, "stride": 4}, (8, 12)),
    "dilated": ({"kernel_size": 3, "padding": 2, "dilation": 2}, (9, 10)),
    "oblong": ({"kernel_size": (1, 5), "padding": (0, 2), "stride": (2, 1)}, (6, 9)),
    "oblong, dilated": ({"kernel_size": (3, 2), "dilation": (1, 3), "padding": (1, 3), "stride": (1, 2)}, (7, 11)),
    "same": ({"kernel_size": 5, "padding": "same"}, (6, 7)),
    "padded beyond need": ({"kernel_size": 3, "padding": 3, "stride": 3}, (7, 7)),
}


def layer_of(build, size):
    (layer,) = traced(lambda: nn.Sequential(build()), size).kernels()
    return layer


@pytest.mark.parametrize(("options", "size"), CONVS.values(), ids=CONVS)
def test_convolutions(options, size):
    conv = nn.Conv2d(4, 6, **options)
    layer = layer_of(lambda: nn.Conv2d(4, 6, **options), (4, *size))
    x = drawn(3, 4, *size)
    wanted = conv(x).detach()
    assert layer.out_shape[2:] == wanted.shape[2:]
    rows = torch.arange(3 * wanted[0, 0].numel())
    found = patches(x, layer, rows)
    flat = wanted.movedim(1, -1).reshape(-1, 6)
    torch.testing.assert_close(found @ conv.weight.flatten(1).T + conv.bias, flat, rtol=1e-4, atol=1e-5)
    if options.get("padding") != "same":
        unfolded = F.unfold(x, **{"padding": 0} | options).transpose(1, 2).reshape(-1, found.shape[1])
        assert torch.equal(found, unfolded)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:11]
    assert torch.equal(patches(x, layer, chosen), found[chosen])
    assert torch.equal(patches(x, layer, chosen, slice(1, 3)), found[chosen].unflatten(1, (4, -1))[:, 1:3].flatten(1))


def test_groups_read_their_channels():
    build = lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2)  # noqa: E731
    conv, layer = build(), layer_of(build, (6, 5, 5))
    x = drawn(2, 6, 5, 5)
    rows = torch.arange(50)
    wanted = conv(x).detach().movedim(1, -1).reshape(-1, 8)
    for group in range(2):
        read = patches(x, layer, rows, slice(3 * group, 3 * group + 3))
        out = slice(4 * group, 4 * group + 4)
        made = read @ conv.weight[out].flatten(1).T + conv.bias[out]
        torch.testing.assert_close(made, wanted[:, out], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (2, 5, 6), (2, 3, 4, 6)])
def test_linear_layers(shape):
    layer = layer_of(lambda: nn.Linear(6, 2), shape[1:])
    x = drawn(*shape).double()
    flat = x.reshape(-1, 6).float()
    rows = torch.tensor([3, 0, 3, 1])
    assert torch.equal(patches(x, layer, rows), flat[rows])
    assert torch.equal(patches(x, layer, rows, slice(2, 4)), flat[rows, 2:4])
