"""The command line: parse, one call, one report. torch is imported only by the commands that need it."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from netgraft import __version__, plugins
from netgraft.errors import CheckFailed, UnknownName, UsageError
from netgraft.report import streams
from netgraft.report.progress import progress
from netgraft.report.text import safe, size_text

if TYPE_CHECKING:
    from netgraft.score import Settings as ScoreSettings
    from netgraft.transfer import Planned, Side

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="\b\nExamples:\n  netgraft recipes\n  netgraft plan netgraft:resnet20-glyphs examples/my_arch.py",
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
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the source's constructor; repeatable.")
]
TargetArg = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the target's constructor; repeatable.")
]
InputSize = Annotated[str | None, typer.Option(metavar="C,H,W", help="Input of the target, without the batch axis.")]
SourceInputSize = Annotated[
    str | None, typer.Option(metavar="C,H,W", help="Input of the source, where it is not known.")
]
Recipe = Annotated[str, typer.Option(metavar="NAME", help="How weights are turned into weights (netgraft recipes).")]
Matcher = Annotated[str | None, typer.Option(metavar="NAME", help="Which layer goes to which (netgraft matchers).")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Option of the recipe (netgraft recipes NAME); repeatable."),
]
Head = Annotated[bool, typer.Option("--head", help="Move the classifier head even where its size differs.")]
Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSON label map that moves the head's rows: source class of each target class."),
]
Exact = Annotated[bool, typer.Option("--exact", help="Refuse unless the target computes exactly what the source does.")]
FailUnder = Annotated[
    float,
    typer.Option(
        metavar="PERCENT",
        min=0,
        max=100,
        show_default=False,
        help="Exit 1 if less of the target comes from the source.",
    ),
]
AllowNonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Accept NaN and infinity in the weights.")]
EveryTensor = Annotated[bool, typer.Option("--every-tensor", help="One line for each tensor of the target.")]
OutputFormat = Annotated[Format, typer.Option("--format", help="text for people, json for programs.")]
DataRef = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DIR|NAME",
        help="Labelled images: a folder, netgraft:digits, netgraft:digits-hard, torch/cifar10...",
    ),
]
SamplesPerClass = Annotated[
    int | None, typer.Option(metavar="NUMBER", min=1, help="Train the probe with so many images of each class.")
]
DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where data sets with a name lie; ./data without it.")
]
Download = Annotated[bool, typer.Option("--download", help="Fetch data that are not there.")]
Seeds = Annotated[
    int, typer.Option(metavar="NUMBER", min=3, max=1000, help="How many random initialisations scratch is.")
]
DrawSeed = Annotated[
    int, typer.Option(metavar="NUMBER", min=0, max=2**32 - 1, help="Seed of the draw of --samples-per-class.")
]
Mean = Annotated[
    str | None, typer.Option(metavar="NUMBERS", help="Mean of the images by channel; the source's where it is known.")
]
Std = Annotated[
    str | None, typer.Option(metavar="NUMBERS", help="Standard deviation of the images, given like --mean.")
]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where networks run: cpu, cuda; auto takes what there is.")]
BatchSize = Annotated[int, typer.Option(metavar="NUMBER", min=2, help="Images in a forward pass.")]


class BatchNorm(StrEnum):
    RECALIBRATE = "recalibrate"
    AS_IS = "as-is"


BnStatistics = Annotated[
    BatchNorm, typer.Option("--bn", help="Re-estimate running statistics on the training images, or leave them.")
]


def command(*examples: str, name: str | None = None) -> Callable[[Command], Command]:
    """Register a function as a command whose help ends with these examples, and give its errors an exit code."""

    def register(function: Command) -> Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            raise typer.Exit(streams.run(lambda: function(*args, **kwargs)))

        epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
        summary = (function.__doc__ or "").partition("\n")[0]
        app.command(name, short_help=summary, epilog=epilog)(guarded)
        return function

    return register


# ------------------------------------------------------------------------------------------------------------ commands


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Pretrained weights for any architecture: a checkpoint of TARGET from the weights of SOURCE.

    \b
    SOURCE and TARGET are written:
      resnet18, resnet18.a1_in1k      timm's name, without or with the tag of its weights
      hf-hub:org/name                 a timm model on the Hugging Face hub
      torchvision:resnet18            torchvision's name
      netgraft:resnet20-glyphs        shipped with netgraft, no download
      ./my_arch.py, ./my_arch.py:Net  a class or function in a file of your own, which is executed
      package.module:factory          a class or function that Python can import
      ./folder                        a folder with timm's config.json
      ANY_OF_THESE=FILE               with the weights in FILE (.safetensors, .pth, .pt)

    A SOURCE comes with its pretrained weights, a TARGET with random ones.
    """
    if version:
        print(f"netgraft {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


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
    labels: Labels = None,
    exact: Exact = False,
    source_weights: SourceWeights = None,
    random_source: RandomSource = False,
    source_arg: SourceArg = None,
    target_arg: TargetArg = None,
    input_size: InputSize = None,
    source_input_size: SourceInputSize = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="NUMBER", min=0, max=2**32 - 1, help="Seed of what keeps the target's own initialisation."
        ),
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; read no weights, write nothing.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace an existing output.")] = False,
    fail_under: FailUnder = 0.0,
    allow_nonfinite: AllowNonfinite = False,
    receipt: Annotated[
        bool | None,
        typer.Option(
            "--receipt/--no-receipt",
            show_default=False,
            help="Run both models once and record how far apart they are; by default where that takes seconds.",
        ),
    ] = None,
    every_tensor: EveryTensor = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Write a checkpoint of TARGET from the weights of SOURCE.

    SOURCE is a model with pretrained weights, TARGET any architecture; netgraft --help shows how they are written. The
    checkpoint holds exactly the tensors of TARGET, and a ledger that says where each of them came from.
    """
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
    options = _recipe_options(recipe, settings, matcher, head, labels, exact)
    if dry_run or output is None:
        _plan(sides, recipe, options, fail_under, every_tensor, format)
        return
    from netgraft.transfer import transfer as write

    with progress() as say:
        planned = write(
            *sides,
            output,
            recipe=recipe,
            options=options,
            seed=seed,
            force=force,
            fail_under=fail_under,
            receipt=receipt,
            progress=say,
        )
    _show_result(planned, sides[1], output, every_tensor, format)


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
    labels: Labels = None,
    exact: Exact = False,
    source_arg: SourceArg = None,
    target_arg: TargetArg = None,
    input_size: InputSize = None,
    source_input_size: SourceInputSize = None,
    fail_under: FailUnder = 0.0,
    every_tensor: EveryTensor = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Show what a transfer would do, and write nothing.

    Weights are neither read nor downloaded: both architectures are only traced.
    """
    sides = _sides(source, target, source_arg, target_arg, source_input_size, input_size)
    _plan(
        sides, recipe, _recipe_options(recipe, settings, matcher, head, labels, exact), fail_under, every_tensor, format
    )


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
    working directory. Exit code: 0 as recorded, 1 changed or too short, 2 for anything else.
    """
    from netgraft import inspection
    from netgraft.report import chains

    if check is not None and format not in chains.SHOWS_CHANGES:
        raise UsageError(f"--format {format} has no place for what --check finds.", hint="Take table, json or github.")
    if all_paths and format not in chains.SHOWS_TIES:
        raise UsageError(f"--format {format} has no place for --all-paths.", hint="Take table or json.")
    request = inspection.Request(
        models or (),
        arg,
        _size(input_size),
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
    _print(chains.render(format, results, check))
    for remark in inspection.conclude(request, results, recorded):
        print(safe(f"netgraft: {remark}"), file=sys.stderr)


@command("netgraft show init.safetensors", "netgraft show init.safetensors --every-tensor")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint written by netgraft.")],
    every_tensor: EveryTensor = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Show where the numbers of a written checkpoint came from.

    FILE is a checkpoint that netgraft wrote. Only its header is read.
    """
    from netgraft.checkpoint import read_provenance
    from netgraft.report import ledger
    from netgraft.report.receipt import recorded_receipt

    provenance = read_provenance(file)
    plan = ledger.recorded_plan(provenance, file)
    receipt = recorded_receipt(provenance, file)
    if format is Format.JSON:
        _print_json(provenance | {"coverage": plan.coverage()})
        return
    _print(ledger.origin_lines(provenance))
    _print(receipt)
    _print([""])
    _print(ledger.every_tensor(plan) if every_tensor else ledger.ledger(plan))


