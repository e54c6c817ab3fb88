"""The operations of a forward pass by name, and what is true of each: one vocabulary for the whole package.

A name is what ``Node.op`` holds: PyTorch's name of the operation without its namespace and the underscore of the
version in place ("add", "view", "_softmax"), or that of a function recorded as a whole ("interpolate"). A set is named
after what holds for all operations in it: ``node.op in MOVES`` reads as "the node's operation moves numbers".

Several sets nearly agree, because each reader lists what it has met. Where nothing but that is behind a difference, the
comment says "by accident". Such a difference is kept all the same: it decides what a reader does. Nothing here imports
torch.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# ------------------------------------------------------------------------------------- the same numbers, put elsewhere

VIEWS = _names("view _unsafe_view reshape _reshape_copy flatten squeeze")
RESHAPES = VIEWS | _names("unsqueeze _reshape_alias view_as")
"""Another shape for the same numbers in the same row-major order."""
PLAIN_RESHAPES = VIEWS | {"alias"}
"""Those looked through between a functional layer and its bias. Fewer than RESHAPES by accident."""
COPIES = _names("clone contiguous alias detach _to_copy")
"""The same tensor once more, perhaps of another type, or in another order in memory."""
KEEPS_ORDER = COPIES | _names("view _unsafe_view reshape flatten squeeze unsqueeze expand lift_fresh")
"""Every number stays where it is in row-major order, or is repeated."""
PERMUTES = _names("t transpose permute")
"""Axes change places."""
PLAIN_SPLITS = _names("split split_with_sizes chunk unbind")
SPLITS = PLAIN_SPLITS | _names("unsafe_split unsafe_chunk tensor_split")
"""Several results that together are the operand."""
SELECTS = PLAIN_SPLITS | _names("slice select narrow getitem")
"""Passes on a part of a tensor: what is multiplied with it is not the map that the part was taken from."""
DROPS_OUT = _names("dropout native_dropout feature_dropout")
"""Does nothing in eval mode."""

PASSES = _names(
    """dropout native_dropout clone contiguous alias view _unsafe_view reshape squeeze unsqueeze permute transpose
    expand slice roll constant_pad_nd"""
)
"""What may stand at the end of a residual branch: what is zero before is zero after."""
MOVES = PASSES | _names("detach _to_copy getitem flatten unflatten")
"""Moves numbers, and may pad with zeros or leave some out. That PASSES lacks five of them is by accident."""
SCALES = MOVES | _names("mean select unbind")
"""c times as much comes out where c times as much goes in. "mean" is meant over positions, not over channels."""
PICKS = (
    VIEWS
    | PERMUTES
    | PLAIN_SPLITS
    | (COPIES - {"_to_copy"})
    | _names("unsqueeze expand slice select roll flip upsample_nearest2d narrow movedim")
)
"""Every number of the result is one of the operand's: it may be run on the operand's indices to see which.

"_to_copy" is none, for it may turn indices into numbers of another type. Padding is none, for it makes new numbers.
"""
REARRANGES = (
    PLAIN_RESHAPES
    | PERMUTES
    | _names(
        """expand slice select index gather constant_pad_nd pad clone unsqueeze as_strided contiguous split
    split_with_sizes unbind getitem unfold stack cat copy"""
    )
)
"""Puts numbers elsewhere, perhaps beside those of other tensors."""


# ------------------------------------------------------------------------------------------------ number by number

ACTIVATES = _names(
    """relu relu6 hardtanh leaky_relu prelu elu celu selu gelu silu mish hardswish sigmoid hardsigmoid tanh softplus"""
)
"""The nonlinear functions that networks put between layers."""
ELEMENTWISE = (ACTIVATES - {"prelu"}) | _names(
    """dropout native_dropout exp log neg abs sqrt rsqrt square reciprocal pow clamp clamp_min clamp_max softsign erf"""
)
"""A function of one number, applied to all of them; it has no weights."""
KEEPS_CHANNELS = (
    (ELEMENTWISE - {"pow"})
    | COPIES
    | DROPS_OUT
    | _names(
        """log1p round floor ceil bernoulli lift_fresh to sin cos threshold nan_to_num sign isnan expm1 alpha_dropout
    fill zero logit conj _conj angle hardshrink softshrink"""
    )
)
"""The result has the operand's shape, and each of its numbers follows from that in the same place."""
BOUNDS = _names("sigmoid hardsigmoid hardtanh clamp tanh softmax _softmax _safe_softmax")
"""The result lies between fixed bounds."""
KEEPS_SIGN = _names("max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d getitem mean flatten")
"""What is not negative stays so. More than those in PASSES; not all there are, by accident."""

# ------------------------------------------------------------------------------------------- of several tensors, one

