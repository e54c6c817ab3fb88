"""A little residual network, as modules in order and as a function with other names; a factory per spelling."""

import math

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 10


class Block(nn.Module):
    def __init__(self, width_in, width, stride, act):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.act1 = act()
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.act2 = act()
        self.downsample = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(y + (x if self.downsample is None else self.downsample(x)))


class Modules(nn.Module):
    """Everything is a module, in the order in which it runs."""

    def __init__(self, act=nn.ReLU):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), act())
        self.blocks = nn.Sequential(Block(8, 8, 1, act), Block(8, 12, 2, act), Block(12, 12, 1, act))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.head(self.flatten(self.pool(self.blocks(self.stem(x)))))


class Unit(nn.Module):
    """The block, registered from its end to its beginning."""

    def __init__(self, width_in, width, stride, act, pad):
        super().__init__()
        self.act, self.pad = act, pad
        padding = 1 if pad is None else 0
        if stride != 1 or width_in != width:
            self.short_norm = nn.BatchNorm2d(width)
            self.short = nn.Conv2d(width_in, width, 1, stride, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, padding, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width_in, width, 3, stride, padding, bias=False)

    def forward(self, x):
        pad = self.pad or (lambda y: y)
        short = self.short_norm(self.short(x)) if hasattr(self, "short") else x
        y = self.act(self.first_norm(self.first(pad(x))))
        return self.act(short + self.second_norm(self.second(pad(y))))


class Function(nn.Module):
    """Only layers with weights are modules; the classifier stands first and the stem last."""

    def __init__(self, act=F.relu, pad=None, pool=None, between=None):
        super().__init__()
        self.act, self.pad, self.pool, self.between = act, pad, pool, between
        self.classifier = nn.Linear(12, CLASSES)
        self.c, self.b, self.a = (Unit(i, o, s, act, pad) for i, o, s in ((12, 12, 1), (8, 12, 2), (8, 8, 1)))
        self.norm0 = nn.BatchNorm2d(8)
        self.conv0 = nn.Conv2d(3, 8, 3, 1, 1 if pad is None else 0, bias=False)

    def forward(self, x):
        pad, between = self.pad or (lambda y: y), self.between or (lambda y: y)
        x = self.act(self.norm0(self.conv0(pad(x))))
        for unit in (self.a, self.b, self.c):
            x = between(unit(x))
        x = x.mean((2, 3)) if self.pool is None else self.pool(x)
        return self.classifier(between(x))


def modules():
    return Modules()


def function():
    return Function()


# ------------------------------------------------------------------------------------------------------------ padding


def zero_pad_module():
    return Function(pad=nn.ZeroPad2d(1))


def constant_pad_module():
    return Function(pad=nn.ConstantPad2d(1, 0.0))


def f_pad():
    return Function(pad=lambda x: F.pad(x, (1, 1, 1, 1)))


# ------------------------------------------------------------------------------------------------------------ pooling


def adaptive_view():
    return Function(pool=lambda x: F.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1))


def kernel_squeeze():
    return Function(pool=lambda x: F.avg_pool2d(x, x.shape[-1]).squeeze(-1).squeeze(-1))


def mean_twice():
    return Function(pool=lambda x: x.mean(-1).mean(-1))


def flattened_mean():
    return Function(pool=lambda x: x.flatten(2).mean(2))


def adaptive_reshape():
    return Function(pool=lambda x: F.adaptive_avg_pool2d(x, (1, 1)).reshape(len(x), 12))


# -------------------------------------------------------------------------------------- modules that only pass data on


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.same = nn.Dropout(0.3), nn.Identity()

    def forward(self, x):
        return self.same(self.drop(x).contiguous())


def idle():
    return Function(between=Idle())


def dropped():
    return Function(between=lambda x: F.dropout(x, 0.3, training=False).clone())


# -------------------------------------------------------------------------------------------------------- activations


def relu6():
    return Modules(nn.ReLU6)


def relu6_clamp():
    return Function(lambda x: x.clamp(0, 6))


def relu6_hardtanh():
    return Function(nn.Hardtanh(0.0, 6.0))


def relu6_minimum():
    return Function(lambda x: torch.clamp(F.relu(x), max=6.0))


def relu_clamp():
    return Function(lambda x: x.clamp(min=0))


def silu():
    return Modules(nn.SiLU)


def silu_written():
    return Function(lambda x: x * torch.sigmoid(x))


def silu_functional():
    return Function(F.silu)


def gelu():
    return Modules(nn.GELU)


def gelu_functional():
    return Function(F.gelu)


def gelu_erf():
    return Function(lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))))


def gelu_tanh():
    return Modules(lambda: nn.GELU(approximate="tanh"))


def gelu_tanh_written():
    return Function(lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))))


def hardswish():
    return Modules(nn.Hardswish)


def hardswish_written():
    return Function(lambda x: x * F.relu6(x + 3.0) / 6.0)


def hardswish_hardsigmoid():
    return Function(lambda x: x * F.hardsigmoid(x))


def leaky():
    return Modules(lambda: nn.LeakyReLU(0.1))


def leaky_maximum():
    return Function(lambda x: torch.maximum(x, 0.1 * x))


def mish():
    return Modules(nn.Mish)


def mish_written():
    return Function(lambda x: x * torch.tanh(F.softplus(x)))
