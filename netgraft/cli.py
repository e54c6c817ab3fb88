"""The command line: parse, one call, one report. torch is imported only by the commands that need it."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from netgraft import __version__, plugins
from netgraft.errors import NetgraftError, UsageError

if TYPE_CHECKING:
    from netgraft.transfer import Planned, Side

app = typer.Typer(
    help="Pretrained weights for any architecture.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Command = TypeVar("Command", bound=Callable[..., None])


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


# ------------------------------------------------------------------------------------------------------------- options

SourceRef = Annotated[
    str, typer.Argument(metavar="SOURCE", help="The pretrained model, e.g. resnet18 (see: netgraft models).")
]
TargetRef = Annotated[str, typer.Argument(metavar="TARGET", help="The architecture to initialise, e.g. ./my_arch.py.")]
SourceWeights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The source's weights: .safetensors, .pth or .pt, instead of a download."),
]
RandomSource = Annotated[bool, typer.Option("--random-source", help="Random source weights, to try things out.")]
SourceArg = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the source's constructor.")
]
TargetArg = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the target's constructor.")
]
InputSize = Annotated[str | None, typer.Option(metavar="C,H,W", help="Input of the target, without the batch axis.")]
SourceInputSize = Annotated[
    str | None, typer.Option(metavar="C,H,W", help="Input of the source, where it is not known.")
]
Recipe = Annotated[str, typer.Option(metavar="NAME", help="How weights are turned into weights (netgraft recipes).")]
Matcher = Annotated[str | None, typer.Option(metavar="NAME", help="Which layer goes to which (netgraft matchers).")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Option of the recipe (netgraft recipes NAME).")
]
Head = Annotated[bool, typer.Option("--head", help="Move the classifier head even where its size differs.")]
FailUnder = Annotated[
    float, typer.Option(metavar="PERCENT", min=0, max=100, help="Exit 1 if less of the target comes from the source.")
]
AllowNonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Accept NaN and infinity in the weights.")]
OutputFormat = Annotated[Format, typer.Option("--format", help="text for people, json for programs.")]


def command(*examples: str, name: str | None = None) -> Callable[[Command], Command]:
    """Register a function as a command whose help ends with these examples, and give its errors an exit code."""

    def register(function: Command) -> Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except NetgraftError as error:
                _complain(error)
                raise typer.Exit(error.exit_code) from None
            except (KeyboardInterrupt, BrokenPipeError):
                raise
            except typer.Exit:
                raise
            except Exception as error:
                traceback.print_exc()
                print(
                    f"netgraft: internal error ({type(error).__name__}); this is a bug, not your input.",
                    file=sys.stderr,
                )
                raise typer.Exit(2) from None

        epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
        app.command(name, epilog=epilog)(guarded)
        return function

    return register


# ------------------------------------------------------------------------------------------------------------ commands


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Pretrained weights for any architecture.

    SOURCE and TARGET are a timm name (resnet18, resnet18.a1_in1k), hf-hub:org/name, torchvision:name, ./file.py,
    ./file.py:Class, package.module:factory, a folder with config.json, netgraft:name (shipped with netgraft), or any
    of these followed by =weights.safetensors. A Python file is executed; transfer only what you trust.
    """
    if version:
        print(f"netgraft {__version__}")
        raise typer.Exit


