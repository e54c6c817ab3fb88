"""Freed memory that is kept: counted by the pages that the system has to hand out anew."""

import os
import platform
import subprocess
import sys

import pytest

BUSY = """
import resource, sys, torch
from netgraft.cli.memory import keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(3):  # blocks are aligned: the second may not fit where the first was
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(1 << 24)
print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 5 * (1 << 26) // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def faults(what: str, **environment: str) -> tuple[str, int]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", BUSY, what]
    done = subprocess.run(command, env=own | environment, capture_output=True, text=True, check=True)
    taken, count = done.stdout.split()
    return taken, int(count)


@on_glibc
def test_the_same_pages_are_used_again():
    taken, count = faults("keep")
    assert taken == "True"
    assert count < PAGES / 100


@on_glibc
@pytest.mark.parametrize(
    "own",
    [{"MALLOC_MMAP_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_settings_of_the_users_own_stay(own):
    taken, count = faults("keep", **own)
    assert taken == "False"
    assert count > PAGES / 2  # as it is without


def test_elsewhere_nothing_is_asked_for(monkeypatch):
    from netgraft.cli import memory

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda *_: pytest.fail("asked"))
    assert memory.keep_freed_memory() is False
