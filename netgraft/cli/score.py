"""Commands that judge initialisations without training: score, compare."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netgraft.cli.app import Format, command, write_json, write_lines
from netgraft.cli.options import (
    Device,
    InputSize,
    OutputFormat,
    RandomSource,
    SourceArg,
    SourceInputSize,
    SourceRef,
    SourceWeights,
    TargetArg,
    TargetRef,
    parse_args,
    parse_sides,
    parse_size,
)
from netgraft.errors import UsageError
from netgraft.report.progress import progress

if TYPE_CHECKING:
    from netgraft.score.settings import ScoreSettings

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
BatchSize = Annotated[int, typer.Option(metavar="NUMBER", min=2, help="Images in a forward pass.")]


class ProbedBatchNorm(StrEnum):
    RECALIBRATE = "recalibrate"
    AS_IS = "as-is"


BnStatistics = Annotated[
    ProbedBatchNorm, typer.Option("--bn", help="Re-estimate running statistics on the training images, or leave them.")
]


@command(
    "netgraft score init.safetensors examples/my_arch.py --data netgraft:digits --samples-per-class 10",
    "netgraft score init.safetensors examples/my_arch.py --data netgraft:digits --input-size 1,16,16 --format json",
)
def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Weights of TARGET: .safetensors, .pth, .pt.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The architecture they belong to.")],
    data: DataRef,
    samples_per_class: SamplesPerClass = None,
    seed: DrawSeed = 0,
    seeds: Seeds = 3,
    fail_under_scratch: Annotated[
        bool, typer.Option("--fail-under-scratch", help="Exit 1 if a file is significantly worse than scratch.")
    ] = False,
    bn: BnStatistics = ProbedBatchNorm.RECALIBRATE,
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
    interval of the difference is. Deep random networks have poor features and still train well: a lead of a few points
    promises nothing. A folder of data has a folder of images for each class, or train and val folders that have them.
    With --fail-under-scratch the exit code is 1 if a file is worse; no difference passes.
    """
    settings = _score_settings(
        data, samples_per_class, seed, seeds, bn, mean, std, data_dir, download, device, batch_size
    )
    args, size = parse_args(target_arg), parse_size(input_size)
    from netgraft.models.side import Side
    from netgraft.report.score import score_document, score_lines
    from netgraft.score.probe import score as judge
    from netgraft.score.verdict import check_scratch

    with progress() as say:
        scores = judge(files, Side(target, "target", args, size), settings, progress=say)
    write_json(score_document(scores)) if format is Format.JSON else write_lines(score_lines(scores))
    if fail_under_scratch:
        check_scratch(scores)


@command(
    "netgraft compare netgraft:resnet20-glyphs examples/my_arch.py --recipes hmt,grow --data netgraft:digits "
    "--samples-per-class 10",
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
    bn: BnStatistics = ProbedBatchNorm.RECALIBRATE,
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
    sides = parse_sides(
        source, target, source_arg, target_arg, source_input_size, input_size, source_weights, random_source
    )
    from netgraft.report.score import score_document, score_lines
    from netgraft.score.compare import compare as judge

    with progress() as say:
        scores = judge(*sides, settings, recipes=names, progress=say)
    write_json(score_document(scores)) if format is Format.JSON else write_lines(score_lines(scores))


def _score_settings(
    data: str,
    samples_per_class: int | None,
    seed: int,
    seeds: int,
    bn: ProbedBatchNorm,
    mean: str | None,
    std: str | None,
    data_dir: Path | None,
    download: bool,
    device: str,
    batch_size: int,
) -> ScoreSettings:
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together.", hint="For example --mean 0.5 --std 0.35.")
    from netgraft.models.normalisation import Normalisation, parse_statistics
    from netgraft.score.settings import ScoreSettings

    normalisation = None
    if mean is not None and std is not None:
        normalisation = Normalisation(
            parse_statistics(mean, "--mean"), parse_statistics(std, "--std"), "user", "--mean and --std"
        )
    return ScoreSettings(
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
