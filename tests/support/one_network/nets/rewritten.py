"""Networks of torchvision and timm, written anew, and small configurations of the originals."""

import itertools
import math

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import shufflenet_v2_x0_5, squeezenet1_1

# -------------------------------------------------------------------------------------------------------------- ResNet


def timm_resnet10():
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=10, channels=(64, 24, 32, 48))


class ConvNorm(nn.Module):
    def __init__(self, width_in, width, kernel, stride=1, act=True):
        super().__init__()
        self.convolution = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(width)
        self.activation = nn.ReLU() if act else nn.Identity()

    def forward(self, x):
        return self.activation(self.normalization(self.convolution(x)))


class OwnResNet(nn.Module):
    """The shortcut is registered and runs before the main path."""

    def __init__(self):
        super().__init__()
        self.embedder = ConvNorm(3, 64, 7, 2)
        self.shortcuts, self.first, self.second = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width_in = 64
        for number, width in enumerate((64, 24, 32, 48)):
            stride = 1 if number == 0 else 2
            self.shortcuts.append(nn.Identity() if stride == 1 else ConvNorm(width_in, width, 1, stride, act=False))
            self.first.append(ConvNorm(width_in, width, 3, stride))
            self.second.append(ConvNorm(width, width, 3, act=False))
            width_in = width
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))

    def forward(self, x):
        x = F.max_pool2d(self.embedder(x), 3, 2, 1)
        for shortcut, first, second in zip(self.shortcuts, self.first, self.second, strict=True):
            residual = shortcut(x)
            x = F.relu(second(first(x)) + residual)
        return self.classifier(F.adaptive_avg_pool2d(x, 1))


def own_resnet10():
    return OwnResNet()


# ---------------------------------------------------------------------------------------------------------- SqueezeNet


def tv_squeezenet():
    return squeezenet1_1(num_classes=10)


class OwnSqueezeNet(nn.Module):
    FIRES = ((64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128))
    FIRES += ((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256))

    def __init__(self):
        super().__init__()
        self.predict = nn.Conv2d(512, 10, 1)
        self.wide = nn.ModuleList(nn.Conv2d(s, e, 3, padding=1) for _, s, e in self.FIRES)
        self.narrow = nn.ModuleList(nn.Conv2d(s, e, 1) for _, s, e in self.FIRES)
        self.squeeze = nn.ModuleList(nn.Conv2d(i, s, 1) for i, s, _ in self.FIRES)
        self.conv1 = nn.Conv2d(3, 64, 3, 2)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        for number in range(8):
            if number in (0, 2, 4):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = F.relu(self.squeeze[number](x))
            x = F.relu(torch.cat([self.narrow[number](x), self.wide[number](x)], 1))
        return F.relu(self.predict(x)).mean((2, 3))


def own_squeezenet():
    return OwnSqueezeNet()


# ---------------------------------------------------------------------------------------------------------- ShuffleNet


def tv_shufflenet():
    return shufflenet_v2_x0_5(num_classes=10)


def conv_bn(width_in, width, kernel, stride=1, groups=1):
    layer = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.ModuleDict({"conv": layer, "bn": nn.BatchNorm2d(width)})


def run(parts, x, act=True):
    x = parts["bn"](parts["conv"](x))
    return x.relu() if act else x