@command(
    "netgraft verify init.safetensors --offline",
    "netgraft verify init.safetensors --target examples/my_arch.py",
    "netgraft verify init.safetensors --target examples/my_arch.py --format json",
)
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint written by netgraft.")],
    source: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the source is now, if elsewhere or a Python file.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Where the target is now, if elsewhere or a Python file.")
    ] = None,
    source_weights: SourceWeights = None,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Check a written checkpoint against its ledger.

    Its tensors have the keys and shapes of the plan and finite values; both architectures are still the recorded ones,
    and the target loads the file; the source's weights have the recorded sha256; every tensor made again from them is
    the same bit for bit; the parity receipt measured again agrees. What cannot be checked is said. Python files and
    modules are executed only where --source and --target name them. Exit code: 0 all checks pass, 1 one fails.
    """
    from netgraft.checkpoint import read_provenance
    from netgraft.report import ledger
    from netgraft.report.receipt import checks_document, checks_lines, recorded_receipt

    provenance = read_provenance(file)
    plan = ledger.recorded_plan(provenance, file)
    recorded_receipt(provenance, file)
    from netgraft.rebuild import Whereabouts
    from netgraft.verify import verify as check

    with progress() as say:
        checks = check(file, provenance, plan, Whereabouts(source, target, source_weights, offline), progress=say)
    if format is Format.JSON:
        _print_json(checks_document(file, checks))
    else:
        _print(checks_lines(checks))
    if failed := [check.name for check in checks if check.outcome == "failed"]:
        raise CheckFailed(f"{file} is not what its ledger says: {', '.join(failed)}.")


@command(
    "netgraft score init.safetensors examples/my_arch.py --data netgraft:digits --samples-per-class 10",
    "netgraft score init.safetensors examples/my_arch.py --data netgraft:digits --fail-under-scratch --format json",
)
def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Weights of TARGET: .safetensors, .pth, .pt.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The architecture they belong to.")],
    data: DataRef,
    samples_per_class: SamplesPerClass = None,
    seed: DrawSeed = 0,
    seeds: Seeds = 3,
    fail_under_scratch: Annotated[
        bool, typer.Option("--fail-under-scratch", help="Exit 1 if a file is significantly worse than scratch.")
    ] = False,
    bn: BnStatistics = BatchNorm.RECALIBRATE,
    mean: Mean = None,
    std: Std = None,
    target_arg: TargetArg = None,
    input_size: InputSize = None,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = "auto",
    batch_size: BatchSize = 128,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Say whether initialisations help, without training.

    The network is frozen, and a linear classifier in closed form learns from what its head reads. Its accuracy on test
    images is set against that of the target's own random initialisations: better or worse where the whole 95 %
    interval of the difference is. A folder of data has a folder of images for each class, or train and val folders
    that have them. With --fail-under-scratch the exit code is 1 if a file is worse; no difference passes.
    """
    settings = _score_settings(
        data, samples_per_class, seed, seeds, bn, mean, std, data_dir, download, device, batch_size
    )
    args, size = _args(target_arg), _size(input_size)
    from netgraft.report.score import score_document, score_lines
    from netgraft.score import check_scratch
    from netgraft.score import score as judge
    from netgraft.transfer import Side

    with progress() as say:
        scores = judge(files, Side(target, "target", args, size), settings, progress=say)
    _print_json(score_document(scores)) if format is Format.JSON else _print(score_lines(scores))
    if fail_under_scratch:
        check_scratch(scores)


