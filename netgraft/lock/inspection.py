"""``inspect-chains``: load, trace, find the chain, compare with the lock, for one architecture after the other."""

from __future__ import annotations

import os
import shlex
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from netgraft.architecture.chain import Chain, Weight, all_longest_chains, longest_chain
from netgraft.architecture.graph import LayerGraph, Shape
from netgraft.errors import CheckFailed, NetgraftError, OutputError, TraceError, UsageError
from netgraft.lock.file import Change, LockEntry, LockSettings, compare, entry, read_lock, write_lock
from netgraft.models.references import Reference, parse_arg, parse_reference

MOST_TIED = 100
"""How many equally long chains are listed."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None: as the lock says, or the default."""

    models: Sequence[str]
    args: Sequence[str] | None = None  # "name=value"
    input_size: Shape | None = None
    no_gates: bool = False
    weight: Weight | None = None
    all_paths: bool = False
    fail_under: int = 0
    lock: Path | None = None  # to be written
    check: Path | None = None  # to be compared with
    update: bool = False
    force: bool = False


@dataclass(frozen=True)
class Inspected:
    """What was found of one architecture."""

    model: str  # the reference as typed
    name: str  # the reference as a lock records it
    file: str | None  # the user's file behind it
    graph: LayerGraph
    chain: Chain
    entry: LockEntry
    tied: tuple[Chain, ...] = ()  # equally long chains, ``chain`` first, if they were asked for
    changes: tuple[Change, ...] | None = None  # since the lock was written; None: nothing to compare with
    missing: bool = False  # the lock does not record this model
    wanted: int = 0  # how many layers the chain should have, if it has fewer


@dataclass(frozen=True)
class Broken:
    """An architecture that could not be inspected."""

    model: str
    file: str | None
    error: NetgraftError


Result = Inspected | Broken


def recorded(request: Request) -> dict[str, LockEntry]:
    """The entries of the lock to compare with, after every refusal that needs no model; empty without one."""
    if request.lock and (request.check or request.update):
        raise UsageError(
            "--lock writes a new lock, --check compares with one.",
            where=f"--lock {request.lock}",
            hint=f"To bring a lock up to date: --check {request.check or request.lock} --update.",
        )
    if request.update and not request.check:
        raise UsageError("--update belongs to --check.", hint="For example --check netgraft.lock.json --update.")
    if not request.models and not request.check:
        raise UsageError("A model is missing.", hint="For example netgraft inspect-chains resnet18 ./my_arch.py.")
    if not request.models and (request.args is not None or request.input_size is not None):
        raise UsageError("--arg and --input-size belong to a MODEL.", hint="Without one, they are taken from the lock.")
    if request.lock:
        _check_new(request.lock, force=request.force)
    if not request.check:
        return {}
    entries = read_lock(request.check)
    if not entries and not request.models:
        hint = f"Name some: netgraft inspect-chains --check {request.check} --update MODEL..."
        raise UsageError("The lock records no model.", where=str(request.check), hint=hint)
    if not request.models:
        for model in entries:
            _check_harmless(model, request.check)
    return entries


def _check_harmless(model: str, lock: Path) -> None:
    """Raise UsageError for a recorded model that could run code from elsewhere than the lock's own project.

    A lock may come from anybody. Names in a catalogue are data; a Python file or folder must lie below the lock's
    folder, symbolic links followed, and not be installed there as a package.
    """
    parsed = parse_reference(model)
    what = ""
    if parsed.weights is not None:
        what = "has a weights file"
    elif parsed.kind == "module":
        what = "is whatever Python can import under this name"
    elif parsed.kind in ("file", "directory"):
        place, folder = Path(parsed.name).expanduser().resolve(), lock.parent.resolve()
        if not place.is_relative_to(folder):
            what = f"lies outside the lock's folder {folder}"
        elif _is_installed(place):
            what = "belongs to an installed package"
    if what:
        raise UsageError(
            f"The lock names a model that {what}. Nothing was run.",
            where=f"{lock}: {model}",
            hint=_name_it(model, lock),
        )


def _is_installed(file: Path) -> bool:
    library = Path(sysconfig.get_path("stdlib")).resolve()
    return file.is_relative_to(library) or not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


def _name_it(model: str, lock: Path) -> str:
    command = shlex.join(["netgraft", "inspect-chains", model, "--check", str(lock)])
    return f"If you trust it, name it on the command line: {command}"


def _check_new(path: Path, *, force: bool) -> None:
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise OutputError("The lock cannot be written there.", where=str(path), hint="Name a file in a folder.")
    if path.exists() and not force:
        hint = f"Compare with it: --check {path}; rewrite what changed: --check {path} --update; replace it: --force."
        raise OutputError("The lock exists already.", where=str(path), hint=hint)


def inspect(
    request: Request,
    entries: Mapping[str, LockEntry],
    *,
    keep_going: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Result]:
    """Inspect the models of the request, without any those in the lock's ``entries``, and compare with the lock.

    With ``keep_going`` an architecture that cannot be inspected is Broken; otherwise its error is raised.
    """
    for model in request.models or entries:
        progress(f"inspecting {model}")
        try:
            yield _inspect_one(model, request, entries)
        except NetgraftError as error:
            if not keep_going:
                raise
            yield Broken(model, _user_file(model), error)


