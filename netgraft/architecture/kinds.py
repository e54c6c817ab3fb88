"""What netgraft knows of each kind of layer: one row per kind, read by every room that treats kinds differently.

Tracing finds the kind, channel groups ask how it ties channels together, matchers what it can be exchanged for, and so
on. Each such question is a field of ``Kind``; a field without a default, so that a row cannot forget it. A rule that
needs torch or channel groups stays in its own room as a function; the row names it by a member of one of the enums
below. Nothing here imports torch.

To add a kind for which the rules fit, add a row. Say somebody's own norm runs the operation ``mine::soft_norm``, works
channel by channel on axis 1, and is to be treated like a batch norm otherwise::

    KINDS["soft_norm"] = replace(KINDS["batch_norm"], name="soft_norm", made_by=frozenset({"mine::soft_norm"}))

Only a rule of a new sort needs code: a member of its enum, and one more case where the enum is matched. The type
checker points at every place that lacks the case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from netgraft.architecture.operations import (
    BATCH_NORMS,
    BILINEAR,
    CONVOLVES,
    GROUP_NORMS,
    LAYER_NORMS,
    LOOKS_UP,
    MATRIX_PRODUCTS,
    RMS_NORMS,
    SLOPES,
)


class Role(StrEnum):
    """What a layer is in a network."""

    KERNEL = "kernel"  # a map between channel spaces that is learned: counts towards a chain, is paired by matchers
    NORM = "norm"  # goes along with the kernel it follows
    OTHER = "other"


class ChannelRule(StrEnum):
    """How its tensors' axes follow from its input's: a function of ``channels.groups.kinds``."""

    CONV = "conv"
    LINEAR = "linear"
    NORM = "norm"
    EMBEDDING = "embedding"
    ACTIVATION = "activation"
    RECURRENT = "recurrent"
    FIXED = "fixed"  # no rule: nothing it touches may be permuted


class Mixes(StrEnum):
    """What is averaged in eval mode without weights in between: copying a part of it unevenly changes the mean."""

    NOTHING = "nothing"
    CHANNELS = "channels"  # of a position
    POSITIONS = "positions"  # of a channel
    BOTH = "both"


class StreamRule(StrEnum):
    """What it does to a residual stream that is stretched (``channels.stretch``)."""

    MAP = "map"  # writes one with its weight's rows, or reads one with its columns
    TABLE = "table"  # writes one with the last axis of its weight
    LAYER_NORM = "layer_norm"  # takes each token's mean over all channels away, and divides by its deviation
    RMS_NORM = "rms_norm"  # divides each token by the root mean square of all channels
    BREAKS = "breaks"  # anything else


class Exchange(StrEnum):
    """Which layers its weights can be made from (``matchers``)."""

    SAME_KIND = "same kind"  # of any size
    SAME_SHAPE = "same shape"  # of its kind


class CostRule(StrEnum):
    """At how many positions of one call every number of its weight is multiplied once (``architecture.cost``)."""

    OUTPUT_MAP = "output map"  # batch and space of the feature map it puts out
    INPUT_MAP = "input map"  # ... of the one it reads
    ROWS = "rows"  # all axes of its output but the last
    NONE = "none"  # not counted


class MomentRule(StrEnum):
    """How means and covariances of channels go through it (``passes._propagate``); a batch norm starts anew."""

    CONV = "conv"
    LINEAR = "linear"
    ELEMENTWISE = "elementwise"
    UNKNOWN = "unknown"  # propagation stops


@dataclass(frozen=True)
class Kind:
    """One kind of layer, and the answer to everything that is asked of kinds."""

    name: str
    role: Role
    made_by: frozenset[str]  # operations with a weight that make a layer of this kind; empty: found in another way
    by_class: bool  # known by the class of its module: it does what that class does, and nothing else
    convolves: bool  # slides over a feature map; has a stride, padding, dilation, groups
    out_axis: int  # the axis of its output along which channels lie; a norm's may be told by the node
    in_axis: int  # the axis of its weight along which it reads channels, of a kernel
    channels: ChannelRule
    mixes: Mixes
    stream: StreamRule
    exchange: Exchange
    family: str  # kinds of one family are made of one another by giving a kernel axes or taking some; empty: none is
    cost: CostRule
    moments: MomentRule
    refits: bool  # whether a pass can fit new weights to what it should put out
    dirac: bool  # whether weights make it pass its input through, where it keeps size and resolution

    @property
    def exchanges_as(self) -> str:
        """Equal for kinds whose weights can be made of one another."""
        return self.family or self.name

    @property
    def has_statistics(self) -> bool:
        """Whether it normalises by statistics that it keeps, as a batch norm: they can be set from outside."""
        return self.role is Role.NORM and self.mixes is Mixes.NOTHING

    @property
    def scale_free(self) -> bool:
        """Whether a residual stream may be c times as large before it, and what it puts out stays the same."""
        return self.stream in (StreamRule.LAYER_NORM, StreamRule.RMS_NORM)


_CONV = Kind(
    name="conv2d",
    role=Role.KERNEL,
    made_by=CONVOLVES,
    by_class=False,
    convolves=True,
    out_axis=1,
    in_axis=1,
    channels=ChannelRule.CONV,
    mixes=Mixes.NOTHING,
    stream=StreamRule.MAP,
    exchange=Exchange.SAME_KIND,
    family="convolution",
    cost=CostRule.OUTPUT_MAP,
    moments=MomentRule.CONV,
    refits=True,
    dirac=True,
)
_LINEAR = replace(
    _CONV,
    name="linear",
    made_by=MATRIX_PRODUCTS,
    convolves=False,
    out_axis=-1,
    channels=ChannelRule.LINEAR,
    family="",
    cost=CostRule.ROWS,
    moments=MomentRule.LINEAR,
)
_KERNEL = replace(  # a kernel without rules of its own
    _LINEAR,
    channels=ChannelRule.FIXED,
    stream=StreamRule.BREAKS,
    moments=MomentRule.UNKNOWN,
    refits=False,
    dirac=False,
)
_NORM = Kind(
    name="layer_norm",
    role=Role.NORM,
    made_by=LAYER_NORMS,
    by_class=False,
    convolves=False,
    out_axis=-1,
    in_axis=0,
    channels=ChannelRule.NORM,
    mixes=Mixes.CHANNELS,
    stream=StreamRule.LAYER_NORM,
    exchange=Exchange.SAME_KIND,
    family="",
    cost=CostRule.NONE,
    moments=MomentRule.UNKNOWN,
    refits=False,
    dirac=False,
)
_MAP_NORM = replace(_NORM, out_axis=1, stream=StreamRule.BREAKS)  # norms of feature maps
_OTHER = replace(
    _NORM,
    name="other",
    role=Role.OTHER,
    made_by=frozenset(),
    channels=ChannelRule.FIXED,
    mixes=Mixes.NOTHING,
    stream=StreamRule.BREAKS,
)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _CONV,
        *(replace(_CONV, name=f"conv{n}d", refits=False) for n in (1, 3)),
        *(
            replace(
                _CONV,
                name=f"conv_transpose{n}d",  # weight [in, out / groups, *kernel]
                in_axis=0,
                stream=StreamRule.BREAKS,
                family="transposed convolution",
                cost=CostRule.INPUT_MAP,
                moments=MomentRule.UNKNOWN,
                refits=False,
                dirac=False,
            )
            for n in (1, 2, 3)
        ),
        replace(  # a convolution whose kernel is mixed from several
            _CONV,
            name="conv_dynamic",
            channels=ChannelRule.FIXED,
            exchange=Exchange.SAME_SHAPE,
            family="",
            moments=MomentRule.UNKNOWN,
            refits=False,
            dirac=False,
        ),
        _LINEAR,
        # A product with a weight of three axes or more: a bilinear form, the matrices of several experts.
        replace(_KERNEL, name="contraction", made_by=BILINEAR),
        replace(
            _KERNEL,
            name="rnn",
            made_by=frozenset(),
            by_class=True,
            channels=ChannelRule.RECURRENT,
        ),
        replace(_MAP_NORM, name="batch_norm", made_by=BATCH_NORMS, mixes=Mixes.NOTHING),  # it has running statistics
        replace(_MAP_NORM, name="instance_norm", made_by=frozenset(), by_class=True, mixes=Mixes.POSITIONS),
        replace(_MAP_NORM, name="group_norm", made_by=GROUP_NORMS, mixes=Mixes.BOTH),
        _NORM,
        replace(_NORM, name="rms_norm", made_by=RMS_NORMS, stream=StreamRule.RMS_NORM),
        # Written by hand: something is divided by a mean, a variance or a norm of the data.
        replace(_NORM, name="norm", made_by=frozenset(), mixes=Mixes.BOTH, stream=StreamRule.BREAKS),
        replace(_OTHER, name="embedding", made_by=LOOKS_UP, channels=ChannelRule.EMBEDDING, stream=StreamRule.TABLE),
        replace(  # one with weights: PReLU
            _OTHER,
            name="activation",
            made_by=SLOPES,
            out_axis=1,
            channels=ChannelRule.ACTIVATION,
            moments=MomentRule.ELEMENTWISE,
        ),
        replace(_OTHER, name="parameter", stream=StreamRule.TABLE),  # used by the model's own code, not by a layer
        _OTHER,
    )
}
"""Every kind of layer by its name."""


def kind_named(name: str) -> Kind:
    """The row of a kind; ValueError where there is none."""
    try:
        return KINDS[name]
    except KeyError:
        raise ValueError(f"There is no kind of layer {name!r}: give it a row in netgraft.architecture.kinds.") from None


def normalising() -> Mapping[str, str]:
    """Operations that normalise with a weight, and the kind of norm that each makes."""
    return {op: kind.name for kind in KINDS.values() if kind.role is Role.NORM for op in kind.made_by}


def making(name: str) -> frozenset[str]:
    """The operations that make a layer of a kind."""
    return kind_named(name).made_by
