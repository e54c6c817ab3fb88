"""What each operation says about the axes of its operands and of its result.

A rule takes the operands' axes and answers with the result's. Operations that act on every channel alike pass axes on;
those that combine tensors position by position make axes equal; those that give positions a meaning fix them. An
operation without a rule fixes everything it reads, which is safe: what is fixed is never permuted, copied or dropped.

Operations that mix the channels of a run without weights of their own (a mean over channels, q k^T) allow permuting the
run, but copying its channels changes what they compute; they are noted in ``Call.mixed``.
"""

from __future__ import annotations

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


_BROADCAST = """add sub mul div rsub maximum minimum where addcmul addcdiv lerp pow remainder fmod atan2 eq
    ne lt gt le ge logical_and logical_or logical_not masked_fill copy bitwise_and bitwise_or xlogy
    floor_divide true_divide"""
_SAME = """relu relu6 gelu silu sigmoid hardswish hardsigmoid tanh exp sqrt rsqrt neg abs clamp clamp_min clamp_max
    clone contiguous _to_copy detach alias dropout native_dropout hardtanh leaky_relu elu celu selu softplus
    mish erf log log1p reciprocal round floor ceil bernoulli lift_fresh to square sin cos softsign threshold
    nan_to_num sign isnan expm1 feature_dropout alpha_dropout fill zero logit conj _conj angle hardshrink
    softshrink"""
_SPATIAL = """max_pool2d_with_indices max_pool2d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
    interpolate avg_pool1d avg_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d
    max_pool1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa reflection_pad2d replication_pad2d reflection_pad1d upsample_nearest1d
    upsample_linear1d grid_sampler_2d"""
_RESHAPES = "view _unsafe_view reshape squeeze unsqueeze flatten _reshape_alias view_as _reshape_copy"
_REDUCTIONS = "mean sum amax amin var std var_mean prod logsumexp any all max min"
_NORMS = "native_batch_norm _native_batch_norm_legit_no_training batch_norm cudnn_batch_norm"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_BROADCAST.split(), arithmetic.broadcast),
    **dict.fromkeys(_SAME.split(), arithmetic.same),
    **dict.fromkeys(_SPATIAL.split(), arithmetic.spatial),
    **dict.fromkeys(["zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"], arithmetic.constant),
    **dict.fromkeys(("convolution", "conv1d", "conv2d", "conv3d"), arithmetic.convolution),
    **dict.fromkeys(_RESHAPES.split(), reshaping.reshape),
    **dict.fromkeys(("transpose", "t"), reshaping.transpose),
    **dict.fromkeys(_REDUCTIONS.split(), arithmetic.reduction(1)),
    **dict.fromkeys(("linalg_vector_norm", "norm"), arithmetic.reduction(2)),
    **dict.fromkeys(("mm", "bmm", "matmul", "baddbmm"), arithmetic.matmul),
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax", "_log_softmax", "log_softmax"), arithmetic.softmax),
    **dict.fromkeys(("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm"), arithmetic.layer_norm),
    **dict.fromkeys(("native_group_norm", "group_norm"), arithmetic.group_norm),
    **dict.fromkeys(_NORMS.split(), arithmetic.batch_norm),
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
SPLITS = frozenset({"split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "unbind"})
"""Operations with several results that together are the operand."""
TWINS = frozenset({"var_mean"})
"""Operations with several results of one structure."""
