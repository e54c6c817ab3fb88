"""Draws accuracy against all that was paid for it, the transfer included, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from cells import ROWS, SCRATCH, Cell
from results import Results


def draw_curves(folder: Path, cells: Mapping[str, Cell], out: Path) -> list[Path]:
    """One picture, SVG, for each data set and number of pictures; the files. None without matplotlib."""
    results = Results.of(folder)
    if importlib.util.find_spec("matplotlib") is None:
        return []
    written = []
    for data in results.values("data"):
        for samples in results.values("samples"):
            names = [name for name in cells if results.tuned(data, name, SCRATCH, samples)]
            if names:
                written.append(_draw(results, data, samples, names, out / f"curves-{data}-{samples}.svg"))
    return written


def points(results: Results, data: str, cell: str, row: str, samples: int) -> list[tuple[float, float]]:
    """GFLOPs paid, the transfer included, and the mean accuracy then; empty where a row has not been run."""
    tuned = results.tuned(data, cell, row, samples)
    if tuned is None:
        return []
    price = results.price(cell, row)
    return [(price + steps * tuned.gflops_of_step, accuracy) for steps, accuracy in tuned.curve]


def _draw(results: Results, data: str, samples: int, names: list[str], file: Path) -> Path:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "netgraft", "svg.fonttype": "none"}):  # the same bytes each time
        figure = Figure(figsize=(4 * len(names), 3.5), layout="constrained")
        for place, name in enumerate(names, 1):
            axes = figure.add_subplot(1, len(names), place, title=name, xlabel="GFLOPs", xscale="log")
            for row in ROWS:
                if found := points(results, data, name, row, samples):
                    axes.plot(*zip(*found, strict=True), label=row, marker=".")
            if place == 1:
                axes.set_ylabel(f"accuracy in percent, {samples} pictures of each kind")
            axes.legend(fontsize="x-small")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file
