"""``--format junit``: one test case per architecture, for the many CI systems that read JUnit's XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

from netgraft.lock.inspection import Broken, Result
from netgraft.report.chains.changes import problems
from netgraft.report.chains.layers import headline
from netgraft.report.text import safe

NAME = "netgraft inspect-chains"


def report(results: Sequence[Result], lock: Path | None) -> Iterator[str]:  # noqa: ARG001
    """The XML document; without times, so that it is the same whenever it is written."""
    suite = ET.Element("testsuite", name=NAME, tests=str(len(results)))
    counts = {"failures": 0, "errors": 0, "skipped": 0}
    for result in results:
        case = ET.SubElement(suite, "testcase", classname=NAME, name=_text(result.model))
        if isinstance(result, Broken):
            counts["errors"] += 1
            _add(case, "error", str(result.error).splitlines(), type(result.error).__name__)
        elif lines := problems(result):
            counts["failures"] += 1
            _add(case, "failure", lines, "changed" if result.changes or result.missing else "too short")
        else:
            ET.SubElement(case, "system-out").text = _text(headline(result))
    suite.attrib |= {name: str(count) for name, count in counts.items()}
    suites = ET.Element("testsuites", suite.attrib)
    suites.append(suite)
    ET.indent(suites)
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield ET.tostring(suites).decode()  # ASCII, with numbers for other characters


def _add(case: ET.Element, tag: str, lines: Sequence[str], kind: str) -> None:
    text = [_text(line) for line in lines]
    ET.SubElement(case, tag, message=text[0] if text else "", type=kind).text = "\n".join(text)


def _text(text: str) -> str:
    """Without what XML has no way to write."""
    return re.sub("[^\\t\\n\\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", safe(text))
