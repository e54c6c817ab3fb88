"""Progress on stderr, for people: on a terminal what is being done now, elsewhere a line from time to time.

With NETGRAFT_PROGRESS=off in the environment there is none where stderr is no terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0
"""Seconds between two lines where stderr is no terminal; what takes less than that is silent."""


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Gives a function to call with what is being done now."""
    if not sys.stderr.isatty():
        yield _Lines() if os.environ.get("NETGRAFT_PROGRESS") != "off" else lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text))


class _Lines:
    """Writes what is being done, with the seconds since the beginning, but not all of it."""

    def __init__(self) -> None:
        self.began = self.written = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self.written >= EVERY:
            print(f"[{now - self.began:.0f} s] {text}", file=sys.stderr, flush=True)
            self.written = now
