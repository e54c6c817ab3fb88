"""``python -m netgraft`` and the ``netgraft`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; an interrupt anywhere, even while modules are still being imported, exits with 130."""
    try:
        import contextlib
        import io
        import signal

        from netgraft.report import console as streams

        def terminate(*_: object) -> None:
            raise streams.Terminated

        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, terminate)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        from netgraft.cli import app

        app(prog_name="netgraft")
    except KeyboardInterrupt as error:
        sys.exit(streams.interrupted(error))
    except Exception as error:
        sys.exit(streams.crashed(error))


if __name__ == "__main__":
    main()
