"""A slim VGG-11 with BatchNorm for 16x16 grey images: configuration A of Simonyan and Zisserman 2014.

Eight 3x3 convolutions at a quarter of the paper's widths. Departs from the paper: four poolings (after the second,
fourth, sixth and eighth convolution) instead of five, since 16x16 can be halved only four times; one linear layer
instead of three; BatchNorm after each convolution, which leaves the convolutions' biases near zero.
"""

from __future__ import annotations

from torch import Tensor, nn

_WIDTHS = (16, 32, "pool", 64, 64, "pool", 128, 128, "pool", 128, 128, "pool")


class VGG11(nn.Module):
    """Logits ``[n, num_classes]`` of images ``[n, in_chans, h, w]``, h and w at least 16; 16x16 in training."""

    input_size = (1, 16, 16)

    def __init__(self, num_classes: int = 26, in_chans: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = in_chans
        for width in _WIDTHS:
            if isinstance(width, int):
                layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                width_in = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))  # [n, 128, 1, 1]
        logits: Tensor = self.classifier(x.flatten(1))
        return logits
