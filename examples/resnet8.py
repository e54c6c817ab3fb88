"""ResNet-8, a target of the HMT paper's CIFAR-100 experiments (HMT, appendix B and figure 8).

"One convolution layer, three building blocks, one global pooling, and one linear layer. Each building block contains
two convolutional layers with a skipping layer. Each convolution layer is followed by a ReLU layer and a BatchNorm
layer."

Left open by the paper, chosen here: the widths (16, 32, 64, those of the CIFAR ResNets: He et al. 2016),
3x3 kernels with padding 1, stride 2 at the start of the second and third block, average pooling, and the skipping
layer: the identity where the shape stays, a 1x1 convolution with BatchNorm where it changes, added after the second
BatchNorm.
"""

from __future__ import annotations

from torch import Tensor, nn


class _Block(nn.Module):
    """Two times convolution, ReLU, BatchNorm, and the skipping layer beside them."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.skip = nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:  # [n, in, h, w] -> [n, width, h / stride, w / stride]
        out = self.bn1(self.relu(self.conv1(x)))
        out = self.bn2(self.relu(self.conv2(out)))
        return out + self.skip(x)


class ResNet8(nn.Module):
    """Logits ``[n, num_classes]`` of images ``[n, in_chans, h, w]``, h and w at least 4."""

    input_size = (3, 32, 32)

    def __init__(self, num_classes: int = 100, in_chans: int = 3, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.block1 = _Block(widths[0], widths[0], stride=1)
        self.block2 = _Block(widths[0], widths[1], stride=2)
        self.block3 = _Block(widths[1], widths[2], stride=2)
        self.fc = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.relu(self.conv1(x)))
        x = self.block3(self.block2(self.block1(x)))  # [n, 64, h / 4, w / 4]
        return self.fc(x.mean(dim=(2, 3)))
