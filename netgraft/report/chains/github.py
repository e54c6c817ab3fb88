"""``--format github``: annotations of a GitHub workflow, an error for each architecture that does not pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from netgraft.lock.inspection import Broken, Result
from netgraft.report.chains.changes import problems
from netgraft.report.chains.layers import headline
from netgraft.report.text import safe


def report(results: Sequence[Result], lock: Path | None) -> Iterator[str]:
    """Workflow commands only, one a line, at the user's file or else at the lock."""
    for result in results:
        file = result.file or (lock.as_posix() if lock else None)
        if isinstance(result, Broken):
            yield annotation("error", file, f"{result.model} could not be inspected", str(result.error).splitlines())
        elif lines := problems(result):
            yield annotation("error", file, f"{result.model} changed" if result.changes else result.model, lines)
        else:
            unchanged = "unchanged, " if result.changes is not None else ""
            yield annotation("notice", file, result.model, [unchanged + headline(result)])
        if not isinstance(result, Broken):
            for warning in result.graph.warnings:
                yield annotation("warning", file, result.model, [warning])


def annotation(level: str, file: str | None, title: str, lines: Sequence[str]) -> str:
    """A workflow command, escaped as GitHub reads it (actions/toolkit, packages/core/src/command.ts)."""
    properties = ({"file": file} if file else {}) | {"title": title}
    written = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{level} {written}::{_data(lines)}"


def _data(lines: Sequence[str]) -> str:
    return "%0A".join(safe(line).replace("%", "%25") for line in lines)


def _property(text: str) -> str:
    return safe(text).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
