"""``python -m netgraft`` and the ``netgraft`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; an interrupt anywhere, even while modules are still being imported, exits with 130."""
    try:
        from netgraft.cli import app

        app(prog_name="netgraft")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
