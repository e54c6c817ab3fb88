"""Tables of what was run: Markdown for people, JSON for programs, a plot for both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transfer_quality import cells
from transfer_quality.statistics import (
    Estimate,
    Line,
    Row,
    by_seed,
    in_common,
    inits,
    latest,
    lines,
    pair_of,
    probe_ranking,
    refusals,
)

LEGEND = """Accuracies in percent, of each initialisation over the pairs it has (the same ones for all with --common).
The first error is over fine-tuning seeds, of these pairs; that in brackets is over pairs. Differences are paired by
target, draw, head and order of batches. Recovered: (accuracy - scratch) / (upper - scratch)."""


def write(cache: Path, out: Path | None, *, plot: bool, common: bool, **only: Sequence[str] | None) -> None:
    """Prints the tables; with ``out``, also writes report.md, report.json and, if asked for, report.png there.

    ``only`` are the domains, sources, targets and inits that are told; with ``common`` only pairs that all have.
    """
    everything = [row for row in cells.read(cache) if _wanted(row, only)]
    rows = latest(everything)
    if not rows:
        raise SystemExit(f"No such cell was run yet: {cache / cells.FILE}")
    settings = sorted({(row["domain"], row["samples"]) for row in rows})
    parts = {setting: [row for row in rows if (row["domain"], row["samples"]) == setting] for setting in settings}
    if common:
        parts = {setting: found for setting, part in parts.items() if (found := in_common(part))}
    text = "\n".join([*(section(*setting, part) for setting, part in parts.items()), refused(refusals(everything))])
    print(text)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text)
    (out / "report.json").write_text(json.dumps([summary(*s, part) for s, part in parts.items()], indent=1))
    if plot:
        draw(parts, out / "report.png")


def _wanted(row: Row, only: Mapping[str, Sequence[str] | None]) -> bool:
    for plural, allowed in only.items():
        value = row[plural.removesuffix("s")]
        if allowed is not None and value not in allowed and value != "-":
            return False
    return True


def section(domain: str, samples: int, rows: Sequence[Row]) -> str:
    """All initialisations, then every pair."""
    overall, within = probe_ranking(rows)
    return f"""## {domain}, {samples} images per class

{overview(lines(rows))}
{LEGEND}

Probe against final accuracy: Spearman {overall:.2f} over all initialisations and pairs, {within:.2f} within a target
on average.

{by_pair(rows)}"""


def overview(found: Sequence[Line]) -> str:
    """One line for each initialisation."""
    head = ["initialisation", "accuracy", "minus scratch", "pairs better", "recovered", "probe", "transfer s"]
    body = []
    for line in found:
        against = line.init != "scratch" and not math.isnan(line.difference.mean)
        body.append(
            [
                f"`{line.init}`",
                percent(line.accuracy),
                f"{percent(line.difference, sign=True)} ({number(line.over_pairs)})" if against else "",
                f"{line.better} of {line.pairs}" if against else "",
                f"{100 * line.recovered:.0f} %" if against and not math.isnan(line.recovered) else "",
                number(line.probe),
                f"{line.transfer_seconds:.1f}" if line.transfer_seconds else "",
            ]
        )
    return table(head, body)


def by_pair(rows: Sequence[Row]) -> str:
    """Accuracy of every initialisation on every pair; scratch and upper are repeated for each source."""
    names = inits(rows)
    pairs = sorted({pair_of(row)[1:] for row in rows if row["source"] != "-"}) or sorted(
        {pair_of(row)[1:] for row in rows}
    )
    found: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in rows:
        found.setdefault((row["source"], row["target"], row["init"]), []).append((row["seed"], row["accuracy"]))
    body = []
    for source, target in pairs:
        values = [found.get((source, target, init)) or found.get(("-", target, init)) or () for init in names]
        body.append([f"{source} → {target}", *(percent(by_seed(v)) if v else "" for v in values)])
    return table(["pair", *(f"`{name}`" for name in names)], body)


def refused(rows: Sequence[Row]) -> str:
    """What recipes did not take, and why."""
    if not rows:
        return ""
    listed = [f"- {row['domain']}, {row['source']} → {row['target']}, `{row['init']}`: "
              f"{row['refused'].splitlines()[0]}" for row in rows]  # fmt: skip
    return "\n".join(["## Refused", "", *listed, ""])


def summary(domain: str, samples: int, rows: Sequence[Row]) -> dict[str, Any]:
    """A section as JSON."""
    overall, within = probe_ranking(rows)
    return {
        "domain": domain,
        "samples": samples,
        "protocol": sorted({row["protocol"] for row in rows}),
        "probe_spearman": {"all": overall, "within_targets": within},
        "initialisations": [asdict(line) for line in lines(rows)],
        "cells": list(rows),
    }


def draw(parts: dict[tuple[str, int], Sequence[Row]], file: Path) -> None:
    """Bars of accuracy for each domain and count. Raises SystemExit without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("The plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(parts), figsize=(1 + 5 * len(parts), 5), squeeze=False, layout="constrained")
    for axis, ((domain, samples), rows) in zip(axes[0], parts.items(), strict=True):
        found = lines(rows)[::-1]
        means = [100 * line.accuracy.mean for line in found]
        errors = [0 if math.isnan(line.accuracy.error) else 100 * line.accuracy.error for line in found]
        axis.barh([line.init for line in found], means, xerr=errors, color="tab:blue")
        axis.set(title=f"{domain}, {samples} images per class", xlabel="accuracy in percent, fine-tuned")
    figure.savefig(file, dpi=120)


def percent(value: Estimate, *, sign: bool = False) -> str:
    """``47.3 ± 0.8``."""
    if math.isnan(value.mean):
        return ""
    text = f"{100 * value.mean:{'+' if sign else ''}.1f}"
    return text if math.isnan(value.error) else f"{text} ± {100 * value.error:.1f}"


def number(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned for reading as it is."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows = [head, rule, *body]
    cells_ = (
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in cells_) + "\n"
