"""What is computed apart in one network and is part of the weights in another: norms, scales, weight norm, gates."""

import itertools
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm


class Norms(nn.Module):
    """Convolution and batch norm, five times, one of them depthwise and one without an activation behind it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.conv4, self.bn4 = nn.Conv2d(16, 16, 3, 2, 1, bias=True), nn.BatchNorm2d(16)
        self.conv5, self.bn5 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16, affine=False)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn4(self.conv4(self.bn3(self.conv3(x)))))
        x = x + F.relu(self.bn5(self.conv5(x)))
        return self.fc(x.mean((2, 3)))


class Deployed(nn.Module):
    """The same when the norms have been folded."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(3, 12, 3, 1, 1),
                nn.Conv2d(12, 12, 3, 1, 1, groups=12),
                nn.Conv2d(12, 16, 1),
                nn.Conv2d(16, 16, 3, 2, 1),
                nn.Conv2d(16, 16, 3, 1, 1),
            ]
        )
        self.out = nn.Linear(16, 10)

    def forward(self, x):
        first, second, third, fourth, fifth = self.layers
        x = F.relu(fourth(third(F.relu(second(F.relu(first(x)))))))
        x = x + F.relu(fifth(x))
        return self.out(x.mean((2, 3)))


# ------------------------------------------------------------------------------------------------- a norm of one's own


class NormAct(nn.BatchNorm2d):
    """A norm that ends in its activation."""

    def forward(self, x):
        return F.relu(super().forward(x))


class OwnBatchNorm(nn.Module):
    """Batch norm for evaluation, written out; it counts no batches."""

    def __init__(self, width, act=True):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.act = act

    def forward(self, x):
        by_channel = (1, -1, 1, 1)
        x = (x - self.mean.view(by_channel)) / torch.sqrt(self.var.view(by_channel) + 1e-5)
        x = x * self.scale.view(by_channel) + self.shift.view(by_channel)
        return torch.relu(x) if self.act else x


class Stack(nn.Module):
    """Three convolutions, each with ``norm`` behind it, which may or may not end in the activation."""

    def __init__(self, norm, act):
        super().__init__()
        widths = (3, 8, 12, 12)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in itertools.pairwise(widths))
        self.norms = nn.ModuleList(norm(o) for o in widths[1:])
        self.act, self.head = act, nn.Linear(12, 10)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.act(norm(conv(x)))
        return self.head(x.mean((2, 3)))


def norm_then_relu():
    return Stack(nn.BatchNorm2d, nn.ReLU(inplace=True))


def norm_act():
    return Stack(NormAct, nn.Identity())


def own_batch_norm():
    return Stack(OwnBatchNorm, nn.Identity())


def group_norm():
    return Stack(lambda width: nn.GroupNorm(4, width), nn.ReLU())


class FunctionalGroupNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return F.group_norm(x, 4, self.gamma, self.beta)


def functional_group_norm():
    return Stack(FunctionalGroupNorm, F.relu)


# -------------------------------------------------------------------------------------------------------- layer scales


class Residual(nn.Module):
    """x + MLP(norm(x)) on 16 numbers, twice; ``scale`` makes what multiplies the branch."""

    def __init__(self, scale):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.norm1, self.up1, self.down1 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale1 = scale(16)
        self.norm2, self.up2, self.down2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale2 = scale(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.scale1(self.down1(F.gelu(self.up1(self.norm1(x)))))
        x = x + self.scale2(self.down2(F.gelu(self.up2(self.norm2(x)))))
        return self.head(x.mean(1))


class Scale(nn.Module):
    def __init__(self, width, shape=(-1,)):
        super().__init__()
        self.gamma = nn.Parameter(1e-5 * torch.ones(width).view(shape))

    def forward(self, x):
        return x * self.gamma


def layer_scale():
    return Residual(Scale)


def layer_scale_of_rank_3():
    return Residual(lambda width: Scale(width, (1, 1, -1)))


def no_layer_scale():
    return Residual(lambda width: nn.Identity())  # noqa: ARG005


# --------------------------------------------------------------------------------------------------------- weight norm


class Normed(nn.Module):
    """Two convolutions and two linear layers, each as ``wrap`` leaves it."""

    def __init__(self, wrap):
        super().__init__()
        self.conv1 = wrap(nn.Conv2d(3, 8, 3, stride=2, padding=1))
        self.conv2 = wrap(nn.Conv2d(8, 12, 3, padding=1))
        self.fc1 = wrap(nn.Linear(12, 16))
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc2(torch.tanh(self.fc1(x.mean((2, 3)))))


def plain_weights():
    return Normed(lambda layer: layer)


def weight_norm_old():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old API says that it is old
        return Normed(weight_norm)


def weight_norm_new():
    return Normed(parametrizations.weight_norm)