@command(
    "netgraft compare netgraft:resnet20-glyphs examples/my_arch.py --data netgraft:digits --recipes hmt,grow",
)
def compare(
    source: SourceRef,
    target: TargetRef,
    data: DataRef,
    recipes: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Recipes with commas between them; all without it.")
    ] = None,
    samples_per_class: SamplesPerClass = None,
    seed: DrawSeed = 0,
    seeds: Seeds = 3,
    bn: BnStatistics = BatchNorm.RECALIBRATE,
    mean: Mean = None,
    std: Std = None,
    source_weights: SourceWeights = None,
    random_source: RandomSource = False,
    source_arg: SourceArg = None,
    target_arg: TargetArg = None,
    input_size: InputSize = None,
    source_input_size: SourceInputSize = None,
    data_dir: DataDir = None,
    download: Download = False,
    device: Device = "auto",
    batch_size: BatchSize = 128,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Say which recipe initialises TARGET best, without training.

    Each recipe makes its initialisation from the weights of SOURCE, with its defaults, and all are scored as by
    netgraft score. Recipes that refuse are listed with the reason.
    """
    settings = _score_settings(
        data, samples_per_class, seed, seeds, bn, mean, std, data_dir, download, device, batch_size
    )
    names = [name.strip() for name in recipes.split(",") if name.strip()] if recipes is not None else None
    sides = _sides(source, target, source_arg, target_arg, source_input_size, input_size, source_weights, random_source)
    from netgraft.report.score import score_document, score_lines
    from netgraft.score.compare import compare as judge

    with progress() as say:
        scores = judge(*sides, settings, recipes=names, progress=say)
    _print_json(score_document(scores)) if format is Format.JSON else _print(score_lines(scores))


@command("netgraft models", "netgraft models 'resnet*'", "netgraft models 'resnet18.*'")
def models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="Part of a name, or a name with *; with a dot in it, names with tags."),
    ] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List models that SOURCE and TARGET can name.

    Without PATTERN those shipped with netgraft; with PATTERN also those of timm and torchvision.
    """
    from netgraft.load.catalogue import catalogue
    from netgraft.report.listing import models_text

    found = catalogue(pattern)
    if not any(found.values()):
        known = [name for names in catalogue("*").values() for name in names]
        raise UnknownName("model", pattern or "", known, hint="")
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
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A recipe, or the path of your own: ./own_recipe.py.")
    ] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the recipes: how source weights become target weights.

    With NAME: what that recipe does, and its options for --set.
    """
    _listing("recipes", name, format)


@command("netgraft matchers", "netgraft matchers longest-chain")
def matchers(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A matcher, or the path of your own: ./own_matcher.py.")
    ] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the matchers: which source layer goes to which target.

    With NAME: what that matcher does.
    """
    _listing("matchers", name, format)


