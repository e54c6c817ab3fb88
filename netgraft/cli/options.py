"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netgraft import plugins
from netgraft.cli.app import Format
from netgraft.errors import UsageError

if TYPE_CHECKING:
    from netgraft.transfer import Side

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


def parse_sides(
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
    theirs = parse_args(source_arg), parse_size(source_input_size)  # refused before torch is imported
    ours = parse_args(target_arg), parse_size(input_size)
    from netgraft.transfer import Side

    return (
        Side(source, "source", *theirs, source_weights, random_source, allow_nonfinite),
        Side(target, "target", *ours),
    )


def parse_args(given: list[str] | None) -> dict[str, object]:
    from netgraft.load.references import parse_arg

    return dict(parse_arg(text) for text in given or [])


def parse_size(text: str | None) -> tuple[int, ...] | None:
    from netgraft.load.references import parse_input_size

    return parse_input_size(text) if text is not None else None


def parse_recipe_options(
    recipe: str, settings: list[str] | None, matcher: str | None, head: bool, labels: Path | None, exact: bool
) -> dict[str, object]:
    options = parse_args(settings)
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
