"""Parallel branches, stacks and gates, each written twice."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(width_in, width, kernel=3, stride=1):
    return nn.Conv2d(width_in, width, kernel, stride, kernel // 2)


# ------------------------------------------------------------------------------------------ two equal branches, summed


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right, self.mix = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.left(x)) + F.relu(self.right(x))
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class SummedList(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(12, 10)
        self.paths = nn.ModuleList(nn.Sequential(conv(8, 8), nn.ReLU()) for _ in range(2))
        self.after, self.before = conv(8, 12), conv(3, 8)

    def forward(self, x):
        x = self.before(x).relu()
        x = torch.stack([path(x) for path in self.paths]).sum(0)
        return self.out(self.after(x).relu().mean(3).mean(2))


class SummedTwice(nn.Module):
    """The second branch is added first."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.first, self.last = conv(8, 8), conv(8, 8), conv(3, 8), conv(8, 12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu(self.first(x))
        y = F.relu(self.two(x))
        y = y + F.relu(self.one(x))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.last(y)), 1)[:, :, 0, 0])


# ------------------------------------------------------------------------------------ two equal branches, concatenated


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right, self.mix = conv(3, 8), conv(8, 8), conv(8, 8), conv(16, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class JoinedBackwards(nn.Module):
    """The right branch is registered first and runs first; only the concatenation tells which is which."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.mixed, self.stem = conv(8, 8), conv(8, 8), conv(16, 12), conv(3, 8)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        right = self.a(x)
        left = self.b(x)
        return self.head(F.relu(self.mixed(torch.cat([left, right], 1).relu())).mean((2, 3)))


# ---------------------------------------------------------------------------- two towers and what each is weighted with


class Towers(nn.Module):
    """Two equal towers of which one is subtracted."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8)
        self.plus, self.minus = (nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8)) for _ in range(2))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((self.plus(x) - self.minus(x)).relu().mean((2, 3)))


class TowersBackwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2, self.p1, self.p2, self.begin = conv(8, 8), conv(8, 8), conv(8, 8), conv(8, 8), conv(3, 8)
        self.end = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.begin(x))
        negative = self.n2(F.relu(self.n1(x)))
        positive = self.p2(F.relu(self.p1(x)))
        return self.end(F.relu(positive - negative).mean((-2, -1)))


# ---------------------------------------------------------------------------------------------------- stacks of layers


class Numbered(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        return self.fc(x.mean((2, 3)))


class PlainList(nn.Module):
    """The layers stand in a plain list, registered from the last to the first under names of their own."""

    def __init__(self):
        super().__init__()
        self.layers = [conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 8)]
        for number in reversed(range(4)):
            self.add_module(f"layer_{number}", self.layers[number])
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 10, 1), nn.Flatten())

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.classifier(x)


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"head": nn.Linear(8, 10)})
        for name, width in (("delta", 8), ("gamma", 8), ("beta", 8), ("alpha", 3)):
            self.parts[name] = conv(width, 8)

    def forward(self, x):
        for name in ("alpha", "beta", "gamma", "delta"):
            x = self.parts[name](x).relu_()
        return self.parts["head"](x.mean((2, 3)))


# ----------------------------------------------------------------------------------------------- squeeze and excitation


class ConvGate(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        gate = self.conv_expand(F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class LinearGate(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Sigmoid())

    def forward(self, x):
        b, c, _, _ = x.shape
        gate = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * gate.expand_as(x)


class Excited(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.conv1, self.se1 = conv(3, 8), gate(8, 4)
        self.conv2, self.se2 = conv(8, 12), gate(12, 4)
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        x = self.se1(F.relu(self.conv1(x)))
        x = self.se2(F.relu(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def summed():
    return Summed()


def summed_list():
    return SummedList()


def summed_twice():
    return SummedTwice()


def joined():
    return Joined()


def joined_backwards():
    return JoinedBackwards()


def towers():
    return Towers()


def towers_backwards():
    return TowersBackwards()


def numbered():
    return Numbered()


def plain_list():
    return PlainList()


def dictionary():
    return Dictionary()


def conv_gates():
    return Excited(ConvGate)


def linear_gates():
    return Excited(LinearGate)
