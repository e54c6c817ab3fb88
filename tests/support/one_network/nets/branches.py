"""Parallel branches, stacks, gates, decoders and shared weights, each written twice."""

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


# ------------------------------------------------------------------------------------------------------------ a U-Net


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 8), conv(8, 12), conv(12, 16)
        self.up2, self.dec2 = nn.ConvTranspose2d(16, 12, 2, 2), conv(24, 12)
        self.dec1, self.out = conv(20, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        c = F.relu(self.bottom(F.max_pool2d(b, 2)))
        b = F.relu(self.dec2(torch.cat([self.up2(c), b], 1)))
        a = F.relu(self.dec1(torch.cat([F.interpolate(b, scale_factor=2, mode="nearest"), a], 1)))
        return self.out(a)


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.ModuleDict(
            {
                "final": nn.Conv2d(8, 2, 1),
                "fine": nn.Sequential(conv(20, 8), nn.ReLU()),
                "coarse": nn.Sequential(conv(24, 12), nn.ReLU()),
                "grow": nn.ConvTranspose2d(16, 12, kernel_size=2, stride=2),
            }
        )
        self.twice, self.pool = nn.Upsample(scale_factor=2), nn.MaxPool2d(2)
        self.encoder = nn.ModuleList([conv(3, 8), conv(8, 12), conv(12, 16)])

    def forward(self, x):
        skips = []
        for layer in self.encoder:
            x = layer(x if not skips else self.pool(x)).relu()
            skips.append(x)
        _, coarse, fine = reversed(skips)
        x = self.decoder["coarse"](torch.cat((self.decoder["grow"](x), coarse), dim=1))
        x = self.decoder["fine"](torch.cat((self.twice(x), fine), dim=1))
        return self.decoder["final"](x)


# ------------------------------------------------------------------------------------------------------ shared weights


class TwiceUsed(nn.Module):
    """One convolution runs twice, and the decoder is the encoder transposed."""

    def __init__(self):
        super().__init__()
        self.stem, self.again = conv(3, 8, stride=2), conv(8, 8)
        self.encode, self.bias = nn.Linear(8, 12), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        x = F.relu(self.again(F.relu(self.again(F.relu(self.stem(x))))))
        code = torch.tanh(self.encode(x.mean((2, 3))))
        return F.linear(code, self.encode.weight.t(), self.bias)


class Shared(nn.Module):
    """The same with two names for the one convolution, and a product with the encoder's weight."""

    def __init__(self):
        super().__init__()
        self.visible, self.squeeze = nn.Parameter(torch.zeros(8)), nn.Linear(8, 12)
        self.second = self.first = conv(8, 8)
        self.input = conv(3, 8, stride=2)

    def forward(self, x):
        x = self.input(x).relu()
        x = self.second(self.first(x).relu()).relu()
        return self.squeeze(x.mean((2, 3))).tanh() @ self.squeeze.weight + self.visible


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


def unet():
    return UNet()


def segmenter():
    return Segmenter()


def twice_used():
    return TwiceUsed()


def shared():
    return Shared()
