"""Initialisations: each made once by ``netgraft transfer`` and kept, with what it cost or why netgraft refuses it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import CEILING, ROWS, Cell
from products import Products

CLASSES = 10


def transferred(name: str, cell: Cell, row: str, options: Mapping[str, object], device: str, folder: Path) -> Path:
    """The record, JSON, of a row's transfer for targets of ten classes; the checkpoint lies beside it.

    It says what was paid, ``gflops`` and ``seconds``, or why it was ``refused``. What is there already is not made
    again. ``options`` are the recipe's.
    """
    from netgraft.errors import NetgraftError
    from netgraft.files.atomic import written
    from netgraft.models.side import Side
    from netgraft.planning import TransferRequest
    from netgraft.transfer import transfer

    folder.mkdir(parents=True, exist_ok=True)
    record, checkpoint = folder / f"{name}_{row}.json", folder / f"{name}_{row}.safetensors"
    if record.exists():
        return record
    recipe, preset = ROWS[row]
    source = cell.ceiling if row == CEILING and cell.ceiling else cell.source
    facts: dict[str, Any] = {"cell": name, "row": row, "source": source, "recipe": recipe}
    sides = Side(source, "source"), cell.side(CLASSES, cell.transferred)
    how: dict[str, Any] = {"recipe": recipe, "options": {**preset, **options}, "device": device, "force": True}
    request = TransferRequest(*sides, checkpoint, receipt=False, **how)  # a receipt is not part of the price
    began, used = time.perf_counter(), time.process_time()
    try:
        with Products() as products:
            planned = transfer(request)
    except NetgraftError as error:
        facts["refused"] = error.what
    else:
        facts |= {"recipe": planned.choice.name, "gflops": round(products.flops / 1e9, 3)}
        facts |= {"seconds": round(time.perf_counter() - began, 1), "cpu_seconds": round(time.process_time() - used, 1)}
        if row == CEILING and (own := _own_but_head(checkpoint, cell)):
            raise SystemExit(f"{source} has no weights for {', '.join(own[:3])} of {cell.target}: it is no ceiling.")
    with written(record) as file:
        file.write(json.dumps(facts, indent=1).encode() + b"\n")
    return record


def with_seed(checkpoint: Path, cell: Cell, seed: int, out: Path) -> Path:
    """``out``: the checkpoint with what the transfer kept, the classifier above all, drawn anew with the seed."""
    from safetensors.torch import load_file

    from netgraft.files.checkpoint import read_provenance, write_checkpoint
    from netgraft.models.side import own_weights

    own, _ = own_weights(cell.side(CLASSES, cell.transferred).load(), seed, allow_nonfinite=False)
    kept = {key: own[key] for key in _kept(checkpoint)}
    write_checkpoint(out, load_file(checkpoint) | kept, read_provenance(checkpoint), force=True)
    return out


def _kept(checkpoint: Path) -> list[str]:
    """The target's tensors that kept their own initialisation."""
    from netgraft.files.checkpoint import read_provenance
    from netgraft.plan import KEPT, Plan

    fates = Plan.from_json(read_provenance(checkpoint)["plan"]).fates
    return [key for key, fate in fates.items() if fate == KEPT]


def _own_but_head(checkpoint: Path, cell: Cell) -> list[str]:
    from netgraft.trace import trace

    heads = tuple(f"{layer.name}." for layer in trace(cell.side(CLASSES, cell.transferred).load()).heads())
    return [key for key in _kept(checkpoint) if not key.startswith(heads)]
