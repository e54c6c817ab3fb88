"""Weighted feature matching: adapters, distances per channel, and the networks that weigh them (L2T-ww).

For a pair (m, n) of layers, with the target's features adapted to the source's channels,

    d_bc = mean over places of (phi(f^T_n) - f^S_m)^2        L_wfm = sum over pairs of mean_b lambda_b sum_c w_bc d_bc

w = softmax(W g + bias) and lambda = relu6(u g + c), with g the source's features averaged over places. L_wfm is linear
in its coefficients a = lambda w / B, which is what the adjoint uses: they are all that it has to know of the networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.finetune.protocol import FeaturePair, Run
from netgraft.finetune.toolbox.adapters import adapter, check_places, pairs_of, width
from netgraft.finetune.toolbox.terms import match_size

Match = Literal["one-to-one", "all"]


def pairs_to_match(run: Run, match: Match) -> tuple[FeaturePair, ...]:
    """The run's pairs, or each of their source layers with each of their target layers whose output is of its kind.

    Shapes of maps are (C, H, W). Raises UsageError for tokens that differ in number.
    """
    pairs: Iterable[FeaturePair] = pairs_of(run)
    if match == "all":
        each = [FeaturePair(a.source, b.target, a.source_shape, b.target_shape) for a in pairs for b in pairs]
        pairs = dict.fromkeys(pair for pair in each if len(pair.source_shape) == len(pair.target_shape))
    found = tuple(pairs)
    check_places(found)
    return found


def pooled(features: Tensor) -> Tensor:  # [B, C, H, W], [B, N, C], [B, C]
    """The mean over places, [B, C]."""
    return features.mean((2, 3)) if features.dim() == 4 else features.mean(1) if features.dim() == 3 else features


class Adapters(nn.Module):
    """phi: a pointwise convolution from the target's channels to the source's, for each pair (L2T-ww).

    Those of one target layer are one module whose outputs are split: its features are read once.
    """

    def __init__(self, pairs: Sequence[FeaturePair]) -> None:
        super().__init__()
        self.layers: dict[str, list[int]] = {}
        for number, pair in enumerate(pairs):
            self.layers.setdefault(pair.target, []).append(number)
        self.widths = [width(pair.source_shape) for pair in pairs]
        shapes = {pair.target: pair.target_shape for pair in pairs}
        outputs = {layer: sum(self.widths[i] for i in numbers) for layer, numbers in self.layers.items()}
        self.maps = nn.ModuleList(adapter(shapes[layer], outputs[layer]) for layer in self.layers)

    def forward(self, at: Mapping[str, Tensor]) -> list[Tensor]:
        """The adapted features of each pair."""
        found: dict[int, Tensor] = {}
        for (layer, numbers), adapt in zip(self.layers.items(), self.maps, strict=True):
            joined = adapt(at[layer])
            axis = 1 if joined.dim() == 4 else -1
            found |= zip(numbers, joined.split([self.widths[i] for i in numbers], axis), strict=True)
        return [found[i] for i in range(len(found))]


def source_features(pairs: Sequence[FeaturePair], outputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The source's features of each pair at the size of the target's; resized once for layers of one size."""
    done: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    for source, _, _, shape in pairs:
        if (source, shape[1:]) not in done:
            features = outputs[source]
            done[source, shape[1:]] = match_size(features, features.new_empty((1, *shape)))
    return [done[pair.source, pair.target_shape[1:]] for pair in pairs]


def distances(adapted: Iterable[Tensor], sources: Iterable[Tensor]) -> list[Tensor]:
    """d of each pair, [B, C]: squared differences, averaged over places."""
    found: list[Tensor] = [_MeanSquare.apply(a.float() - b) for a, b in zip(adapted, sources, strict=True)]
    return found