class Shuffle(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        half = width // 2
        self.short = stride == 1
        if not self.short:
            self.side = nn.ModuleList([conv_bn(width_in, width_in, 3, 2, width_in), conv_bn(width_in, half, 1)])
        begin = half if self.short else width_in
        self.main = nn.ModuleList(
            [conv_bn(begin, half, 1), conv_bn(half, half, 3, stride, half), conv_bn(half, half, 1)]
        )

    def forward(self, x):
        if self.short:
            half = x.shape[1] // 2
            kept, x = x[:, :half], x[:, half:]
        else:
            kept = run(self.side[1], run(self.side[0], x, act=False))
        x = run(self.main[2], run(self.main[1], run(self.main[0], x), act=False))
        return torch.stack([kept, x], dim=2).flatten(1, 2)  # channels in turn from one and the other


class OwnShuffleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.begin = conv_bn(3, 24, 3, 2)
        self.body, width_in = nn.ModuleList(), 24
        for width, repeats in ((48, 4), (96, 8), (192, 4)):
            for number in range(repeats):
                self.body.append(Shuffle(width_in, width, 1 if number else 2))
                width_in = width
        self.end, self.fc = conv_bn(192, 1024, 1), nn.Linear(1024, 10)

    def forward(self, x):
        x = F.max_pool2d(run(self.begin, x), 3, 2, 1)
        for block in self.body:
            x = block(x)
        return self.fc(run(self.end, x).mean((2, 3)))


def own_shufflenet():
    return OwnShuffleNet()


# ----------------------------------------------------------------------------------------------------------- MLP-Mixer


def timm_mixer():
    return MlpMixer(num_classes=10, img_size=16, patch_size=4, num_blocks=2, embed_dim=24)


class MixerBlock(nn.Module):
    """Tokens are mixed by 1x1 convolutions over the tokens as channels; nothing is transposed."""

    def __init__(self, tokens, width):
        super().__init__()
        self.mix_in, self.mix_out = nn.Conv1d(tokens, width // 2, 1), nn.Conv1d(width // 2, tokens, 1)
        self.dense1, self.dense2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.before, self.between = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        x = x + self.mix_out(F.gelu(self.mix_in(self.before(x))))
        return x + self.dense2(F.gelu(self.dense1(self.between(x))))


class OwnMixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.layers = nn.ModuleList(MixerBlock(16, 24) for _ in range(2))
        self.last, self.out = nn.LayerNorm(24, eps=1e-6), nn.Linear(24, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.out(self.last(x).mean(1))


def own_mixer():
    return OwnMixer()


# ------------------------------------------------------------------------------------------------------------ ConvNeXt

CONVNEXT = {"num_classes": 10, "depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24)}


def timm_convnext():
    return ConvNeXt(**CONVNEXT)


def timm_convnext_1x1():
    """1x1 convolutions where the other has linear layers."""
    return ConvNeXt(**CONVNEXT, conv_mlp=True)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [N, C, H, W], written out as in ConvNeXt's first code."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class NextBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class OwnConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        widths, depths = CONVNEXT["dims"], CONVNEXT["depths"]
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 8, 4, 4), ChannelNorm(8))])
        for width_in, width in itertools.pairwise(widths):
            self.downsample_layers.append(nn.Sequential(ChannelNorm(width_in), nn.Conv2d(width_in, width, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(NextBlock(w) for _ in range(d))) for w, d in zip(widths, depths, strict=True)
        )
        self.norm, self.head = nn.LayerNorm(24, eps=1e-6), nn.Linear(24, 10)

    def forward(self, x):
        for shrink, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(shrink(x))
        return self.head(self.norm(x.mean((-2, -1))))


def own_convnext():
    return OwnConvNeXt()


# ----------------------------------------------------------------------------------------------------------------- ViT

VIT = {"num_classes": 10, "img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


def timm_vit():
    return VisionTransformer(**VIT)


def timm_vit_registers():
    return VisionTransformer(**VIT, reg_tokens=2, no_embed_class=True, init_values=0.1)


class OwnVit(nn.Module):
    """Three projections, positions and tokens without a batch axis; with registers and layer scales if told."""

    def __init__(self, registers=0):
        super().__init__()
        self.registers = registers
        self.layers, width = nn.ModuleList(), 24
        for _ in range(2):
            parts = {name: nn.Linear(width, width) for name in ("o", "v", "k", "q")}
            parts |= {"n1": nn.LayerNorm(width, eps=1e-6), "n2": nn.LayerNorm(width, eps=1e-6)}
            parts |= {"up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width)}
            self.layers.append(nn.ModuleDict(parts))
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(width)) for _ in range(4 if registers else 0))
        self.position = nn.Parameter(torch.randn(16 if registers else 17, width))
        if registers:
            self.extra = nn.Parameter(torch.randn(registers, width))
        self.cls, self.stem = nn.Parameter(torch.randn(width)), nn.Conv2d(3, width, 4, 4)
        self.final, self.fc = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        tokens = self.cls.expand(x.shape[0], 1, -1)
        if self.registers:
            x = torch.cat([tokens, self.extra.expand(x.shape[0], -1, -1), x + self.position], 1)
        else:
            x = torch.cat([tokens, x], 1) + self.position
        for number, layer in enumerate(self.layers):
            y = layer["n1"](x)
            q, k, v = (layer[name](y).unflatten(2, (3, 8)).transpose(1, 2) for name in "qkv")
            y = layer["o"](((q @ k.mT) / math.sqrt(8)).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
            x = x + (y * self.scales[2 * number] if self.registers else y)
            y = layer["down"](F.gelu(layer["up"](layer["n2"](x))))
            x = x + (y * self.scales[2 * number + 1] if self.registers else y)
        return self.fc(self.final(x)[:, 0])


def own_vit():
    return OwnVit()


def own_vit_registers():
    return OwnVit(2)
