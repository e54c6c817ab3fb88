"""Commands that look at architectures: inspect-chains, groups."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from netgraft.cli.app import command, write_json, write_lines
from netgraft.cli.options import parse_args, parse_size
from netgraft.errors import UsageError
from netgraft.report.progress import progress
from netgraft.report.text import safe


class ChainFormat(StrEnum):
    TABLE = "table"
    JSON = "json"
    DOT = "dot"
    MERMAID = "mermaid"
    GITHUB = "github"
    JUNIT = "junit"


class ChainWeight(StrEnum):
    LAYERS = "layers"
    PARAMS = "params"


@command(
    "netgraft inspect-chains examples/my_arch.py",
    "netgraft inspect-chains resnet50 vgg11 --format json",
    "netgraft inspect-chains examples/my_arch.py examples/resnet8.py --lock netgraft.lock.json",
    "netgraft inspect-chains --check netgraft.lock.json",
    "netgraft inspect-chains --check netgraft.lock.json --update",
)
def inspect_chains(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Architectures; no weights are loaded. None: those of --check."),
    ] = None,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the constructors; repeatable.")
    ] = None,
    input_size: Annotated[str | None, typer.Option(metavar="C,H,W", help="Input, without the batch axis.")] = None,
    no_gates: Annotated[
        bool, typer.Option("--no-gates", help="Leave out squeeze-and-excitation and attention gates.")
    ] = False,
    weight: Annotated[
        ChainWeight | None, typer.Option(help="What makes a chain long: its layers (default) or their parameters.")
    ] = None,
    all_paths: Annotated[
        bool, typer.Option("--all-paths", help="List the chains that are equally long, 100 at most.")
    ] = False,
    lock: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the architectures to a new lock.")] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with a lock; exit 1 and say what changed.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="With --check: rewrite what changed, and exit 0.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="With --lock: replace an existing file.")] = False,
    fail_under: Annotated[
        int,
        typer.Option(metavar="LAYERS", min=0, show_default=False, help="Exit 1 if a chain has fewer layers."),
    ] = 0,
    format: Annotated[ChainFormat, typer.Option("--format", help="How to show it.")] = ChainFormat.TABLE,
) -> None:
    """Show the longest chain of architectures, and guard it in CI.

    MODEL is written as SOURCE and TARGET are: netgraft --help. A lock records layers, wiring and chains; --check
    compares with it, and takes models and their options from it where none are given. Files are named relative to the
    working directory. A lock runs no code but classes and functions of Python files below its own folder; anything
    else that it names must be given as MODEL, too. Exit code: 0 as recorded, 1 changed or too short, 2 for anything
    else.
    """
    from netgraft.lock import inspection
    from netgraft.report.chains import render as chains

    if check is not None and format not in chains.SHOWS_CHANGES:
        raise UsageError(f"--format {format} has no place for what --check finds.", hint="Take table, json or github.")
    if all_paths and format not in chains.SHOWS_TIES:
        raise UsageError(f"--format {format} has no place for --all-paths.", hint="Take table or json.")
    request = inspection.Request(
        models or (),
        arg,
        parse_size(input_size),
        no_gates=no_gates,
        weight=weight.value if weight else None,
        all_paths=all_paths,
        fail_under=fail_under,
        lock=lock,
        check=check,
        update=update,
        force=force,
    )
    recorded = inspection.recorded(request)
    with progress() as say:
        results = list(
            inspection.inspect(request, recorded, keep_going=format in chains.SHOWS_ERRORS, progress=say),
        )
    write_lines(chains.render(format, results, check))
    for remark in inspection.conclude(request, results, recorded):
        print(safe(f"netgraft: {remark}"), file=sys.stderr)


class GroupsFormat(StrEnum):
    TABLE = "table"
    JSON = "json"


@command(
    "netgraft groups examples/my_arch.py",
    "netgraft groups netgraft:vgg11-glyphs --members",
    "netgraft groups vit_tiny_patch16_224 --format json",
)
def groups(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An architecture; no weights are loaded.")],
    arg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the constructor; repeatable.")
    ] = None,
    input_size: Annotated[str | None, typer.Option(metavar="C,H,W", help="Input, without the batch axis.")] = None,
    members: Annotated[bool, typer.Option("--members", help="Name every member, however many.")] = False,
    format: Annotated[GroupsFormat, typer.Option("--format", help="How to show it.")] = GroupsFormat.TABLE,
) -> None:
    """Show which channels of an architecture belong together.

    MODEL is written as SOURCE and TARGET are: netgraft --help. The channels of a group can be permuted in all its
    members at once, and the network computes the same. What mixes them without weights of its own (a mean, a product
    of queries and keys) is named: copies of channels change what it computes. Tensors in no group are listed with the
    operation that gave their positions a meaning. Recipe grow keeps the channels of a group together.
    """
    args, size = parse_args(arg), parse_size(input_size)  # refused before torch is imported
    from netgraft.channels.groups.find import find_groups
    from netgraft.models.model import load_model
    from netgraft.report.groups import groups_document, groups_text
    from netgraft.trace import trace

    with progress() as say:
        say(f"tracing {model}")
        graph = trace(load_model(model, role="target", args=args, input_size=size))
        found = find_groups(graph)
    if format is GroupsFormat.JSON:
        write_json(groups_document(model, graph, found))
    else:
        write_lines(groups_text(model, graph, found, all_members=members))
