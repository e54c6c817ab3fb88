"""Cells, run one after the other or in several processes; one JSON line each, none twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from netgraft.errors import NetgraftError
from transfer_quality import finetune
from transfer_quality.domains import DOMAINS
from transfer_quality.initialisations import Source, make, parse

FILE = "cells.jsonl"


@dataclass(frozen=True)
class Group:
    """Cells that share an initialisation."""

    domain: str
    source: str  # "-" for what needs none
    target: str
    init: str


@dataclass(frozen=True)
class Plan:
    """What to run each group on, and where."""

    cache: Path
    samples: Sequence[int]
    seeds: Sequence[int]
    steps: int  # of pretraining
    reuse: bool = False


def groups(domains: Iterable[str], sources: Sequence[str], targets: Sequence[str], inits: Sequence[str]) -> list[Group]:
    """All combinations, initialisations slowest; those without a source once for each target."""
    found = [
        Group(domain, source if parse(init).needs_source else "-", target, init)
        for domain in domains
        for init in inits
        for source in sources
        for target in targets
        if not (source.endswith("-embedded") and domain != "glyphs")
    ]
    return list(dict.fromkeys(found))


def run(plan: Plan, todo: Sequence[Group], jobs: int = 1) -> None:
    """Runs what is missing. With several jobs, first what they would all want to pretrain."""
    plan.cache.mkdir(parents=True, exist_ok=True)
    for domain in dict.fromkeys(group.domain for group in todo):
        DOMAINS[domain].data(plan.cache)
    work = partial(run_group, plan)
    if jobs == 1:
        for number, group in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {work(group)}", flush=True)
        return
    for group in todo:
        _pretrain(plan, group)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_one_thread) as pool:
        for number, line in enumerate(pool.map(work, todo), 1):
            print(f"[{number}/{len(todo)}] {line}", flush=True)


def run_group(plan: Plan, group: Group) -> str:
    """Makes the initialisation and runs its cells; one line for people. A recipe that fails stops no other cell."""
    _one_thread()
    name = f"{group.domain} {group.source} -> {group.target}, {group.init}"
    try:
        rows, ran = run_cells(plan, group)
    except Exception as error:
        reason = str(error) if isinstance(error, NetgraftError) else f"{type(error).__name__}: {error}"
        append(plan.cache, asdict(group) | {"refused": reason})
        return f"{name}: refused: {reason.splitlines()[0]}"
    took = f"{sum(row['seconds'] for row in ran) / len(ran):.1f} s a cell" if ran else "known"
    return f"{name}: {100 * sum(row['accuracy'] for row in rows) / len(rows):.1f} %, {took}"


def run_cells(plan: Plan, group: Group) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of all cells of a group, and of those that were not known."""
    spec = parse(group.init)
    source = Source.parse(group.source) if spec.needs_source else None
    made = make(plan.cache, group.domain, source, group.target, spec, steps=plan.steps, reuse=plan.reuse)
    known = {key_of(row): row for row in read(plan.cache) if "accuracy" in row}
    rows, ran = [], []
    for samples in plan.samples:
        for seed in plan.seeds:
            wanted = asdict(group) | {"samples": samples, "seed": seed, "sha256": made.sha256}
            wanted |= {"protocol": finetune.PROTOCOL}
            row = known.get(key_of(wanted))
            if row is None:
                row = wanted | {"steps": plan.steps, "transfer_seconds": made.seconds}
                row |= run_cell(plan, group, made.tensors, samples, seed)
                append(plan.cache, row)
                ran.append(row)
            rows.append(row)
    return rows, ran


def run_cell(plan: Plan, group: Group, tensors: dict[str, torch.Tensor], samples: int, seed: int) -> dict[str, float]:
    """The probe's and the fine-tuned accuracy."""
    task = finetune.task(plan.cache, group.domain, group.target, samples, seed)
    net = finetune.fresh(group.domain, group.target, tensors, seed)
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    probe = task.bench.probe(state).accuracy
    began = time.perf_counter()
    finetune.tune(net, *task.train, seed)
    return {
        "accuracy": finetune.accuracy(net, *task.test),
        "probe": probe,
        "seconds": time.perf_counter() - began,
    }


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two cells the same."""
    names = ("domain", "source", "target", "init", "samples", "seed", "sha256", "protocol")
    return tuple(row[name] for name in names)


def append(cache: Path, row: dict[str, Any]) -> None:
    """One line in one write, so that processes do not mix theirs."""
    line = (json.dumps(row) + "\n").encode()
    handle = os.open(cache / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def read(cache: Path) -> list[dict[str, Any]]:
    """All lines; a line cut short by an interruption is passed over."""
    file = cache / FILE
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _pretrain(plan: Plan, group: Group) -> None:
    spec = parse(group.init)
    if spec.recipe == "upper":
        make(plan.cache, group.domain, None, group.target, spec, steps=plan.steps, reuse=plan.reuse)
    elif spec.needs_source:
        Source.parse(group.source).weights(plan.cache, group.domain, spec.control, plan.steps)


def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