@command(
    "netgraft transfer netgraft:resnet20-glyphs examples/my_arch.py -o init.safetensors",
    "netgraft transfer netgraft:vgg11-glyphs examples/plainnet5.py --target-arg num_classes=10 -o init.safetensors",
    "netgraft transfer resnet18 examples/my_arch.py --source-weights r18.safetensors -o init.safetensors",
)
def transfer(
    source: SourceRef,
    target: TargetRef,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The checkpoint to write.")
    ] = None,
    recipe: Recipe = "hmt",
    matcher: Matcher = None,
    settings: Settings = None,
    head: Head = False,
    source_weights: SourceWeights = None,
    random_source: RandomSource = False,
    source_arg: SourceArg = None,
    target_arg: TargetArg = None,
    input_size: InputSize = None,
    source_input_size: SourceInputSize = None,
    seed: Annotated[int, typer.Option(help="Seed of what keeps the target's own initialisation.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; read no weights, write nothing.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace an existing output.")] = False,
    fail_under: FailUnder = 0.0,
    allow_nonfinite: AllowNonfinite = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Write a checkpoint of TARGET, initialised from the weights of SOURCE."""
    if output is None and not dry_run:
        raise UsageError("An output is missing.", hint="Add -o init.safetensors, or --dry-run to see the plan only.")
    sides = _sides(
        source,
        target,
        source_arg,
        target_arg,
        source_input_size,
        input_size,
        source_weights,
        random_source,
        allow_nonfinite,
    )
    from netgraft import transfer as job

    options = _recipe_options(settings, matcher, head)
    with _progress() as progress:
        if dry_run or output is None:
            planned = job.make_plan(*sides, recipe=recipe, options=options, progress=progress)
            job.check_coverage(planned.plan, fail_under)
        else:
            planned = job.transfer(
                *sides,
                output,
                recipe=recipe,
                options=options,
                seed=seed,
                force=force,
                fail_under=fail_under,
                progress=progress,
            )
    _show_plan(planned, sides[1], None if dry_run else output, format)


@command(
    "netgraft plan netgraft:resnet20-glyphs examples/my_arch.py",
    "netgraft plan vgg11 examples/plainnet5.py --every-tensor",
    "netgraft plan resnet18 examples/resnet8.py --fail-under 50 --format json",
)
def plan(
    source: SourceRef,
    target: TargetRef,
    recipe: Recipe = "hmt",
    matcher: Matcher = None,
    settings: Settings = None,
    head: Head = False,
    source_arg: SourceArg = None,
    target_arg: TargetArg = None,
    input_size: InputSize = None,
    source_input_size: SourceInputSize = None,
    fail_under: FailUnder = 0.0,
    every_tensor: Annotated[
        bool, typer.Option("--every-tensor", help="One line for each tensor of the target.")
    ] = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Show what a transfer would do. No weights are read or downloaded, nothing is written."""
    sides = _sides(source, target, source_arg, target_arg, source_input_size, input_size)
    from netgraft.transfer import check_coverage, make_plan

    with _progress() as progress:
        planned = make_plan(*sides, recipe=recipe, options=_recipe_options(settings, matcher, head), progress=progress)
    _show_plan(planned, sides[1], None, format, every_tensor)
    check_coverage(planned.plan, fail_under)


@command(
    "netgraft inspect-chains examples/my_arch.py",
    "netgraft inspect-chains resnet50 vgg11 --format json",
)
def inspect_chains(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Architectures; no weights are loaded.")],
    arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the constructors.")] = None,
    input_size: Annotated[str | None, typer.Option(metavar="C,H,W", help="Input, without the batch axis.")] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Show the longest chain of each architecture, layer by layer."""
    from netgraft.chain import longest_chain
    from netgraft.report.chains import chain_document, chain_table
    from netgraft.trace import trace
    from netgraft.transfer import Side

    sides = [Side(model, "target", _args(arg), _size(input_size)) for model in models]
    documents = []
    for i, side in enumerate(sides):
        graph = trace(side.load())
        chain = longest_chain(graph)
        if format is Format.JSON:
            documents.append(chain_document(side.reference, graph, chain))
        else:
            _print([""] if i else [])
            _print(chain_table(side.reference, graph, chain))
    if format is Format.JSON:
        _print_json(documents)


@command("netgraft show init.safetensors", "netgraft show init.safetensors --every-tensor")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint written by netgraft.")],
    every_tensor: Annotated[bool, typer.Option("--every-tensor", help="One line for each tensor.")] = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Show the ledger of a checkpoint: where every number came from."""
    from netgraft.checkpoint import read_provenance
    from netgraft.plan import Plan
    from netgraft.report import ledger

    provenance = read_provenance(file)
    if format is Format.JSON:
        _print_json(provenance)
        return
    plan = Plan.from_json(provenance["plan"])
    _print(ledger.origin_lines(provenance))
    _print([""])
    _print(ledger.every_tensor(plan) if every_tensor else ledger.ledger(plan))


@command("netgraft models", "netgraft models 'resnet*'")
def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Names with * to look for in timm and torchvision.")
    ] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List models that can be named as SOURCE or TARGET."""
    from netgraft.report.listing import models_text
    from netgraft.load.catalogue import catalogue

    found = catalogue(pattern)
    if format is Format.JSON:
        _print_json(found)
    else:
        _print(models_text(found, pattern))


def _listing(folder: str, name: str | None, format: Format) -> None:
    from netgraft.report.listing import plugin_document, plugin_text, plugins_document, plugins_text

    if name is None:
        found = plugins.listing(folder)
        _print_json(plugins_document(found)) if format is Format.JSON else _print(plugins_text(folder, found))
    else:
        cls = plugins.load(folder, name)
        _print_json(plugin_document(name, cls)) if format is Format.JSON else _print(plugin_text(folder, name, cls))


@command("netgraft recipes", "netgraft recipes hmt")
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this recipe's options.")] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the recipes: how source weights become target weights."""
    _listing("recipes", name, format)


