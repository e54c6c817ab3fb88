"""The process's memory: what a step of training frees is kept for the next step."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let glibc give freed memory out again instead of handing it back to the system; whether it took the setting.

    Every step allocates the same activations. By default glibc maps large ones anew and unmaps them when freed, and the
    system zeroes the same pages in each step: a method that keeps graphs spends a tenth of its time so. The process
    holds its peak until it ends, as PyTorch's allocator does on a GPU. Nothing changes without glibc, and nothing where
    the environment has settings of the user's own.
    """
    chosen = any(name in os.environ for name in OWN) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)))