@command("netgraft operators", "netgraft operators share")
def operators(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this operator's options.")] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the operators: what the steps of a plan do to a tensor."""
    _listing("resize", name, format)


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
    theirs = _args(source_arg), _size(source_input_size)  # refused before torch is imported
    ours = _args(target_arg), _size(input_size)
    from netgraft.transfer import Side

    return (
        Side(source, "source", *theirs, source_weights, random_source, allow_nonfinite),
        Side(target, "target", *ours),
    )


def _args(given: list[str] | None) -> dict[str, object]:
    from netgraft.load.references import parse_arg

    return dict(parse_arg(text) for text in given or [])


def _size(text: str | None) -> tuple[int, ...] | None:
    from netgraft.load.references import parse_input_size

    return parse_input_size(text) if text is not None else None


def _recipe_options(
    recipe: str, settings: list[str] | None, matcher: str | None, head: bool, labels: Path | None, exact: bool
) -> dict[str, object]:
    options = _args(settings)
    known = {option.name for option in plugins.options(plugins.load("recipes", recipe))}
    for name, given in (("labels", labels is not None), ("exact", exact)):
        if given and name not in known:
            raise UsageError(f"The recipe {recipe} has no option --{name}.", hint="Add --recipe grow, which has it.")
    if matcher is not None:
        options["matcher"] = matcher
    if head:
        options["head"] = "always"
    if labels is not None:
        from netgraft.labels import read_labels

        options["labels"] = read_labels(labels)
    if exact:
        options["exact"] = True
    return options


def _score_settings(
    data: str,
    samples_per_class: int | None,
    seed: int,
    seeds: int,
    bn: BatchNorm,
    mean: str | None,
    std: str | None,
    data_dir: Path | None,
    download: bool,
    device: str,
    batch_size: int,
) -> ScoreSettings:
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together.", hint="For example --mean 0.5 --std 0.35.")
    from netgraft.data import Normalisation, parse_statistics
    from netgraft.score import Settings

    normalisation = None
    if mean is not None and std is not None:
        normalisation = Normalisation(parse_statistics(mean, "--mean"), parse_statistics(std, "--std"))
    return Settings(
        data=data,
        samples_per_class=samples_per_class,
        seed=seed,
        seeds=seeds,
        bn=bn.value,
        device=device,
        batch=batch_size,
        normalisation=normalisation,
        root=data_dir,
        download=download,
    )


def _plan(
    sides: tuple[Side, Side],
    recipe: str,
    options: dict[str, object],
    fail_under: float,
    every_tensor: bool,
    format: Format,
) -> None:
    from netgraft.report import ledger
    from netgraft.transfer import check_coverage, make_plan

    with progress() as say:
        plan = make_plan(*sides, recipe=recipe, options=options, progress=say).plan
    if format is Format.JSON:
        _print_json({"plan": plan.to_json(), "coverage": plan.coverage()})
    else:
        _print(ledger.every_tensor(plan) if every_tensor else ledger.ledger(plan))
    check_coverage(plan, fail_under)


def _show_result(planned: Planned, target: Side, output: Path, every_tensor: bool, format: Format) -> None:
    from netgraft.checkpoint import file_sha256, read_provenance
    from netgraft.report import ledger
    from netgraft.report.receipt import receipt_lines

    plan, provenance = planned.plan, read_provenance(output)
    if format is Format.JSON:
        written = {"output": str(output), "sha256": file_sha256(output)}
        _print_json(provenance | {"coverage": plan.coverage()} | written)
        return
    _print(ledger.every_tensor(plan) if every_tensor else ledger.ledger(plan))
    _print(ledger.notes(provenance))
    size = size_text(output.stat().st_size)
    _print(["", safe(f"wrote {output} ({size}); its ledger: netgraft show {shlex.quote(str(output))}")])
    _print([*receipt_lines(provenance), ""])
    _print(ledger.how_to_load(str(output), planned.target.reference, target.args))


def _print(lines: Iterable[str]) -> None:
    streams.write(lines)


def _print_json(document: Any) -> None:
    streams.write([json.dumps(document, indent=2)])
