"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from transfer_quality import __doc__ as about
from transfer_quality import cells, report
from transfer_quality.domains import DOMAINS, TARGETS
from transfer_quality.initialisations import BASELINES

SOURCES = ("resnet20-0", "vgg11-0", "vit-0", "resnet20-1", "vgg11-1", "vit-1")
INITS = ["scratch", *BASELINES, "hmt", "hmt@shuffled", "upper"]
CACHE = Path(".netgraft-benchmark")


def main(arguments: Sequence[str] | None = None) -> int:
    """``run`` and ``report``."""
    options = parser().parse_args(arguments)
    if options.command == "report":
        only = {name: getattr(options, name) for name in ("domains", "sources", "targets", "inits")}
        report.write(options.cache, options.out, plot=options.plot, common=options.common, **only)
        return 0
    domains = list(DOMAINS) if options.domain == "all" else [options.domain]
    plan = cells.Plan(options.cache, options.samples, range(options.seeds), options.steps, options.reuse)
    todo = cells.groups(domains, options.sources, options.targets, options.inits)
    cells.run(plan, todo, options.jobs)
    return 0


def parser() -> argparse.ArgumentParser:
    """``--help`` tells everything."""
    plain = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("transfer_quality", description=about, formatter_class=plain)
    commands = made.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the cells that are missing")
    run.add_argument("--domain", choices=[*DOMAINS, "all"], default="glyphs")
    run.add_argument("--sources", nargs="+", default=SOURCES, help="FAMILY-SEED or FAMILY-embedded")
    run.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    run.add_argument("--inits", nargs="+", default=INITS, metavar="INIT")
    run.add_argument("--samples", type=_numbers, default=[10], metavar="5,10,50", help="images per class")
    run.add_argument("--seeds", type=int, default=5, help="how many fine-tuning seeds")
    run.add_argument("--steps", type=int, default=1000, help="of pretraining, for sources and upper bounds alike")
    run.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    run.add_argument("--reuse", action="store_true", help="take initialisations made by an earlier state of netgraft")
    tables = commands.add_parser("report", help="tables, JSON and, with matplotlib, a plot of what was run")
    tables.add_argument("--out", type=Path, help="folder to write report.md, report.json and report.png to")
    tables.add_argument("--plot", action="store_true", help="draw the plot too")
    tables.add_argument("--common", action="store_true", help="only pairs that all initialisations have")
    for name in ("domains", "sources", "targets", "inits"):
        tables.add_argument(f"--{name}", nargs="+", help=f"only these {name}")
    for command in (run, tables):
        command.add_argument("--cache", type=Path, default=CACHE, help=f"where all is kept; {CACHE} by default")
    return made


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