class _MeanSquare(torch.autograd.Function):
    """``pooled(x^2)`` whose gradient is one product: a third of the passes over the maps when differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return pooled(x.square())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        slope = gradients[0] * (2 * gradients[0].numel() / x.numel())
        return x * (slope[:, :, None, None] if x.dim() == 4 else slope[:, None] if x.dim() == 3 else slope)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return pooled(ctx.saved_tensors[0] * tangents[0]).mul_(2)


def coefficients(w: Sequence[Tensor], lam: Sequence[Tensor], beta: float) -> list[Tensor]:
    """a = beta lambda w / B of each pair, [B, C]."""
    return [beta / len(one) * one * of_pair for one, of_pair in zip(w, lam, strict=True)]


def matching_loss(a: Iterable[Tensor], distance: Iterable[Tensor]) -> Tensor:
    """The sum over pairs, samples and channels of a d."""
    return torch.stack([(one * d).sum() for one, d in zip(a, distance, strict=True)]).sum()


class MatchingWeights(nn.Module):
    """w and lambda of each pair: uniform over channels, and ``start``, until they have learnt.

    ``networks`` are linear in the source's features, one row per sample; without, w is a softmax of parameters, the
    same for all samples. Without ``losses`` lambda is 1.
    """

    def __init__(
        self, pairs: Sequence[FeaturePair], *, networks: bool = True, losses: bool = True, start: float = 1.0
    ) -> None:
        super().__init__()
        widths = [width(pair.source_shape) for pair in pairs]
        self.networks = networks
        inputs = widths if networks else [0] * len(pairs)
        self.channels = nn.ModuleList(_Affine(n, c) for n, c in zip(inputs, widths, strict=True))
        self.losses = nn.ModuleList(_Affine(n, 1, start) for n in inputs) if losses else None

    def forward(self, source: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """From the source's pooled features [B, C] of each pair: w [B, C], which sums to 1, and lambda [B, 1]."""
        read = [g if self.networks else g[:, :0] for g in source]
        w = [torch.softmax(net(g), 1) for net, g in zip(self.channels, read, strict=True)]
        if self.losses is None:
            return w, [g.new_ones((len(g), 1)) for g in source]
        return w, [F.relu6(net(g)) for net, g in zip(self.losses, read, strict=True)]


class _Affine(nn.Module):
    """A linear layer that starts as a constant; of the bias alone where there are no inputs."""

    def __init__(self, inputs: int, outputs: int, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs)) if inputs else None
        self.bias = nn.Parameter(torch.full((outputs,), start))

    def forward(self, g: Tensor) -> Tensor:  # [B, inputs]
        return self.bias.expand(len(g), -1) if self.weight is None else F.linear(g, self.weight, self.bias)


def entropies(w: Tensor) -> Tensor:  # [B, C], rows sum to 1
    """Of each row, as a share of the largest possible: 1 is uniform, 0 all on one channel. [B]."""
    if w.shape[1] == 1:
        return w.new_ones(len(w))
    return -(w * w.clamp(min=1e-12).log()).sum(1) / math.log(w.shape[1])


def first_order_loss(w: Sequence[Tensor], distance: Sequence[Tensor], floor: float) -> Tensor:
    """The literal w-step: w descends L_fm, sample by sample, and below the floor of its entropy regains that.

    Alone, sum_c w_c d_c is least with all weight on the channel that matches best already, which teaches nothing.
    """
    found = []
    for weights, d in zip(w, distance, strict=True):
        entropy = entropies(weights)
        found.append(torch.where(entropy > floor, (weights * d.detach()).sum(1), -entropy).mean())
    return torch.stack(found).sum()


def note(run: Run, w: Sequence[Tensor], lam: Sequence[Tensor]) -> None:
    """Log how uniform the channels' weights still are, 1 at first, and the mean weight of a pair."""
    run.note("weights_entropy", torch.stack([entropies(one.detach()).mean() for one in w]).mean())
    run.note("loss_weight", torch.stack([one.detach().mean() for one in lam]).mean())
