"""Ctrl-C that asks for what is there, instead of ending everything."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import FrameType


class OnInterrupt(StrEnum):
    STOP = "stop"
    WRITE = "write"


@contextmanager
def asked_to_end(on_interrupt: OnInterrupt) -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C was pressed, once; the second time it interrupts as ever.

    With STOP the first one does so.
    """
    if on_interrupt is OnInterrupt.STOP:
        yield lambda: False
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
