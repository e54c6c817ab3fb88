"""PlainNet-5, a target of the HMT paper's CIFAR-100 experiments (HMT, appendix C and figure 9).

"Four convolution layers and one linear layer. Each convolution layer is followed by a ReLU layer and a BatchNorm
layer. The first three convolution layers are also followed by a max pooling layer."

Left open by the paper, chosen here: the widths (32, 64, 128, 256), 3x3 kernels with padding 1, 2x2 pooling, and how
the last map becomes a vector (global average pooling, as in the paper's ResNet-8).
"""

from __future__ import annotations

from torch import Tensor, nn


class PlainNet5(nn.Module):
    """Logits ``[n, num_classes]`` of images ``[n, in_chans, h, w]``, h and w at least 8."""

    input_size = (3, 32, 32)

    def __init__(
        self, num_classes: int = 100, in_chans: int = 3, widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (width_in, width) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(width)]
            if i < 3:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # [n, 256, h / 8, w / 8]
        return self.classifier(x.mean(dim=(2, 3)))
