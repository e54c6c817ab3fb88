"""What each operation says about the axes of its operands and of its result.

A rule takes the operands' axes and answers with the result's. Operations that act on every channel alike pass axes on;
those that combine tensors position by position make axes equal; those that give positions a meaning fix them. An
operation without a rule fixes everything it reads, which is safe: what is fixed is never permuted, copied or dropped.

Operations that mix the channels of a run without weights of their own (a mean over channels, q k^T) allow permuting the
run, but copying its channels changes what they compute; they are noted in ``Call.mixed``.
"""

from __future__ import annotations

from netgraft.architecture.operations import (
    BROADCASTS,
    FILLS,
    GROUP_NORMS,
    KEEPS_CHANNELS,
    LAYER_NORMS,
    PLAIN_BATCH_NORMS,
    PRODUCTS,
    RESAMPLES,
    RESHAPES,
    RMS_NORMS,
    SOFTMAX,
    SUMS_UP,
)
from netgraft.channels.groups import arithmetic, reshaping
from netgraft.channels.groups.call import Axes, Call, NoRule, Rule, unknown


def result_of(call: Call) -> Axes:
    """The axes of the operation's result; its operands' axes are made equal or fixed on the way."""
    rule = RULES.get(call.node.facts.get("function", call.node.op))
    if rule is not None:
        try:
            axes = rule(call)
        except (IndexError, KeyError, TypeError, ValueError, NoRule):
            axes = None
        if axes is not None and [axis.size for axis in axes] == list(call.shape):
            return axes
    return unknown(call)


RULES: dict[str, Rule] = {
    **dict.fromkeys(BROADCASTS, arithmetic.broadcast),
    **dict.fromkeys(KEEPS_CHANNELS, arithmetic.same),
    **dict.fromkeys(RESAMPLES, arithmetic.spatial),
    **dict.fromkeys(FILLS, arithmetic.constant),
    **dict.fromkeys(("convolution", "conv1d", "conv2d", "conv3d"), arithmetic.convolution),
    **dict.fromkeys(RESHAPES, reshaping.reshape),
    **dict.fromkeys(("transpose", "t"), reshaping.transpose),
    **dict.fromkeys(SUMS_UP, arithmetic.reduction(1)),
    **dict.fromkeys(("linalg_vector_norm", "norm"), arithmetic.reduction(2)),
    **dict.fromkeys(PRODUCTS - {"einsum"}, arithmetic.matmul),
    **dict.fromkeys(SOFTMAX | {"_log_softmax", "log_softmax"}, arithmetic.softmax),
    **dict.fromkeys(LAYER_NORMS | RMS_NORMS, arithmetic.layer_norm),
    **dict.fromkeys(GROUP_NORMS, arithmetic.group_norm),
    **dict.fromkeys(PLAIN_BATCH_NORMS, arithmetic.batch_norm),
    **dict.fromkeys(("constant_pad_nd", "pad"), reshaping.pad),
    **dict.fromkeys(("cumsum", "flip", "sort", "argsort", "logcumsumexp", "cumprod"), reshaping.along(1)),
    "roll": reshaping.along(2),
    "permute": reshaping.permute,
    "expand": reshaping.expand,
    "repeat": reshaping.repeat,
    "repeat_interleave": reshaping.repeat_interleave,
    "cat": reshaping.concatenate,
    "stack": reshaping.stack,
    "slice": reshaping.slice_,
    "select": reshaping.select,
    "index": reshaping.index,
    "index_select": reshaping.index_select,
    "pixel_shuffle": reshaping.pixel_shuffle,
    "pixel_unshuffle": reshaping.pixel_unshuffle,
    "channel_shuffle": reshaping.channel_shuffle,
    "native_channel_shuffle": reshaping.channel_shuffle,
    "as_strided": reshaping.as_strided,
    "im2col": reshaping.im2col,
    "col2im": reshaping.col2im,
    "unfold": reshaping.unfold,
    "einsum": arithmetic.einsum,
    "scaled_dot_product_attention": arithmetic.attention,
}
