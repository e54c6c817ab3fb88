"""Which of a file's tensors are the architecture's state_dict: what stands before their keys, what lies beside them.

A file's keys are written as it nests them, ``state_dict/encoder_q.conv1.weight``: a slash behind every mapping, then
the tensor's own key. A *prefix* ends in a slash or a dot. What is found is said in remarks; where two parts of a file
would do and their numbers differ, nothing is guessed: the error says what to type (``FILE::PREFIX``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from netgraft.errors import CorruptFile, WeightsMismatch
from netgraft.models.differences import Differences, compare
from netgraft.models.left_out import dispensable, head_of

_WRAPPER = re.compile(r"(?:^|(?<=[./]))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)[./]")
"""DistributedDataParallel and AveragedModel, torch.compile, FSDP, and PyTorch's activation checkpoints."""
_AVERAGE = re.compile(r"(?:^|[._/])(?:ema|swa|avg|averaged?|shadow)(?=[._/]|$)")
_CONTAINERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")  # in order of preference
_LISTED = 5


@dataclass(frozen=True)
class FilePart:
    """The tensors under one prefix, by the architecture's keys."""

    prefix: str
    tensors: Mapping[str, Tensor]
    rest: str | None = None  # a second prefix, which the others stand behind
    missing: tuple[str, ...] = ()  # the head's keys, where only the head is missing
    inside: str = ""  # what the architecture has before its keys, and the file has not
    averages: tuple[str, ...] = ()  # other parts that fit, averages of this one (EMA)

    @property
    def name(self) -> str:
        return self.prefix.rstrip("./")

    @property
    def averaged(self) -> bool:
        return bool(_AVERAGE.search(self.name))


