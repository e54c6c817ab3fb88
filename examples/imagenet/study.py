"""Real weights of ImageNet, networks of real size, a few photographs: does a transfer help, and is it worth its price?

    python examples/imagenet/data.py photographs STAMPS pictures       # data.py says where these come from
    python examples/imagenet/study.py --pictures pictures --folder runs
    python examples/imagenet/study.py --pictures pictures --folder runs --cells lite0-resnet10t --samples 5 --seeds 2
    python examples/imagenet/study.py --folder runs --report           # only the tables, from what is there

``cells.py`` has the pairs of source and target, the initialisations (rows) and the training. For each row, number of
pictures and optimiser the learning rate is chosen by the same rule: of the same rates the one that is best on
validation pictures, over the same draws. Then each of ``--seeds`` draws is learnt with it from training and validation
pictures together, and judged on the test pictures after the last step; they choose nothing.

Every transfer and every training is a file of JSON in ``--folder``, written when it is done: the same command goes on
where it stopped, and other cells can be run meanwhile by another process. At the end ``README.md`` and the curves are
written from all runs that are there. ``--quick`` is a tiny version on pictures that it draws itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from cells import CEILING, CELLS, OPTIMISERS, QUICK, ROWS, SCRATCH, TUNING_SEED, Cell
from draws import kinds
from initial import CLASSES, transferred
from training import Run, best_rate, fine_tune

HERE = Path(__file__).resolve().parent
QUICK_ROWS = ("scratch", "same-names", "graft", "refit")
QUICK_OPTIONS: dict[str, Mapping[str, object]] = {"refit": {"refit_images": 64}}


class Study:
    """The runs of a folder, and how more are made."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cells: Mapping[str, Cell] = QUICK if options.quick else CELLS
        self.runs, self.transfers = options.folder / "runs", options.folder / "transfers"
        self.runs.mkdir(parents=True, exist_ok=True)
        self._keep_settings({"epochs": options.epochs, "every": options.every, "budget": options.budget})

    def all(self) -> None:
        """Every run that is asked for and not there yet."""
        for data in self.options.data:
            found = kinds(self.options.pictures / data)
            if len(found) != CLASSES:
                raise SystemExit(f"{self.options.pictures / data} has {len(found)} kinds, and the study {CLASSES}.")
            for name in self.options.cells:
                for row in self._rows(self.cells[name]):
                    self._row(data, name, row)

    def _rows(self, cell: Cell) -> Iterator[str]:
        """The rows that this netgraft can make. Those that it cannot are told."""
        from netgraft import plugins

        there = plugins.listing("recipes")
        for row in self.options.rows:
            recipe, _ = ROWS[row]
            if row == CEILING and cell.ceiling is None:
                continue
            if recipe and recipe not in there:
                say(f"skipped {row}: this netgraft has no recipe of that name")
                continue
            yield row

    def _row(self, data: str, name: str, row: str) -> None:
        cell, checkpoint = self.cells[name], None
        if row != SCRATCH:
            options: dict[str, object] = dict(QUICK_OPTIONS.get(row, {})) if self.options.quick else {}
            if row == "auto":
                options["budget"] = self.options.budget
            record = transferred(name, cell, row, options, self.options.device, self.transfers)
            facts = json.loads(record.read_text())
            if "refused" in facts:
                say(f"{name} {row}: refused: {facts['refused']}")
                return
            checkpoint = record.with_suffix(".safetensors")
        for samples in self.options.samples:
            for optimiser in self.options.optimisers:
                found: dict[float, list[Mapping[str, Any]]] = {}
                for rate in self._rates(optimiser):
                    seeds = range(TUNING_SEED, TUNING_SEED + self.options.draws)
                    runs = [Run(data, name, row, samples, optimiser, rate, "validation", seed) for seed in seeds]
                    found[rate] = [self._run(run, checkpoint) for run in runs]
                rate = best_rate(found)
                for seed in range(self.options.seeds):
                    self._run(Run(data, name, row, samples, optimiser, rate, "test", seed), checkpoint)

    def _rates(self, optimiser: str) -> tuple[float, ...]:
        rates: tuple[float, ...] = OPTIMISERS[optimiser]["rates"]
        return rates[-2:] if self.options.quick else rates

    def _run(self, run: Run, checkpoint: Path | None) -> Mapping[str, Any]:
        from netgraft.files.atomic import written

        file, options = self.runs / f"{run.name}.json", self.options
        if file.exists():
            return json.loads(file.read_text())
        how = {"epochs": options.epochs, "every": options.every, "device": options.device}
        facts = fine_tune(run, self.cells[run.cell], options.pictures / run.data, checkpoint, **how)
        line = asdict(run) | facts
        with written(file) as out:
            out.write(json.dumps(line).encode() + b"\n")
        say(f"{run.name}: {facts['accuracy']:.1f}")
        return line

    def _keep_settings(self, settings: Mapping[str, Any]) -> None:
        """Runs of one folder have one schedule. Raises SystemExit for another one."""
        file = self.options.folder / "settings.json"
        if not file.exists():
            file.write_text(json.dumps(settings) + "\n")
        elif (kept := json.loads(file.read_text())) != settings and not self.options.report:
            raise SystemExit(f"{self.options.folder} holds runs with {kept}, not {settings}: name another --folder.")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.quick:
        from quick import draw

        draw(options.pictures / "shapes")
    study = Study(options)
    if not options.report:
        study.all()
    from table import document

    text = document(options.folder, study.cells)
    options.readme.write_text(text, encoding="utf-8")
    from curves import draw_curves

    for file in draw_curves(options.folder, study.cells, options.readme.parent):
        say(f"wrote {file}")
    say(f"wrote {options.readme}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the user says, with what follows from --quick."""
    parser = argparse.ArgumentParser(description="Fine-tune networks on a few photographs from many initialisations.")
    parser.add_argument("--pictures", type=Path, default=Path("pictures"), help="the folder that data.py made")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where transfers and runs are kept")
    parser.add_argument("--data", help="folders of pictures, with commas between (photographs)")
    parser.add_argument("--cells", help=f"of {', '.join(CELLS)}")
    parser.add_argument("--rows", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--samples", help="pictures of each kind, with commas between (5,10)")
    parser.add_argument("--optimisers", default=",".join(OPTIMISERS), help=f"of {', '.join(OPTIMISERS)}")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the results")
    parser.add_argument("--draws", type=int, default=2, help="draws that a rate is chosen by")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--every", type=int, default=4, help="epochs between two points of a curve")
    parser.add_argument("--budget", type=float, default=10.0, help="minutes that auto may take")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="train nothing: only write the tables")
    parser.add_argument("--readme", type=Path, help="the file with the tables (README.md beside this script)")
    parser.add_argument("--quick", action="store_true", help="a tiny version, on pictures that it draws")
    options = parser.parse_args(arguments)
    if options.quick:
        options.epochs, options.every, options.draws, options.seeds = 2, 1, 1, min(options.seeds, 2)
        options.pictures = options.folder / "pictures"
    options.readme = options.readme or (options.folder if options.quick else HERE) / "README.md"
    options.data = (options.data or ("shapes" if options.quick else "photographs")).split(",")
    cells = QUICK if options.quick else CELLS
    options.cells = _chosen(parser, "--cells", options.cells, cells, tuple(cells))
    options.rows = _chosen(parser, "--rows", options.rows, ROWS, QUICK_ROWS if options.quick else tuple(ROWS))
    options.optimisers = _chosen(parser, "--optimisers", options.optimisers, OPTIMISERS, ())
    try:
        options.samples = [int(word) for word in (options.samples or ("3" if options.quick else "5,10")).split(",")]
    except ValueError:
        parser.error(f"--samples takes numbers with commas between, not {options.samples}")
    if min(*options.samples, options.seeds, options.draws, options.epochs, options.every) < 1:
        parser.error("--samples, --seeds, --draws, --epochs and --every are at least 1")
    return options


def _chosen(
    parser: argparse.ArgumentParser, option: str, given: str | None, known: Mapping[str, Any], usual: Sequence[str]
) -> list[str]:
    names = [name.strip() for name in given.split(",")] if given else list(usual)
    if wrong := [name for name in names if name not in known]:
        parser.error(f"{option} does not know {', '.join(wrong)}; there are {', '.join(known)}")
    return names


if __name__ == "__main__":
    main()
