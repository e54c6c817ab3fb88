"""What ``inspect-chains`` shows of architectures, one format in one file: ``--format dot`` is ``dot.py``.

Each file has one function ``report(results, lock)``; ``lock`` is the file the results were compared with. On stdout
stands one document in that format and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from netgraft.lock.inspection import Result

SHOWS_CHANGES = frozenset({"table", "json", "github", "junit"})
"""The formats that have a place for what changed since the lock was written."""
SHOWS_TIES = frozenset({"table", "json"})
SHOWS_ERRORS = frozenset({"github", "junit"})
"""The formats that have a place for an architecture that could not be inspected."""


def render(format: str, results: Sequence[Result], lock: Path | None) -> Iterator[str]:
    """The lines of the document."""
    yield from importlib.import_module(f"netgraft.report.chains.{format}").report(results, lock)