ARITHMETIC = _names("add sub mul div maximum minimum lerp")
COMBINES = ARITHMETIC | _names("rsub addcmul")
"""Combines tensors position by position, in the code of a single layer."""
JOINS_CHANNELS = ARITHMETIC | {"where"}
"""Combines tensors position by position: its operands have the same channels, channel by channel."""
BROADCASTS = ARITHMETIC | _names(
    """where rsub addcmul addcdiv pow remainder fmod atan2 eq ne lt gt le ge logical_and logical_or logical_not
    masked_fill copy bitwise_and bitwise_or xlogy floor_divide true_divide"""
)
"""Position by position, with NumPy's broadcasting."""
CONCATENATES = _names("cat stack")
"""Puts tensors side by side."""
ADDS = _names("add sub") | CONCATENATES
"""Adds up or puts side by side: where all operands are c times as large, so is the result."""

# -------------------------------------------------------------------------------------------- products and attention

SOFTMAX = _names("softmax _softmax _safe_softmax")
ATTENDS = SOFTMAX | {"scaled_dot_product_attention"}
"""What no attention does without."""
PRODUCTS = _names("bmm matmul baddbmm mm einsum")
"""Products of tensors that are summed over an axis."""
BATCHED_PRODUCTS = PRODUCTS - {"mm"}
"""Products of two activations as attention computes them: with a batch of images there is none of two matrices."""
WEIGHT_PRODUCTS = PRODUCTS - {"baddbmm"}
"""Products with a weight that the model's own code writes down, and adds nothing to."""
MATRIX_PRODUCTS = _names("linear addmm mm bmm baddbmm _addmm_activation addmv mv")
"""Products of matrices: the last two tensors are multiplied, of "linear" the first two."""
BILINEAR = _names("_trilinear bilinear")
LOOKS_UP = _names("embedding embedding_bag _embedding_bag _embedding_bag_forward_only")
"""Takes rows of a table by their number."""
SLOPES = _names("prelu _prelu_kernel")
CONVOLVES = _names("convolution")
KERNEL_CALLS = CONVOLVES | MATRIX_PRODUCTS | LOOKS_UP | SLOPES
"""What applies the main weight of a layer to data."""

# ------------------------------------------------------------------------------------------------ over many numbers

BATCH_NORMS = _names(
    """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update
    batch_norm cudnn_batch_norm miopen_batch_norm"""
)
PLAIN_BATCH_NORMS = _names("native_batch_norm _native_batch_norm_legit_no_training batch_norm cudnn_batch_norm")
"""Those met without weights of a layer. Fewer by accident."""
LAYER_NORMS = _names("native_layer_norm layer_norm")
GROUP_NORMS = _names("native_group_norm group_norm")
RMS_NORMS = _names("rms_norm _fused_rms_norm")
REDUCES = _names("mean var std var_mean linalg_vector_norm norm amax")
"""What a norm that is written by hand takes of its input."""
SUMS_UP = _names("mean sum amax amin var std var_mean prod logsumexp any all max min")
"""One number of many, whatever their order; along the axes of the first argument behind the tensor."""
MAKES_TWO = _names("var_mean")
"""Two results of one structure."""
POOLS = _names("max_pool2d_with_indices max_pool2d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d")
"""One number of a window of each feature map: its mean, or its maximum."""
RESAMPLES = POOLS | _names(
    """adaptive_max_pool2d interpolate avg_pool1d avg_pool3d max_pool3d_with_indices adaptive_avg_pool3d
    _adaptive_avg_pool3d max_pool1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa reflection_pad2d replication_pad2d reflection_pad1d upsample_nearest1d upsample_linear1d
    grid_sampler_2d"""
)
"""Every channel for itself; positions in space are mixed."""

# ------------------------------------------------------------------------------------------------------ on weights

REDUCES_WEIGHT = _names(
    """native_batch_norm batch_norm _native_batch_norm_legit_no_training mean std var var_mean sum norm _weight_norm
    _weight_norm_interface linalg_vector_norm"""
)
"""Takes a mean, a variance or a norm over a weight's channels, so that equal copies of them change what it gives."""
IGNORES_ORDER = REDUCES_WEIGHT | _names(
    """clamp_min clamp sub mul div add rsqrt sqrt pow exp abs maximum reciprocal expm1 tanh sigmoid softplus neg
    square"""
)
"""Arithmetic on a weight that does the same whatever the order of its rows and columns."""

# -------------------------------------------------------------------------------------------------------- no data

FILLS = _names("zeros_like ones_like full_like new_zeros new_ones new_full")
"""The same number everywhere."""
SHAPE_ONLY = FILLS | _names("empty_like rand_like randn_like randint_like new_empty new_empty_strided")
"""The result does not depend on the values of the argument."""
