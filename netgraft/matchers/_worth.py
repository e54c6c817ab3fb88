"""What it is worth to pair two layers by their places in their networks. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from netgraft.architecture.wiring import Place
from netgraft.matchers.longest_chain import unlike


@dataclass(frozen=True)
class PairScores:
    """The weights of an alignment, where a pair of equal layers in equal places is worth 1.

    They were chosen by hand, so that pairs of well-known networks come out as a reader would pair them.
    """

    stage: float = 2.0  # lost by a pair at opposite ends of the resolutions: one at the image's, one at the least
    depth: float = 0.4  # lost by a pair at opposite ends of the two sequences
    stream: float = 1.0  # lost where one of the two reads the residual stream, or writes it, and the other does not
    attention: float = 1.0  # lost where only one of the two stands in an attention block
    depthwise: float = 0.4  # lost where only one of the two is depthwise
    channels: float = 0.06  # lost per factor of e between their channel counts, in and out
    kernel: float = 0.25  # lost per factor of e between their kernel sizes
    opens: float = 0.5  # lost where only one of the two is the first to write its stream
    ends: float = 0.1  # the least that a pair of first layers, or of heads, is worth
    part: float = 0.25  # cost of entering or leaving in the middle a block that the other network has no match for
    again: float = 0.3  # cost of a source layer, or block, that serves once more
    next: float = 0.2  # gained by a pair of residual layers before which nothing is left out


PAIR_SCORES = PairScores()


def worth_of(source: Place, target: Place, scores: PairScores = PAIR_SCORES) -> float:
    """What it is worth to pair two layers: 1 for equals, down to minus infinity for those that must not be paired."""
    if unlike(source.layer, target.layer):
        return -math.inf
    if source.head != target.head or (source.stem != target.stem and not target.head):
        return -math.inf
    worth = 1 - scores.depth * abs(source.depth - target.depth)
    if source.resolution is not None and target.resolution is not None:
        worth -= scores.stage * abs(source.resolution - target.resolution)
    worth -= scores.stream * _differ(source.from_stream, target.from_stream)
    worth -= scores.stream * _differ(source.to_stream, target.to_stream)
    worth -= scores.opens * _differ(source.opens, target.opens)
    worth -= scores.attention * (source.attention != target.attention) + scores.depthwise * (
        source.depthwise != target.depthwise
    )
    (source_out, source_in, source_side), (target_out, target_in, target_side) = source.sizes, target.sizes
    worth -= scores.channels * (abs(source_out - target_out) + abs(source_in - target_in)) + scores.kernel * abs(
        source_side - target_side
    )
    return max(worth, scores.ends) if target.stem or target.head else worth


def _differ(source: bool | None, target: bool | None) -> bool:
    """Whether two facts differ, both being known."""
    return source is not None and target is not None and source != target


def reads_from(place: Place, before: Place) -> bool:
    """Whether a layer reads a channel space that another one writes."""
    return any(space in before.writes for space in place.reads)
