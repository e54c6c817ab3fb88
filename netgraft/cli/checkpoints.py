"""Commands that read checkpoints: show, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netgraft.cli.app import Format, command, write_json, write_lines
from netgraft.cli.options import EveryTensor, OutputFormat, SourceWeights
from netgraft.errors import CheckFailed
from netgraft.report.progress import progress


@command("netgraft show init.safetensors", "netgraft show init.safetensors --every-tensor")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint written by netgraft.")],
    every_tensor: EveryTensor = False,
    format: OutputFormat = Format.TEXT,
) -> None:
    """Show where the numbers of a written checkpoint came from.

    FILE is a checkpoint that netgraft wrote. Only its header is read.
    """
    from netgraft.files.checkpoint import read_provenance
    from netgraft.report import ledger
    from netgraft.report.receipt import recorded_receipt

    provenance = read_provenance(file)
    if "plan" not in provenance and "finetune" in provenance:
        write_json(provenance) if format is Format.JSON else write_lines(ledger.training_lines(provenance))
        return
    plan = ledger.recorded_plan(provenance, file)
    receipt = recorded_receipt(provenance, file)
    passes = list(ledger.pass_lines(provenance))
    if format is Format.JSON:
        write_json(provenance | {"coverage": plan.coverage()})
        return
    write_lines(ledger.origin_lines(provenance))
    write_lines(receipt)
    write_lines(passes)
    write_lines([""])
    write_lines(
        ledger.every_tensor(plan)
        if every_tensor
        else ledger.ledger(plan, provenance.get("receipt"), provenance.get("candidates", ()))
    )


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
    and the target loads the file; the source's weights have the recorded sha256; every tensor that comes from a copy or
    an operator is made again from them, and is the same bit for bit. Tensors that a pass may have changed (refit,
    distil, recalibrate, rescale and others) are not made again: nothing but keys, shapes, finite values and the receipt
    speaks for them. The parity receipt measured again agrees within 5 %. What cannot be checked is said. Python files
    and modules are executed only where --source and --target name them. Exit code: 0 all checks pass, 1 one fails.
    """
    from netgraft.files.checkpoint import read_provenance
    from netgraft.report import ledger
    from netgraft.report.receipt import checks_document, checks_lines, recorded_receipt

    provenance = read_provenance(file)
    plan = ledger.recorded_plan(provenance, file)
    recorded_receipt(provenance, file)
    from netgraft.evidence.checks import verify as check
    from netgraft.evidence.rebuild import Whereabouts

    with progress() as say:
        checks = check(file, provenance, plan, Whereabouts(source, target, source_weights, offline), progress=say)
    if format is Format.JSON:
        write_json(checks_document(file, checks))
    else:
        write_lines(checks_lines(checks))
    if failed := [check.name for check in checks if check.outcome == "failed"]:
        raise CheckFailed(f"{file} is not what its ledger says: {', '.join(failed)}.")
