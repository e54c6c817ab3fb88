"""A network of one's own: what somebody would write for small grey images, like nothing on a model hub.

Widths 24, 40, 72 and 120, a 5x5 stem, plain residual blocks where maps are large, a depthwise-separable block with
squeeze-and-excitation where they are small. It takes any image from 16x16 to 64x64; 32x32 unless told otherwise.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a pooled 1x1 shortcut; halves height and width."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width_in, width, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:  # [n, in, h, w] -> [n, width, h / 2, w / 2]
        out = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(out)) + self.shortcut(F.avg_pool2d(x, 2)))


class _Separable(nn.Module):
    """Depthwise 5x5, squeeze-and-excitation, pointwise 1x1; the input is added where the widths agree."""

    def __init__(self, width_in: int, width: int, squeezed: int = 10) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width_in, width_in, 5, padding=2, groups=width_in, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(width_in)
        self.squeeze = nn.Conv2d(width_in, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, width_in, 1)
        self.pointwise = nn.Conv2d(width_in, width, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(width)
        self.adds_input = width_in == width

    def forward(self, x: Tensor) -> Tensor:  # [n, in, h, w] -> [n, width, h, w]
        out = F.relu(self.depthwise_norm(self.depthwise(x)))
        out = out * self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(out, 1)))).sigmoid()
        out = self.pointwise_norm(self.pointwise(out))
        return F.relu(out + x if self.adds_input else out)


class MyNet(nn.Module):
    """Logits ``[n, num_classes]`` of images ``[n, in_chans, h, w]``, h and w from 16 to 64 and divisible by 8."""

    input_size = (1, 32, 32)

    def __init__(self, num_classes: int = 10, in_chans: int = 1, drop: float = 0.1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 24, 5, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(24)
        self.body = nn.Sequential(
            _Residual(24, 40),  # half the height and width
            _Residual(40, 72),  # a quarter
            _Separable(72, 72),
            _Residual(72, 120),  # an eighth
            _Separable(120, 120),
        )
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(120, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = self.body(x)
        return self.head(self.drop(x.mean(dim=(2, 3))))
