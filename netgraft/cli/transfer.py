"""Commands that make checkpoints, or say how they would be made: transfer, plan."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netgraft.cli.app import Format, command, write_json, write_lines
from netgraft.cli.interruption import OnInterrupt, asked_to_end
from netgraft.cli.options import (
    AllowNonfinite,
    Budget,
    Device,
    EveryTensor,
    Exact,
    FailUnder,
    Head,
    Images,
    InputSize,
    KeepHead,
    Labels,
    Map,
    MapFile,
    Matcher,
    OutputFormat,
    Passes,
    RandomSource,
    Recipe,
    Settings,
    Skip,
    SourceArg,
    SourceInputSize,
    SourceRef,
    SourceWeights,
    TargetArg,
    TargetRef,
    VocabMap,
    parse_recipe_options,
    parse_sides,
    read_given,
)
from netgraft.errors import UsageError
from netgraft.report.progress import progress
from netgraft.report.text import safe, size_text

if TYPE_CHECKING:
    from netgraft.planning import Planned, TransferRequest


@command(
    "netgraft transfer netgraft:resnet20-glyphs examples/my_arch.py --budget 1 -o init.safetensors",
    "netgraft transfer netgraft:vgg11-glyphs examples/my_arch.py --recipe refit --images strokes -o init.safetensors",
    "netgraft transfer resnet18 examples/my_arch.py --recipe hmt --source-weights r18.safetensors -o init.safetensors",
)
def transfer(
    source: SourceRef,
    target: TargetRef,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The checkpoint to write.")
    ] = None,
    recipe: Recipe = "auto",
    budget: Budget = None,
    images: Images = None,
    keep_head: KeepHead = False,
    matcher: Matcher = None,
    map: Map = None,
    map_file: MapFile = None,
    skip: Skip = None,
    settings: Settings = None,
    passes: Passes = None,
    head: Head = False,
    labels: Labels = None,
    vocab_map: VocabMap = None,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, as netgraft plan; write nothing.")] = False,
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
    device: Device = "auto",
    on_interrupt: Annotated[
        OnInterrupt,
        typer.Option(help="What Ctrl-C does: stop, or end the pass that is running and write what is there."),
    ] = OnInterrupt.STOP,
    every_tensor: EveryTensor = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Write a checkpoint of TARGET from the weights of SOURCE.

    SOURCE is a model with pretrained weights, TARGET any architecture; netgraft --help shows how they are written. The
    checkpoint holds exactly the tensors of TARGET, and a ledger that says where each of them came from.
    """
    if output is None and not dry_run:
        raise UsageError("An output is missing.", hint="Add -o init.safetensors, or --dry-run to see the plan only.")
    sides = parse_sides(
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
    given = read_given(matcher, head, labels, vocab_map, exact, map, map_file, skip, images, keep_head, budget)
    options = parse_recipe_options(recipe, settings, **given)
    from netgraft.planning import TransferRequest

    request = TransferRequest(
        *sides,
        output,
        recipe=recipe,
        options=options,
        passes=[(name, {}) for name in passes or []],
        device=device,
        seed=seed,
        fail_under=fail_under,
        force=force,
        receipt=receipt,
    )
    if dry_run or output is None:
        _show_plan(request, every_tensor, format)
        return
    from netgraft.transfer import transfer as write

    with progress() as say, asked_to_end(on_interrupt) as stop:
        planned = write(request, progress=say, stop=stop)
    _show_result(planned, output, every_tensor, format)


@command(
    "netgraft plan netgraft:resnet20-glyphs examples/my_arch.py",
    "netgraft plan vgg11 examples/plainnet5.py --every-tensor",
    "netgraft plan resnet18 examples/resnet8.py --fail-under 50 --format json",
)
def plan(
    source: SourceRef,
    target: TargetRef,
    recipe: Recipe = "auto",
    budget: Budget = None,
    images: Images = None,
    keep_head: KeepHead = False,
    matcher: Matcher = None,
    map: Map = None,
    map_file: MapFile = None,
    skip: Skip = None,
    settings: Settings = None,
    passes: Passes = None,
    head: Head = False,
    labels: Labels = None,
    vocab_map: VocabMap = None,
    exact: Exact = False,
    source_weights: SourceWeights = None,
    random_source: RandomSource = False,
    source_arg: SourceArg = None,
    target_arg: TargetArg = None,
    input_size: InputSize = None,
    source_input_size: SourceInputSize = None,
    fail_under: FailUnder = 0.0,
    allow_nonfinite: AllowNonfinite = False,
    device: Device = "auto",
    every_tensor: EveryTensor = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Show what a transfer would do, and write nothing.

    Both architectures are only traced, and nothing is downloaded. Weights are read only if they are given with
    --source-weights, or random, and the recipe plans by them.
    """
    sides = parse_sides(
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
    given = read_given(matcher, head, labels, vocab_map, exact, map, map_file, skip, images, keep_head, budget)
    options = parse_recipe_options(recipe, settings, **given)
    from netgraft.planning import TransferRequest

    request = TransferRequest(
        *sides,
        recipe=recipe,
        options=options,
        passes=[(name, {}) for name in passes or []],
        device=device,
        fail_under=fail_under,
    )
    _show_plan(request, every_tensor, format)


def _show_plan(request: TransferRequest, every_tensor: bool, format: Format) -> None:
    from netgraft.planning import check_coverage, make_plan, read_source
    from netgraft.report import ledger

    with progress() as say:
        planned = make_plan(request, progress=say)
        given = request.source.random or request.source.weights or planned.source.reference.weights
        if given and planned.reads_weights:
            planned = planned.with_weights(read_source(planned, say).tensors)
    plan, rows = planned.plan, [each.as_candidate() for each in planned.candidates]
    if format is Format.JSON:
        write_json({"plan": plan.to_json(), "coverage": plan.coverage(), "candidates": rows})
    else:
        write_lines(ledger.every_tensor(plan) if every_tensor else ledger.ledger(plan, None, rows))
    check_coverage(plan, request.fail_under)


def _show_result(planned: Planned, output: Path, every_tensor: bool, format: Format) -> None:
    from netgraft.files.checkpoint import file_sha256, read_provenance
    from netgraft.report import ledger
    from netgraft.report.receipt import receipt_lines

    plan, provenance = planned.plan, read_provenance(output)
    if format is Format.JSON:
        written = {"output": str(output), "sha256": file_sha256(output)}
        write_json(provenance | {"coverage": plan.coverage()} | written)
        return
    shown = ledger.ledger(plan, provenance["receipt"], provenance["candidates"])
    write_lines(ledger.every_tensor(plan) if every_tensor else shown)
    write_lines(ledger.pass_lines(provenance))
    write_lines(ledger.notes(provenance))
    size = size_text(output.stat().st_size)
    write_lines(["", safe(f"wrote {output} ({size}); its ledger: netgraft show {shlex.quote(str(output))}")])
    write_lines([*receipt_lines(provenance), ""])
    write_lines(ledger.how_to_load(str(output), planned.target.reference, planned.request.target.args))
