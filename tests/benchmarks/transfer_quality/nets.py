"""The architectures, as a user's model file would hold them. Those of netgraft and of examples/ are not repeated.

Every net takes ``num_classes`` and ``in_chans`` and reads 16x16 or 32x32 images.
"""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from netgraft.models.embedded.resnet20 import BasicBlock, ResNet20
from netgraft.models.embedded.vgg11 import VGG11

__all__ = ["VGG11", "Depthwise", "NoNorm", "ResNet20", "ResNet26", "Wide5x5", "vit_deep", "vit_wide"]

mean, std = 0.5, 0.35
"""Of the images in [0, 1], for all nets."""


class _Pooled(nn.Module):
    """``features``, the mean over places, ``head``."""

    def __init__(self, layers: list[nn.Module], width: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


class Wide5x5(_Pooled):
    """Wider than the sources: five 5x5 convolutions, most of which halve the map."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        layers: list[nn.Module] = []
        width_in = in_chans
        for width, stride in ((24, 1), (48, 2), (96, 2), (96, 1), (192, 2)):
            layers += [nn.Conv2d(width_in, width, 5, stride, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            width_in = width
        super().__init__(layers, width_in, num_classes)


class Depthwise(_Pooled):
    """A small MobileNet: 3x3 depthwise and 1x1 pointwise convolutions in turn."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        layers = [nn.Conv2d(in_chans, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
        width_in = 24
        for width, stride in ((48, 1), (48, 2), (96, 1), (96, 2), (128, 1)):
            layers += [nn.Conv2d(width_in, width_in, 3, stride, 1, groups=width_in, bias=False)]
            layers += [nn.BatchNorm2d(width_in), nn.ReLU()]
            layers += [nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            width_in = width
        super().__init__(layers, width_in, num_classes)


class NoNorm(_Pooled):
    """Five 3x3 convolutions with biases, He et al.'s initialisation and no norm."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        layers: list[nn.Module] = []
        width_in = in_chans
        for width, pool in ((32, True), (64, False), (64, True), (96, False), (128, False)):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * pool
            width_in = width
        super().__init__(layers, width_in, num_classes)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


class ResNet26(ResNet20):
    """ResNet-20 with a block more in every stage and half as many channels again: it contains the source."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1, self.bn1 = nn.Conv2d(in_chans, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(BasicBlock(width_in, width, stride), *[BasicBlock(width, width) for _ in range(3)])
            for width_in, width, stride in ((24, 24, 1), (24, 48, 2), (48, 96, 2))
        )
        self.fc = nn.Linear(96, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def vit_deep(num_classes: int = 26, in_chans: int = 1) -> VisionTransformer:
    """A source: six blocks of width 64."""
    return _vit(num_classes, in_chans, width=64, depth=6, heads=4)


def vit_wide(num_classes: int = 10, in_chans: int = 1) -> VisionTransformer:
    """A target: four blocks of width 96."""
    return _vit(num_classes, in_chans, width=96, depth=4, heads=6)


def _vit(num_classes: int, in_chans: int, *, width: int, depth: int, heads: int) -> VisionTransformer:
    """16 tokens: patches of 4x4 in grey images of 16x16, of 8x8 in RGB images of 32x32."""
    side = 16 if in_chans == 1 else 32
    return VisionTransformer(
        img_size=side,
        patch_size=side // 4,
        in_chans=in_chans,
        global_pool="avg",
        class_token=False,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=2.0,
    )
