"""The parity receipt, and the checks of ``verify``, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgraft.errors import CorruptFile
from netgraft.report.ledger import carried_lines
from netgraft.report.text import percent, safe, shape_text, some, table

if TYPE_CHECKING:
    from netgraft.evidence.checks import Check


def receipt_lines(provenance: Mapping[str, Any]) -> Iterator[str]:
    """The receipt of a written checkpoint; nothing for a file without one."""
    receipt = provenance.get("receipt")
    if receipt is None:
        return
    share = percent(receipt["derived"], receipt["parameters"])
    yield f"parity receipt: {share} of the target's {receipt['parameters']:,} parameters come from the source"
    if "skipped" in receipt:
        yield safe(f"  not measured: {receipt['skipped']}")
    else:
        yield safe(f"  {_output(receipt)}")
        yield f"  {_ratios(receipt)}"
    told = list(carried_lines(receipt))
    if not told and "carried" in receipt:
        told = [safe(f"what it carries was not measured: {receipt['carried']['skipped']}")]
    yield from (f"  {line}" for line in told)
    yield from (f"warning: {safe(warning)}" for warning in receipt["warnings"])


def recorded_receipt(provenance: Mapping[str, Any], file: Path) -> list[str]:
    """``receipt_lines`` of any file: CorruptFile if the receipt is not one that netgraft wrote."""
    try:
        return list(receipt_lines(provenance))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = f"{file}: {type(error).__name__}: {error}"
        raise CorruptFile("The receipt in the file's metadata is not one that netgraft wrote.", where=where) from error


def checks_lines(checks: Sequence[Check]) -> Iterator[str]:
    """One line for each check, and one for all of them."""
    words = {"passed": "ok", "failed": "FAILED", "skipped": "not checked"}
    yield from table(
        ("check", "result", ""),
        (
            (check.name, words[check.outcome], check.detail + (f": {some(check.tensors)}" if check.tensors else ""))
            for check in checks
        ),
    )
    yield ""
    counts = {outcome: sum(check.outcome == outcome for check in checks) for outcome in words}
    yield f"{counts['passed']} ok, {counts['failed']} failed, {counts['skipped']} not checked"


def checks_document(file: Path, checks: Sequence[Check]) -> dict[str, Any]:
    """The checks as JSON."""
    outcomes = [
        {"check": check.name, "outcome": check.outcome, "detail": check.detail, "tensors": list(check.tensors)}
        for check in checks
    ]
    return {"file": str(file), "passed": all(check.outcome != "failed" for check in checks), "checks": outcomes}


def _output(receipt: Mapping[str, Any]) -> str:
    output, exact = receipt["output"], receipt["exact"]
    if "error" not in output:
        return f"{output['compared']}: not compared: {output['skipped']}"
    error = f"{'below ' if output['below'] else ''}{output['error']:.2g}"
    inputs = " and ".join(shape_text(tuple(shape)) for shape in receipt["inputs"]["target"])
    claim = ", as exact as the recipe says" if exact["claimed"] and exact["holds"] else ""
    return f"{output['compared']}: relative error {error}, random inputs {inputs}, {receipt['precision']}{claim}"


def _ratios(receipt: Mapping[str, Any]) -> str:
    ratios = receipt["ratios"]
    if not ratios:
        return "activations: no pair of layers could be compared"
    spread = f"median {ratios['median']:.3g}, {ratios['min']:.3g} to {ratios['max']:.3g}"
    count = len(receipt["layers"])
    return f"activations: standard deviation target / source after {count} paired layer{'s'[: count != 1]}: {spread}"
