"""Decoders and shared weights, each written twice."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(width_in, width, kernel=3, stride=1):
    return nn.Conv2d(width_in, width, kernel, stride, kernel // 2)


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


def unet():
    return UNet()


def segmenter():
    return Segmenter()


def twice_used():
    return TwiceUsed()


def shared():
    return Shared()
