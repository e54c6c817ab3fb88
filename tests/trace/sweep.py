"""Traces every architecture of timm and torchvision in one process: ``python tests/trace/sweep.py --out sweep.json``.

The file is written as it goes, and a run that was stopped goes on where it stopped. The exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

WRITE_EVERY = 5.0  # seconds


def sweep(names: list[str], out: Path, limit: float, check: bool) -> dict[str, Any]:
    """Trace ``names`` and return what ``out`` then holds; models that ``out`` has already are left alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"models": {}}
    written = time.monotonic()
    columns = (TextColumn("{task.description:50}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name, advance=1)
            if name in found["models"]:
                continue
            row = found["models"][name] = trace_one(name, limit, check)
            gc.collect()
            row["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # the most so far
            found["rss_mb"] = max(found.get("rss_mb", 0), row["rss_mb"])
            if time.monotonic() - written > WRITE_EVERY:
                write(found, out)
                written = time.monotonic()
    write(found, out)
    return found


def trace_one(name: str, limit: float, check: bool = False) -> dict[str, Any]:
    """What tracing one model costs and gives; with "error" if it fails."""
    from support.cross_check import cross_check

    from netgraft.architecture.chain import longest_chain
    from netgraft.errors import NetgraftError
    from netgraft.models.model import load_model
    from netgraft.trace import trace

    start = time.process_time()
    try:
        model = load_model(name, role="target")
        graph = trace(model, seconds=limit)
        chain = longest_chain(graph)
        cpu = time.process_time() - start
        doubts = cross_check(model, graph) if check else []
    except NetgraftError as error:
        return {"cpu": round(time.process_time() - start, 3), "error": f"{type(error).__name__}: {error}"}
    return {
        "cpu": round(cpu, 3),
        "rung": graph.rung,
        "nodes": len(graph.nodes),
        "layers": len(graph.layers),
        "kernels": len(graph.kernels()),
        "chain": len(chain),
        "ties": chain.ties,
        "warnings": [*graph.warnings, *doubts],
    }


def all_names(patterns: list[str]) -> list[str]:
    """Every model reference of the installed timm and torchvision that fits one of ``patterns``."""
    import timm
    from torchvision.models import list_models

    names = [*timm.list_models(), *(f"torchvision:{name}" for name in list_models())]
    return [name for name in names if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]


def write(found: dict[str, Any], out: Path) -> None:
    """Replace ``out`` in one step."""
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, out)


def main() -> int:
    """Parse the options, sweep, and print the totals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("sweep.json"))
    parser.add_argument("--seconds", type=float, default=120, help="limit of a forward pass on real values")
    parser.add_argument("--cross-check", action="store_true", help="compare with symbolic tracing (time not counted)")
    parser.add_argument("patterns", nargs="*", help="only models whose reference fits, e.g. 'resnet*'")
    options = parser.parse_args()
    found = sweep(all_names(options.patterns), options.out, options.seconds, options.cross_check)
    rows = found["models"]
    failed = [name for name, row in rows.items() if "error" in row]
    cpu = sum(row["cpu"] for row in rows.values())
    print(f"{len(rows)} models, {len(failed)} failed, {cpu:.0f} s CPU, {found.get('rss_mb', 0)} MB at most")
    for name in failed:
        print(f"{name}: {rows[name]['error'].splitlines()[0]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
