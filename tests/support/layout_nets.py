"""Small networks that exist in several ways of writing them: over lines, images and volumes, in groups, turned."""

import torch
from torch import nn

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


class Dimensional(nn.Module):
    """A residual network over a line, an image or a volume, without padding along its first ``free`` axes."""

    def __init__(self, axes=2, widths=(6, 8), kernel=(3, 3), free=1, classes=5):
        super().__init__()
        self.axes, conv, norm = axes, CONVS[axes], NORMS[axes]
        first, second = widths
        size = (kernel[0],) * (axes - 1) + (kernel[1],)
        pad = tuple(0 if axis < free else k // 2 for axis, k in enumerate(size))
        self.stem = conv(3, first, size, padding=pad, bias=False)
        self.norm1 = norm(first)
        self.pool = POOLS[axes](2)
        self.widen = conv(first, second, size, padding=pad)
        self.norm2 = norm(second)
        self.one = conv(second, second, 1, bias=False)
        self.norm3 = norm(second)
        self.head = nn.Linear(second, classes)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm1(self.stem(x))))
        x = torch.relu(self.norm2(self.widen(x)))
        x = torch.relu(x + self.norm3(self.one(x)))
        return self.head(x.mean(dim=tuple(range(2, self.axes + 2))))


class Grouped(nn.Module):
    """Bottleneck blocks whose middle convolution stands in groups."""

    def __init__(self, groups=1, width=8, depth=2, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, groups=groups),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 1),
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(torch.relu(x).mean(dim=(2, 3)))


class Turned(nn.Module):
    """A linear layer whose weight is [in, out], as in GPT-2."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.1)
        self.bias = nn.Parameter(torch.randn(outputs) * 0.1)

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Mixer(nn.Module):
    """Residual blocks of two linear layers over tokens; ``linear`` makes them."""

    def __init__(self, linear=nn.Linear, width=8, hidden=16, depth=2, classes=5):
        super().__init__()
        self.stem = linear(6, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(width), "up": linear(width, hidden), "down": linear(hidden, width)})
            for _ in range(depth)
        )
        self.head = linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["down"](torch.nn.functional.gelu(block["up"](block["norm"](x))))
        return self.head(x.mean(dim=1))


class Headed(nn.Module):
    """A convolutional network with a classifier of linear layers, or of convolutions that see the whole map."""

    def __init__(self, convolutional=False, width=6, hidden=10, classes=5):
        super().__init__()
        self.convolutional = convolutional
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.hidden = nn.Conv2d(width, hidden, 4) if convolutional else nn.Linear(width * 16, hidden)
        self.head = nn.Conv2d(hidden, classes, 1) if convolutional else nn.Linear(hidden, classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        if self.convolutional:
            return self.head(torch.relu(self.hidden(x))).flatten(1)
        return self.head(torch.relu(self.hidden(x.flatten(1))))
