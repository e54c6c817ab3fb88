"""Index maps between channel axes: which source entry each target entry reads.

A map [n_t] -> [n_s] is stored as *runs*, consecutive ranges (start, count) in target order: 64 channels repeated in a
circle up to 96 are ((0, 64), (0, 32)). The start -1 means ``count`` entries without a source. Nothing here imports
torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Runs = tuple[tuple[int, int], ...]

NEW = -1
"""The source of a target entry that has none."""


def runs(entries: Iterable[int]) -> Runs:
    """The shortest runs that read these source entries in this order. Raises ValueError for an entry below -1."""
    found: list[tuple[int, int]] = []
    for entry in entries:
        start, count = found[-1] if found else (0, 0)
        if count and entry == (NEW if start == NEW else start + count):
            found[-1] = (start, count + 1)
        else:
            found.append((entry, 1))
    return check(tuple(found))


def indices(of: Runs) -> list[int]:
    """The source entry of every target entry; -1 where there is none."""
    return [entry for start, count in of for entry in ([NEW] * count if start == NEW else range(start, start + count))]


def check(of: Runs) -> Runs:
    """``of`` itself; raises ValueError if a run is empty or starts below -1."""
    for start, count in of:
        if start < NEW or count < 1:
            raise ValueError(f"({start}, {count}) is not a run of an index map: a start from -1 up, a count from 1 up")
    return of


def multiplicity(of: Runs, n_source: int) -> list[int]:
    """How often each of the ``n_source`` entries is read. Raises ValueError if the map reads beyond them."""
    counts = [0] * n_source
    for entry in indices(of):
        if entry >= n_source:
            raise ValueError(f"the map reads entry {entry} of {n_source}")
        if entry != NEW:
            counts[entry] += 1
    return counts


def identity(n: int) -> Runs:
    """Every entry reads itself."""
    return ((0, n),) if n else ()


def cyclic(n_source: int, n_target: int) -> Runs:
    """Target entry q reads q mod n_s: whole copies one after the other, then a part of one; or the first entries."""
    _positive(n_source, n_target)
    whole, rest = divmod(n_target, n_source)
    return ((0, n_source),) * whole + (((0, rest),) if rest else ())


def uniform(n_source: int, n_target: int) -> Runs:
    """Evenly spaced entries: every (n_s / n_t)-th where that is whole, else linspace(0, n_s - 1, n_t) rounded.

    Weight Selection (arXiv:2311.18823). For n_t > n_s every entry is read, neighbouring copies side by side.
    """
    _positive(n_source, n_target)
    if n_source % n_target == 0:
        return runs(range(0, n_source, n_source // n_target))
    return runs(round(q * (n_source - 1) / (n_target - 1)) for q in range(n_target))


def blocks(outer: Runs, n_inner: int, inner: Runs) -> Runs:
    """The map of an axis of blocks: block P reads block outer(P), and inside it entry r reads entry inner(r).

    ``n_inner`` is the length of a source block. Whole heads of 64: ``blocks(heads, 64, identity(64))``; positions
    behind a flattened channel: ``blocks(channels, H * W, identity(H * W))``; queries, keys and values of n rows each
    along one axis: ``blocks(identity(3), n, rows)``.
    """
    within = indices(inner)
    if max(within, default=NEW) >= n_inner:
        raise ValueError(f"the inner map reads entry {max(within)} of {n_inner}")
    return runs(
        NEW if NEW in (block, entry) else block * n_inner + entry for block in indices(outer) for entry in within
    )


def copies(of: Runs, n_source: int) -> Sequence[Sequence[int]]:
    """For each source entry the target entries that read it, in order. Raises ValueError as ``multiplicity``."""
    multiplicity(of, n_source)
    found: list[list[int]] = [[] for _ in range(n_source)]
    for position, entry in enumerate(indices(of)):
        if entry != NEW:
            found[entry].append(position)
    return found


def _positive(*lengths: int) -> None:
    if min(lengths) < 1:
        raise ValueError(f"lengths must be positive: {lengths}")