@command("netgraft matchers", "netgraft matchers longest-chain")
def matchers(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this matcher's options.")] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the matchers: which source layer goes to which target layer."""
    _listing("matchers", name, format)


# ------------------------------------------------------------------------------------------------------------- helpers


def _sides(
    source: str,
    target: str,
    source_arg: list[str] | None,
    target_arg: list[str] | None,
    source_input_size: str | None,
    input_size: str | None,
    source_weights: Path | None = None,
    random_source: bool = False,
    allow_nonfinite: bool = False,
) -> tuple[Side, Side]:
    from netgraft.transfer import Side

    return (
        Side(
            source,
            "source",
            _args(source_arg),
            _size(source_input_size),
            source_weights,
            random_source,
            allow_nonfinite,
        ),
        Side(target, "target", _args(target_arg), _size(input_size)),
    )


def _args(given: list[str] | None) -> dict[str, object]:
    from netgraft.load.references import parse_arg

    return dict(parse_arg(text) for text in given or [])


def _size(text: str | None) -> tuple[int, ...] | None:
    from netgraft.load.references import parse_input_size

    return parse_input_size(text) if text is not None else None


def _recipe_options(settings: list[str] | None, matcher: str | None, head: bool) -> dict[str, object]:
    options = _args(settings)
    if matcher is not None:
        options["matcher"] = matcher
    if head:
        options["head"] = "always"
    return options


def _show_plan(planned: Planned, target: Side, output: Path | None, format: Format, every_tensor: bool = False) -> None:
    from netgraft.report import ledger

    if format is Format.JSON:
        document: dict[str, Any] = {"plan": planned.plan.to_json(), "coverage": planned.plan.coverage()}
        if output is not None:
            from netgraft.checkpoint import file_sha256

            document |= {"output": str(output), "sha256": file_sha256(output)}
        _print_json(document)
        return
    _print(ledger.every_tensor(planned.plan) if every_tensor else ledger.ledger(planned.plan))
    if output is not None:
        _print(["", f"wrote {output} ({output.stat().st_size:,} bytes); its ledger: netgraft show {output}", ""])
        reference = planned.target.reference
        _print(ledger.how_to_load(str(output), target.args, reference.name if reference.kind == "timm" else None))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def _complain(error: NetgraftError) -> None:
    from netgraft.report.text import safe

    for i, part in enumerate(filter(None, (error.what, error.where, error.hint))):
        for line in part.splitlines():
            print(safe(f"netgraft: {line}" if i == 0 else f"  {line}"), file=sys.stderr)


def _progress() -> Any:
    """A context manager giving a function that shows what is being done, on a terminal's stderr only."""
    from netgraft.report.progress import progress

    return progress()
