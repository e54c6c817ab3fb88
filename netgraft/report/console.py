"""The two streams and the exit code: stdout holds the report and nothing else, stderr what is said on the way."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import TextIO

from netgraft.errors import NetgraftError, OutputError
from netgraft.report.text import safe

_report: TextIO | None = None


class Terminated(KeyboardInterrupt):
    """SIGTERM, taken like Ctrl-C: files half written are removed on the way out."""


def run(work: Callable[[], None]) -> int:
    """Do the work and return the exit code: 0, 2 for an error (1 for a failed check), 130 if it was interrupted.

    Whatever is printed meanwhile, by a user's model file or a library, goes to stderr; ``write`` alone reaches stdout.
    """
    global _report
    _report = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            work()
        except NetgraftError as error:
            complain(error)
            return error.exit_code
        except KeyboardInterrupt as error:
            return interrupted(error)
        except BaseException as error:  # no sys.exit() of a user's model may pass for success or a failed check
            return crashed(error)
    return 0


def write(lines: Iterable[str]) -> None:
    """Lines of the report, from inside ``run`` to stdout. A reader that has seen enough (``| head``) is no error."""
    text = "".join(f"{line}\n" for line in lines)
    if _report is None:  # stdout is closed
        return
    try:
        _report.write(text)
        _report.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), _report.fileno())  # what is left in the buffer would fail again
        if not isinstance(error, BrokenPipeError):
            raise OutputError("The report could not be written to stdout.", where=str(error)) from error


def complain(error: NetgraftError) -> None:
    """What went wrong, where, and what to type next, on stderr."""
    for i, part in enumerate(filter(None, (error.what, error.where, error.hint))):
        for line in part.splitlines():
            _say(f"netgraft: {line}" if i == 0 else f"  {line}")


def interrupted(error: KeyboardInterrupt) -> int:
    """The exit code after Ctrl-C or SIGTERM, as a shell gives it."""
    terminated = isinstance(error, Terminated)
    _say("netgraft: terminated" if terminated else "netgraft: interrupted")
    return 143 if terminated else 130


def crashed(error: BaseException) -> int:
    """The exit code after an exception that nobody foresaw; it must not look like a failed check."""
    traceback.print_exception(error)
    _say(f"netgraft: internal error ({type(error).__name__}): this is a bug of netgraft, please report it.")
    return 2


def _say(line: str) -> None:
    print(safe(line), file=sys.stderr, flush=True)
