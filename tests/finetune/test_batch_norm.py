"""BatchNorm over all processes against PyTorch's own on the whole batch."""

import pytest
import torch
from torch import nn

from netgraft.finetune.engine.batch_norm import synchronise


class Alone:
    """One process."""

    world = 1

    def mean(self, tensors):
        return tuple(tensor.detach() for tensor in tensors)

    def average(self, tensor):
        return tensor


@pytest.mark.parametrize("dims", [2, 4, 3])
def test_equals_batch_norm(dims):
    shape = (6, 3, 4, 5)[:dims]
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[dims]
    ours, theirs = kind(3), kind(3)
    synchronise(ours, Alone())
    results = []
    for norm in (ours, theirs):
        x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 100).requires_grad_()
        out = norm(x)
        out.square().mul(torch.arange(out.numel()).view(shape)).mean().backward()
        results.append((out.detach(), x.grad, norm.running_mean, norm.running_var, norm.num_batches_tracked))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.eval(), theirs.eval()
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)


def test_timm_norm_keeps_its_activation():
    from timm.layers import BatchNormAct2d

    ours, theirs = BatchNormAct2d(3), BatchNormAct2d(3)
    synchronise(ours, Alone())
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_differentiates_twice():
    norm = nn.BatchNorm1d(2).double()
    synchronise(norm, Alone())
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: norm(x).sin().sum(), (x,), atol=1e-3, rtol=1e-3, eps=1e-4)
