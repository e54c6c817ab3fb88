"""Small networks of every make that the refit knows, with trained-looking weights, and a refit of one to another."""

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from netgraft.architecture.graph import LayerGraph
from netgraft.models.batch_norm import recalibrating
from netgraft.passes.refitting.batches import Batches
from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.pairing import follow
from netgraft.passes.refitting.walk import refit
from netgraft.trace.replay import Replay

IMAGE = (3, 16, 16)


class Plain(nn.Module):
    """Convolutions, norms, ReLUs; ``late`` puts the norm behind the activation."""

    def __init__(self, widths=(8, 12, 12), late=False, norm=True, bias=True, groups=1):
        super().__init__()
        before = [3, *widths]
        self.late = late
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=bias, groups=groups if i else 1)
            for i, (a, b) in enumerate(zip(before, widths, strict=False))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) if norm else nn.Identity() for b in widths)
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x):
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(F.relu(conv(x))) if self.late else F.relu(norm(conv(x)))
            if i == 1:
                x = F.avg_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """A stem, a block with an identity, a block with a projection; ``gated``: another make of block."""

    def __init__(self, width=8, classes=5, gated=None):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        block = gated or Block
        self.blocks = nn.ModuleList([block(width, width, 1), block(width, 2 * width, 2)])
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.down = None
        if before != width:
            self.down = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.act(self.bn1(self.conv1(x)))
        out = self.end(self.bn2(self.conv2(out)))
        out += x if self.down is None else self.down(x)
        return self.act(out)

    def end(self, out):
        return out


class Gated(Block):
    """A squeeze-and-excitation gate at the end of the branch."""

    def __init__(self, before, width, stride):
        super().__init__(before, width, stride)
        self.squeeze, self.excite = nn.Linear(width, width // 2), nn.Linear(width // 2, width)

    def end(self, out):
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(out.mean((2, 3))))))
        return out * gate[:, :, None, None]


class Opaque(Block):
    """Something at the end of the branch that no regression goes through."""

    def end(self, out):
        return F.relu(out)


class Separable(nn.Module):
    """Depthwise and pointwise convolutions."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.deep, self.deep_norm = (
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
        )
        self.point, self.point_norm = nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.deep_norm(self.deep(x)))
        return self.head(F.relu(self.point_norm(self.point(x))).mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3 * 16 * 16, width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x):
        return self.head(F.gelu(self.b(F.gelu(self.a(x.flatten(1))))))


def vit(width=16, depth=2, scale=0.3):
    return VisionTransformer(
        16, 4, embed_dim=width, depth=depth, num_heads=2, num_classes=5, init_values=scale, mlp_ratio=2
    )


def swin(width=8):
    return SwinTransformer(16, 2, embed_dim=width, depths=(2,), num_heads=(2,), window_size=4, num_classes=5)


def convnext(width=8):
    return ConvNeXt(
        depths=(2, 1, 1, 1), dims=(width, width, 2 * width, 2 * width), num_classes=5, patch_size=1, ls_init_value=0.5
    )


def images(count=48, size=IMAGE, seed=0):
    """Smooth ones: neighbouring pixels agree, as they do in pictures."""
    noise = torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="circular"), 3, 1)
    return smooth * 3 + 0.3 * noise


def made(build, seed=0):
    """Norms that do something, biases that are not zero, and statistics of the images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build().eval().requires_grad_(False)
        for name, tensor in net.named_parameters():
            if tensor.dim() < 2 and "gamma" not in name:
                tensor.add_(0.2 * torch.randn_like(tensor))
    with recalibrating(net):
        net(images(seed=9))
    return net


def refitted(source, target, *, pairs=None, x=None, rows=40_000, seed=0, grafted=(), ridge=None):
    """``target`` refitted in place; (what was done by layer, why others were left)."""
    batches = in_batches(images() if x is None else x)
    there, here = Replay(source, batches.source(0)), Replay(target, batches.target(0))
    pairs = follow(there.graph, here.graph) if pairs is None else pairs
    channels = OutputChannels(there.graph, here.graph, layers(there.graph, here.graph, pairs), None)
    generator = torch.Generator().manual_seed(seed)
    outcome = refit(there, here, batches, pairs, channels, generator, rows, grafted=frozenset(grafted), ridge=ridge)
    left = outcome.left | {each.layer: each.how for each in outcome.kept}
    return {each.layer: each for each in outcome.done}, left


def in_batches(x):
    """A sixth of the images is kept aside: the first ones."""
    size = max(len(x) // 12, 1)
    parts = x[: len(x) // size * size].split(size)
    aside = -(-len(parts) // 6)
    return Batches(size, aside, len(parts) - aside, parts.__getitem__, parts.__getitem__)


def kept_aside(x):
    """How many images a refit does not fit on."""
    batches = in_batches(x)
    return batches.size * batches.aside


def layers(source: LayerGraph, target: LayerGraph, pairs):
    return [(source.layers[a], target.layers[b]) for a, b in pairs]


def features(net, x):
    """What the head reads."""
    found = []
    head = net.head if isinstance(net.head, nn.Linear) else net.head.fc
    hook = head.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0].clone()))
    net(x)
    hook.remove()
    return found[0]
