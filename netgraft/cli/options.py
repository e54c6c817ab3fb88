"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netgraft import plugins
from netgraft.cli.app import Format
from netgraft.errors import UsageError

if TYPE_CHECKING:
    from netgraft.models.side import Side

SourceRef = Annotated[
    str, typer.Argument(metavar="SOURCE", help="The pretrained model, e.g. resnet18 (see: netgraft models).")
]
TargetRef = Annotated[str, typer.Argument(metavar="TARGET", help="The architecture to initialise, e.g. ./my_arch.py.")]
SourceWeights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The source's weights: .safetensors, .pth or .pt, instead of a download; FILE::PREFIX for a part.",
    ),
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
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="SOURCE=TARGET", help="A source layer's weights go to this target layer; repeatable."
    ),
]
MapFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The same for many layers: lines SOURCE=TARGET, or a JSON object."),
]
Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="GLOB", help="Target layers that keep their own initialisation; repeatable."),
]
Images = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|DIR|FILE",
        help="Images to refit and distil on: a generator (netgraft generators), or your own, unlabelled; few pictures, "
        "even one, are cropped to many.",
    ),
]
KeepHead = Annotated[
    bool, typer.Option("--keep-head", help="Teach the target's own head the source's classes, and keep it.")
]
Budget = Annotated[
    float | None, typer.Option(metavar="MINUTES", help="What a transfer may take, as estimated (recipe auto).")
]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where networks run: cpu, cuda; auto takes what there is.")]
Passes = Annotated[
    list[str] | None,
    typer.Option("--pass", metavar="NAME", help="Run this pass after the recipe's (netgraft passes); repeatable."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Option of the recipe (netgraft recipes NAME); repeatable."),
]
Head = Annotated[bool, typer.Option("--head", help="Move the classifier head even where its size differs.")]
Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSON label map that moves the head's rows: source class of each target class."),
]
VocabMap = Annotated[
    str | None,
    typer.Option(
        "--vocab-map",
        metavar="SOURCE:TARGET|FILE",
        help="Which source token each target token is, by its string: two vocabularies (vocab.json, tokenizer.json, "
        "vocab.txt), or a JSON list of source numbers, null for new tokens, which begin at the mean (grow).",
    ),
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
    of_source = parse_args(source_arg), parse_size(source_input_size)  # refused before torch is imported
    of_target = parse_args(target_arg), parse_size(input_size)
    from netgraft.models.side import Side

    return (
        Side(source, "source", *of_source, source_weights, random_source, allow_nonfinite),
        Side(target, "target", *of_target),
    )


def parse_args(given: list[str] | None) -> dict[str, object]:
    from netgraft.models.references import parse_arg

    return dict(parse_arg(text) for text in given or [])


def parse_size(text: str | None) -> tuple[int, ...] | None:
    from netgraft.models.references import parse_input_size

    return parse_input_size(text) if text is not None else None


def parse_milestones(text: str | None) -> tuple[int, ...] | None:
    """Numbers of epochs with commas between them. Raises UsageError."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        what = "Milestones are numbers of epochs with commas between them."
        raise UsageError(what, where=f"--milestones {text}", hint="--milestones 30,60") from error


def parse_lambdas(text: str) -> tuple[float, tuple[float, ...] | None]:
    """One lambda, or several to choose from, beside 1.0 where they stand in its place. Raises UsageError."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        what = "Lambda is a number, or several with commas between them."
        raise UsageError(what, where=f"--lambda {text}", hint="--lambda 0.01,0.1,1 --folds 5") from error
    return (found[0], None) if len(found) == 1 else (1.0, found)


def parse_maps(given: list[str] | None, file: Path | None) -> tuple[tuple[str, str], ...]:
    """(source layer, target layer) of ``--map`` and ``--map-file``, in this order, each pair once.

    A file holds lines SOURCE=TARGET (# starts a comment), or a JSON object {source: target or [targets]}. Raises
    UsageError for a file that cannot be read, and for text without two layers.
    """
    pairs = [_pair(text, f"--map {text}") for text in given or []]
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UsageError("The map file cannot be read.", where=f"--map-file {file}: {error}") from error
        pairs += _json_pairs(text, file) if text.lstrip().startswith(("{", "[")) else _line_pairs(text, file)
    return tuple(dict.fromkeys(pairs))


def parse_skips(given: list[str] | None) -> tuple[str, ...]:
    """The globs of ``--skip``, each once. Raises UsageError for an empty one."""
    globs = tuple(dict.fromkeys(glob.strip() for glob in given or []))
    if "" in globs:
        raise UsageError("A glob is missing.", where="--skip ''", hint="Write it as --skip 'head*'.")
    return globs


def _pair(text: str, where: str) -> tuple[str, str]:
    source, _, target = (part.strip() for part in text.partition("="))
    if not source or not target:
        hint = "Write it as layer1.0.conv1=stem.conv: a layer of the source, a layer of the target."
        raise UsageError("A mapping names two layers.", where=where, hint=hint)
    return source, target


def _line_pairs(text: str, file: Path) -> list[tuple[str, str]]:
    lines = ((number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [_pair(line, f"{file}, line {number}: {line}") for number, line in lines if line]


def _json_pairs(text: str, file: Path) -> list[tuple[str, str]]:
    form = 'It holds an object: {"source layer": "target layer", "another": ["a target layer", "a second one"]}.'
    try:
        content = json.loads(text, object_pairs_hook=tuple)  # a name that stands there twice counts twice
    except ValueError as error:
        raise UsageError("The map file is no JSON.", where=f"--map-file {file}: {error}", hint=form) from error
    found = []
    for source, targets in content if isinstance(content, tuple) else [("", None)]:
        for target in targets if isinstance(targets, list) else [targets]:
            if not isinstance(target, str):
                raise UsageError("This is not a map of layers.", where=f"--map-file {file}", hint=form)
            found.append(_pair(f"{source}={target}", f"--map-file {file}: {source!r}: {target!r}"))
    return found


def parse_recipe_options(recipe: str, settings: list[str] | None, **given: object) -> dict[str, object]:
    """The options of ``--set`` and those that have an option of their own, ``given`` by name; None for absent ones.

    Raises UsageError for one that the recipe does not have.
    """
    options = parse_args(settings)
    known = {option.name for option in plugins.options(plugins.load("recipes", recipe))}
    for name, value in given.items():
        if value is None or value is False or value == ():
            continue
        if name not in known:
            others = [
                other
                for other in plugins.listing("recipes")
                if name in {option.name for option in plugins.options(plugins.load("recipes", other))}
            ]
            raise UsageError(
                f"The recipe {recipe} has no option {FLAGS.get(name, '--' + name.replace('_', '-'))}.",
                hint=f"Add --recipe {others[0]}, which has it." if others else f"See netgraft recipes {recipe}.",
            )
        options[name] = value
    return options


def read_given(
    matcher: str | None,
    head: bool,
    labels: Path | None,
    vocab_map: str | None,
    exact: bool,
    map: list[str] | None,
    map_file: Path | None,
    skip: list[str] | None,
    images: str | None,
    keep_head: bool,
    budget: float | None,
) -> dict[str, object]:
    """The options of recipes that have an option of their own on the command line, by the recipe's name for them."""
    from netgraft.cli.labels import read_labels
    from netgraft.cli.vocabulary import read_vocabulary_map

    return {
        "matcher": matcher,
        "head": "always" if head else None,
        "labels": read_labels(labels) if labels is not None else None,
        "vocabulary": read_vocabulary_map(vocab_map) if vocab_map is not None else None,
        "exact": exact,
        "maps": parse_maps(map, map_file),
        "skip": parse_skips(skip),
        "generator": images,
        "keep_head": keep_head,
        "budget": budget,
    }


FLAGS = {"maps": "--map", "generator": "--images", "vocabulary": "--vocab-map"}
"""Options whose name on the command line is another than the recipe's."""