def take_off_wrappers(tensors: Mapping[str, Tensor], expected: Iterable[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without the names that wrappers put into keys, and those names.

    As they are where the architecture has such a name itself, or two keys would become one.
    """
    found = dict.fromkeys(name for key in tensors for name in _WRAPPER.findall(key))
    stripped = {_WRAPPER.sub("", key): tensor for key, tensor in tensors.items()}
    if len(stripped) < len(tensors) or any(_WRAPPER.search(key) for key in expected):
        return dict(tensors), []
    return stripped, list(found)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose keys begin with ``prefix`` (with or without its last dot or slash), under what follows it.

    A dot may be typed for a slash, and a wrapper's name (``module.``) be left out.
    """
    wanted = prefix.rstrip("./").replace("/", ".") + "."
    for bare in (lambda key: key, lambda key: _WRAPPER.sub("", key)):
        plain = bare(wanted)
        if found := {
            bare(key)[len(plain) :]: tensor
            for key, tensor in tensors.items()
            if bare(key).replace("/", ".").startswith(plain)
        }:
            return found
    return {}


def find_part(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, place: str, label: str
) -> FilePart | None:
    """The one part that has every tensor of the architecture, None if there is none.

    ``place`` is what stands before ``::`` when the user types a part. Raises WeightsMismatch (two parts fit, and their
    numbers differ), CorruptFile (a sparse tensor).
    """
    counts = _prefixes(tensors, expected)
    gaps = _gaps(tensors, counts, expected)
    fitting = [prefix for prefix, gap in gaps.items() if not gap.missing and not gap.reshaped]
    whole = [
        FilePart(prefix, part)
        for prefix in fitting
        if dispensable(gaps[prefix].unexpected, part := _part(tensors, prefix), expected, _inside(prefix, fitting))
    ]
    if not whole:
        whole = [two for prefix in gaps if (two := _in_two(tensors, prefix, gaps[prefix], counts, expected))]
    return _the_one(whole, place=place, label=label)


def find_without_head(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, place: str, label: str
) -> FilePart | None:
    """The one part that has every tensor but the head's, None if there is none. Raises as ``find_part``."""
    gaps = _gaps(tensors, _prefixes(tensors, expected), expected)
    heads = {
        prefix: head for prefix, gap in gaps.items() if not gap.reshaped and (head := head_of(gap.missing, expected))
    }
    found = []
    for prefix, head in heads.items():
        part = _part(tensors, prefix)
        left = [key for key in gaps[prefix].unexpected if not key.startswith(head)]  # a head of another kind
        if dispensable(left, part, expected, _inside(prefix, heads)):
            found.append(FilePart(prefix, part, missing=gaps[prefix].missing))
    return _the_one(found, place=place, label=label)


def find_inner(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, place: str, label: str
) -> FilePart | None:
    """The one part that has a network which the architecture wraps: all of it, or all but its head.

    None if there is none. Raises as ``find_part``.
    """
    top, dot, _ = next(iter(expected), "").partition(".")
    inside = top + dot
    inner = {key[len(inside) :]: slot for key, slot in expected.items() if key.startswith(inside)}
    outer = tuple(key for key in expected if not key.startswith(inside) and not key.endswith("num_batches_tracked"))
    if not dot or (outer and not head_of(outer, expected)):
        return None
    part = find_part(tensors, inner, place=place, label=label)
    if part is None and not outer:
        part = find_without_head(tensors, inner, place=place, label=label)
    if part is None:
        part = find_inner(tensors, inner, place=place, label=label)
    if part is None or (outer and part.missing):
        return None
    missing = (*(f"{inside}{key}" for key in part.missing), *outer)
    named = {f"{inside}{key}": tensor for key, tensor in part.tensors.items()}
    return replace(part, tensors=named, missing=missing, inside=inside + part.inside)


def nearest(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> FilePart:
    """The part with the most keys of the architecture, for messages and conversions; the top if there is none."""
    counts = _prefixes(tensors, expected)
    best = max(counts, key=lambda prefix: counts[prefix], default="")
    if counts[best] * 2 < len(expected):
        best = _container(tensors)
    return FilePart(best, _part(tensors, best))


def remarks(
    part: FilePart, tensors: Mapping[str, Tensor], expected: Iterable[str], *, place: str, origin: str
) -> list[str]:
    """What was taken and what was left, for the user. ``tensors`` are all of the file's."""
    said = []
    if part.averages:
        other = part.averages[0]
        taken = f"{part.name or 'the top'} is taken, not the average in {', '.join(part.averages)}"
        said.append(f"{origin}: {taken} ({_typed(place, other)} takes it).")
    elif part.name:
        what = f"{origin}: the tensors under {part.name} are taken"
        said.append(f"{what}, an average of the weights (EMA)." if part.averaged else f"{what}.")
    if part.inside:
        said.append(f"{origin}: they go to {part.inside.rstrip('.')} of the architecture.")
    if part.missing:
        said.append(
            f"{origin} has no {', '.join(part.missing)}: this head is drawn at random. To go without, name the "
            "architecture without its head (timm: num_classes=0)."
        )
    if part.rest is not None:
        where = f"under {part.rest.rstrip('./')}" if part.rest else "at the top"
        said.append(f"{origin}: what is missing there is taken from {where}.")
    own = [key.removeprefix(part.inside) for key in expected if key in part.tensors]
    used = {f"{prefix}{key}" for key in own for prefix in (part.prefix, part.rest) if prefix is not None}
    if names := [*dict.fromkeys(_shown(key, part.prefix) for key in tensors if key not in used)]:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        said.append(f"{origin}: ignored: {', '.join(names[:_LISTED])}{more}.")
    return said


# --------------------------------------------------------------------------------------------------------------- parts


def _prefixes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Counter[str]:
    """How many keys of the architecture stand behind each prefix."""
    return Counter(key[:cut] for key in tensors for cut in _cuts(key) if key[cut:] in expected)


def _cuts(key: str) -> Iterator[int]:
    yield 0
    yield from (match.end() for match in re.finditer("[./]", key))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _gaps(
    tensors: Mapping[str, Tensor], counts: Counter[str], expected: Mapping[str, Tensor]
) -> dict[str, Differences]:
    """How what stands behind a prefix differs from the architecture, where it is a third of it at least."""
    return {
        prefix: compare(_part(tensors, prefix), expected)
        for prefix, count in counts.items()
        if count * 3 >= len(expected)
    }


def _inside(prefix: str, others: Iterable[str]) -> tuple[str, ...]:
    """What follows ``prefix`` in the longer ones among the others."""
    return tuple(other[len(prefix) :] for other in others if other != prefix and other.startswith(prefix))


def _in_two(
    tensors: Mapping[str, Tensor],
    prefix: str,
    gap: Differences,
    prefixes: Iterable[str],
    expected: Mapping[str, Tensor],
) -> FilePart | None:
    """Most tensors under ``prefix``, all others under one other: OpenMMLab's backbone and head."""
    missing = gap.missing
    if not missing or len(missing) * 2 > len(expected) or gap.reshaped:
        return None
    rests = [rest for rest in prefixes if all(f"{rest}{key}" in tensors for key in missing)]
    part = _part(tensors, prefix)
    if len(rests) != 1 or not dispensable(gap.unexpected, part, expected, _inside(prefix, rests)):
        return None
    part |= {key: tensors[f"{rests[0]}{key}"] for key in missing}
    left = compare(part, expected)
    return None if left.missing or left.reshaped else FilePart(prefix, part, rests[0])


def _the_one(parts: list[FilePart], *, place: str, label: str) -> FilePart | None:
    """The only part, or the plain one beside its averages, or the outer one, or the first of equal ones."""
    inner = {p.prefix for p in parts for outer in parts if p is not outer and p.prefix.startswith(outer.prefix)}
    averages = tuple(part.name for part in parts if part.averaged)
    plain = [part for part in parts if not part.averaged]
    if plain:
        parts = [replace(part, averages=averages) for part in plain]
    parts = [part for part in parts if part.prefix not in inner]
    for part in parts:
        for key, tensor in part.tensors.items():
            if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
                where = f"{place}: {part.prefix}{key} is {tensor.layout}"
                raise CorruptFile("Only plain dense tensors can be transferred.", where=where)
    if len(parts) > 1 and not all(_equal(parts[0].tensors, other.tensors) for other in parts[1:]):
        names = [part.name for part in parts]
        raise WeightsMismatch(
            f"{len(parts)} parts of the file fit {label}, and their numbers differ.",
            where=", ".join(names),
            hint=f"Type {' or '.join(_typed(place, name) for name in names[:4])}",
        )
    return parts[0] if parts else None


def _typed(place: str, name: str) -> str:
    """What the user types for a part of a file, or of the part that is typed already."""
    return f"{place}{'/' if '::' in place else '::'}{name}"


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _container(tensors: Mapping[str, Tensor]) -> str:
    """The mapping that training scripts nest a state_dict in, where the file's top is nothing but mappings."""
    prefix = ""
    while True:
        level = [key[len(prefix) :] for key in tensors if key.startswith(prefix)]
        names = {key.partition("/")[0] for key in level if "/" in key}
        usual = [name for name in _CONTAINERS if name in names]
        if not usual:
            return prefix
        prefix += f"{usual[0]}/"


def _shown(key: str, prefix: str) -> str:
    """What is ignored, in short: the key itself within the part, and else the first thing that is not around it."""
    if key.startswith(prefix):
        rest = key[len(prefix) :]
        return rest.partition("/")[0]
    shared = 0
    for cut in _cuts(key):
        if prefix.startswith(key[:cut]):
            shared = cut
    return key[:shared] + re.split("[./]", key[shared:])[0]
