"""How much each channel of a weight matters, for recipes that keep the most important ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor


def channel_norms(tensors: Mapping[str, Tensor]) -> Callable[[str, int], Sequence[float]]:
    """A function from (key, axis) to the squared norm of each slice of that tensor along that axis.

    Magnitude is the usual data-free measure of importance in pruning (Li et al., arXiv:1608.08710). Vectors (biases,
    norms and their statistics) count nothing: only the weights of kernels do.
    """

    def norms(key: str, axis: int) -> Sequence[float]:
        weight = tensors[key].detach().double()
        if weight.ndim < 2:
            return [0.0] * weight.shape[axis]
        dims = [dim for dim in range(weight.ndim) if dim != axis]
        found: list[float] = weight.square().sum(dims).tolist()
        return found

    return norms
