"""What a state_dict may have beside a network's tensors, or lack of them, and still be that network's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

_CARRY_NOTHING = (
    "total_ops",
    "total_params",
    "num_batches_tracked",
    "position_ids",
    "relative_position_index",
    "mask_token",
)
"""Last names of what no output depends on: thop's counts, batch counters, tables that code makes anew, and the token
that stands for hidden patches while a network is pretrained."""
_HEAD = 8  # tensors at most in what may be missing as a head


def dispensable(
    unexpected: Iterable[str], part: Mapping[str, Tensor], expected: Mapping[str, Tensor], copies: tuple[str, ...]
) -> bool:
    """Whether the network is whole without these keys of the part.

    They are copies of it, other things that the file nests there, numbers that carry nothing, a lone number beside the
    layers, or modules behind the last layer (a head that the architecture lacks).
    """
    own = {key.partition(".")[0] for key in expected}
    order = {key: index for index, key in enumerate(part)}
    last = max((order[key] for key in expected if key in order), default=-1)

    def left_out(key: str) -> bool:
        top, dot, _ = key.partition(".")
        if "/" in key or key.startswith(copies) or key.rpartition(".")[2] in _CARRY_NOTHING:
            return True
        return top not in own and order[key] > last if dot else part[key].numel() == 1

    return all(map(left_out, unexpected))


def head_of(missing: tuple[str, ...], expected: Mapping[str, Tensor]) -> str:
    """The prefix of the head if nothing else is missing: the last module, whole; else nothing."""
    keys = [key for key in expected if not key.endswith("num_batches_tracked")]
    if not missing or len(missing) > _HEAD or len(missing) * 2 > len(keys) or keys[-len(missing) :] != list(missing):
        return ""
    names = [key.split(".")[:-1] for key in missing]
    common = []
    for level in zip(*names, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    head = ".".join(common) + "." if common else ""
    return head if head and {key for key in keys if key.startswith(head)} == set(missing) else ""