def _inspect_one(model: str, request: Request, entries: Mapping[str, LockEntry]) -> Inspected:
    name = lock_name(model)
    before = entries.get(name)
    settings = _settings(request, before.settings if before else LockSettings())
    args = dict(parse_arg(text) for text in settings.args)

    graph = _trace(model, args, settings.input_size, lock=None if request.models else request.check)
    gates, weight = settings.gates, settings.weight
    chain = longest_chain(graph, gates=gates, weight=weight)
    found = entry(graph, chain, settings)
    return Inspected(
        model,
        name,
        _user_file(model),
        graph,
        chain,
        found,
        tied=tuple(all_longest_chains(graph, MOST_TIED, gates=gates, weight=weight)) if request.all_paths else (),
        changes=compare(before, found) if before is not None else None,
        missing=request.check is not None and before is None,
        wanted=request.fail_under if len(chain) < request.fail_under else 0,
    )


def _trace(model: str, args: dict[str, object], input_size: Shape | None, *, lock: Path | None) -> LayerGraph:
    """The model's graph; ``lock``: where its name comes from, if not from the command line."""
    from netgraft.models.model import load_model
    from netgraft.trace import trace

    try:
        parsed = parse_reference(model)
        if lock is not None and parsed.kind == "file":
            _check_defined(parsed, args, lock)
        return trace(load_model(model, role="target", args=args, input_size=input_size))
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of the user's own making, or pytest's: Python would exit with 1 for it
        raise TraceError(f"{model} raised {type(error).__name__}: {error}", where=_user_file(model) or "") from error


def _check_defined(file: Reference, args: dict[str, object], lock: Path) -> None:
    """Raise UsageError if the model is something that the file merely imports, such as ``system`` from os."""
    from netgraft.models.user_file import defines_model

    if not defines_model(file, args):
        raise UsageError(
            "The lock names a model that its file does not define as a class or a function. It was not called.",
            where=f"{lock}: {file.text}",
            hint=_name_it(file.text, lock),
        )


def _settings(request: Request, locked: LockSettings) -> LockSettings:
    given = {parse_arg(text)[0]: "=".join(part.strip() for part in text.split("=", 1)) for text in request.args or ()}
    return LockSettings(
        args=locked.args if request.args is None else tuple(given[name] for name in sorted(given)),
        input_size=request.input_size or locked.input_size,
        gates=locked.gates and not request.no_gates,
        weight=request.weight or locked.weight,
    )


def lock_name(model: str) -> str:
    """The reference as a lock records it: files relative to the working directory, without a weights file."""
    parsed = parse_reference(model)
    if parsed.kind == "file":
        return relative(parsed.name) + (f":{parsed.attribute}" if parsed.attribute else "")
    if parsed.kind == "directory":
        path = relative(parsed.name)
        return path if path.startswith((".", "/")) else f"./{path}"
    return parsed.text


def relative(path: str) -> str:
    """The path from the working directory, with slashes; as it is where there is none (another drive)."""
    whole = Path(path).expanduser()
    try:
        return Path(os.path.relpath(whole)).as_posix()
    except ValueError:
        return whole.as_posix()


def _user_file(model: str) -> str | None:
    try:
        parsed = parse_reference(model)
    except NetgraftError:
        return None
    return relative(parsed.name) if parsed.kind == "file" else None


def conclude(request: Request, results: Sequence[Result], entries: Mapping[str, LockEntry]) -> Iterator[str]:
    """What follows from the results: remarks; a written lock; an error, or CheckFailed where a check did not pass.

    Nothing is written if an architecture could not be inspected or has too short a chain.
    """
    for result in results:
        if isinstance(result, Broken):
            raise result.error
    found = [result for result in results if isinstance(result, Inspected)]
    if short := [result for result in found if result.wanted]:
        raise CheckFailed(
            f"{_count(len(short), 'architecture')} with a chain of fewer than {request.fail_under} layers.",
            where=", ".join(f"{result.model}: {len(result.chain)}" for result in short),
        )
    new = {result.name: result.entry for result in found}
    if request.lock:
        write_lock(request.lock, new)
        yield f"wrote {request.lock} ({_count(len(new), 'architecture')})"
    if not request.check:
        return
    if rest := [name for name in entries if name not in new]:
        yield f"{request.check} records more architectures, which were not inspected: {', '.join(rest)}"
    changed = [result.model for result in found if result.changes or result.missing]
    if changed and request.update:
        write_lock(request.check, {**entries, **new})
        yield f"updated {request.check}: {', '.join(changed)}"
    elif changed:
        again = [*request.models, "--check", str(request.check)]
        raise CheckFailed(
            f"{_count(len(changed), 'architecture')} not as in {request.check}: {', '.join(changed)}.",
            hint=f"If that is intended: {shlex.join(['netgraft', 'inspect-chains', *again, '--update'])}",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
