"""Ctrl-C and SIGTERM as a wish that is granted after the batch."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Signals:
    """While it is entered, a first signal is noted and a second one ends the work at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether somebody wants the work to end."""
        return self.number is not None

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[int(number)] = signal.signal(number, self._note)
        except ValueError:  # not in the main thread, where no signal arrives
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on(self) -> None:
        """Do what the signal would have done without this; raises KeyboardInterrupt if that is nothing."""
        number = self.number if self.number is not None else int(signal.SIGINT)
        handler = self._before.get(number)
        if callable(handler):
            handler(number, None)
        raise KeyboardInterrupt

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.number = number
