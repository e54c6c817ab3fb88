"""Small networks for tests, and the way from a network to its layer graph."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from netgraft.trace import trace


@dataclass(frozen=True)
class Net:
    """A network as ``trace`` wants it: how to build it, and the size of its input without the batch axis."""

    build: object
    input_size: tuple[int, ...] = (3, 16, 16)
    example_inputs: object = None
    name: str = "net"
    file: object = None


def traced(build, size=(3, 16, 16)):
    return trace(Net(build, size))


def weights(build, seed=0):
    """A state_dict with every tensor drawn anew, statistics of norms and biases too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build().state_dict()
        for key, tensor in state.items():
            if tensor.is_floating_point():
                state[key] = torch.randn_like(tensor).abs() + 0.1 if key.endswith("var") else torch.randn_like(tensor)
            else:
                state[key] = torch.randint_like(tensor, 1, 1000)
        return state


class Straight(nn.Module):
    """Convolutions with norms, pooled into a linear head. ``kernels`` holds (width, kernel size) per convolution."""

    def __init__(self, kernels=((8, 3), (12, 3)), classes=5, norm=nn.BatchNorm2d, in_chans=3):
        super().__init__()
        widths = [in_chans, *(width for width, _ in kernels)]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, width, kernel, padding="same")
            for before, (width, kernel) in zip(widths, kernels, strict=False)
        )
        self.norms = nn.ModuleList(norm(width) for width in widths[1:])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.head(x.mean(dim=(2, 3)))


class Flat(nn.Module):
    """Two convolutions, a flattened map, a hidden linear layer and a head, as in LeNet and VGG."""

    def __init__(self, widths=(4, 6), side=16, hidden=10, classes=5, pools=2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.pools = pools
        self.hidden = nn.Linear(widths[1] * (side // 2**pools) ** 2, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.max_pool2d(x, 2**self.pools)
        return self.head(F.relu(self.hidden(torch.flatten(x, 1))))


class Branched(nn.Module):
    """HMT, Figure 4 (a): L5 beside L2 and L3."""

    def __init__(self, width=8, classes=5):
        super().__init__()
        self.L1 = nn.Conv2d(3, width, 3, padding=1)
        self.L2 = nn.Conv2d(width, width, 3, padding=1)
        self.L3 = nn.Conv2d(width, width, 3, padding=1)
        self.L5 = nn.Conv2d(width, width, 3, padding=1)
        self.N5 = nn.BatchNorm2d(width)
        self.L4 = nn.Conv2d(width, classes, 3, padding=1)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("counter", torch.zeros(2))

    def forward(self, x):
        x = self.L1(x).relu()
        return self.L4(self.L3(self.L2(x).relu()) + self.N5(self.L5(x))).mean(dim=(2, 3))


class Tied(nn.Module):
    """Linear layers of which the first and the last share their weight; each has a bias of its own."""

    def __init__(self, width=6, depth=1, bias=True):
        super().__init__()
        self.first = nn.Linear(width, width, bias=bias)
        self.middle = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
        self.last = nn.Linear(width, width, bias=bias)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.middle(self.first(x).relu()).relu())


class Perceptron(nn.Module):
    """Three linear layers on a vector."""

    def __init__(self, width=20, classes=5, features=12):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
        )

    def forward(self, x):
        return self.layers(x)
