"""The lock file of architectures: what ``inspect-chains --check`` compares, so that a change does not pass unseen.

An entry holds the layers by their module paths (kind, shape, how they slide, the tensors they own), the data flow
between layers, and the chain; and how the model was inspected, so that it can be inspected again. It holds nothing that
depends on the machine or on the version of torch: no operations, no names of recorded nodes, no sizes of feature maps.
So an operation without parameters that is replaced by another, such as a mean by a maximum, is no change.

The file is JSON with one line per layer and edge, sorted, so that a version control system shows readable differences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from netgraft.architecture.chain import Chain, Weight
from netgraft.architecture.graph import Layer, LayerGraph, Shape
from netgraft.errors import CorruptFile, UsageError
from netgraft.files.atomic import written

FORMAT = "netgraft lock"
VERSION = 1
INPUT, OUTPUT = "(input)", "(output)"
"""What stands for the model's inputs (the second is "(input 2)") and its output at the ends of edges."""


ENTRY_KEYS = frozenset({"args", "input_size", "gates", "weight", "layers", "edges", "chain", "unused"})


@dataclass(frozen=True)
class LockSettings:
    """How a model is inspected."""

    args: tuple[str, ...] = ()  # "name=value" as typed, sorted
    input_size: Shape | None = None  # without the batch axis; None: the model's own
    gates: bool = True
    weight: Weight = "layers"


@dataclass(frozen=True)
class LockEntry:
    """What a lock records of one model."""

    settings: LockSettings
    layers: Mapping[str, Mapping[str, Any]]  # name -> its facts
    edges: frozenset[tuple[str, str]]
    chain: tuple[str, ...]
    unused: tuple[str, ...] = ()  # parameters that the forward pass never uses


@dataclass(frozen=True)
class Change:
    """One difference between a recorded and an inspected model."""

    what: str  # "layer added", "layer removed", "layer renamed", "layer changed", "edge added", ..., "chain changed"
    name: str = ""  # the layer, or "layer -> layer"
    fact: str = ""  # which fact of a layer, or which setting, changed
    was: Any = None
    now: Any = None


def entry(graph: LayerGraph, chain: Chain, settings: LockSettings) -> LockEntry:
    """What a lock records of ``graph`` and its ``chain``."""
    layers = {name: facts(layer) for name, layer in sorted(graph.layers.items(), key=lambda item: natural(item[0]))}
    unused = tuple(sorted((slot.key for slot in graph.loose.values() if not slot.buffer), key=natural))
    return LockEntry(settings, layers, frozenset(_edges(graph)), chain.layers, unused)


def facts(layer: Layer) -> dict[str, Any]:
    """What a lock records of a layer."""
    found: dict[str, Any] = {"kind": layer.kind, "shape": list(layer.shape)}
    if layer.is_conv:
        found |= {name: list(getattr(layer, name)) for name in ("stride", "padding", "dilation")}
        found["groups"] = layer.groups
    if layer.calls > 1:
        found["calls"] = layer.calls
    found["tensors"] = sorted(layer.tensors)
    return found


def _edges(graph: LayerGraph) -> Iterator[tuple[str, str]]:
    """As ``LayerGraph.layer_edges``, with edges from the model's inputs and to its output."""
    sources: dict[str, tuple[str, ...]] = {}
    inputs = 0
    for node in graph.nodes:
        arriving = tuple(dict.fromkeys(name for id in node.inputs for name in sources[id]))
        if node.op == "input":
            inputs += 1
            arriving = (INPUT if inputs == 1 else f"{INPUT[:-1]} {inputs})",)
        end = OUTPUT if node.op == "output" else node.layer
        if end is None:
            sources[node.id] = arriving
        else:
            yield from ((name, end) for name in arriving)
            sources[node.id] = (end,)


# ---------------------------------------------------------------------------------------------------------- comparing


def compare(was: LockEntry, now: LockEntry) -> tuple[Change, ...]:
    """Every difference; empty for equal architectures, inspected in the same way."""
    changes = [*_settings_changes(was.settings, now.settings)]
    renamed = _renamed(was, now)
    changes += [Change("layer renamed", name, was=old, now=name) for old, name in renamed.items()]
    was = _rename(was, renamed) if renamed else was
    changes += [Change("layer removed", name, was=was.layers[name]) for name in was.layers if name not in now.layers]
    changes += [Change("layer added", name, now=now.layers[name]) for name in now.layers if name not in was.layers]
    for name in [name for name in now.layers if name in was.layers]:
        old, new = was.layers[name], now.layers[name]
        for fact in dict.fromkeys([*new, *old]):
            default = 1 if fact == "calls" else None
            if old.get(fact, default) != new.get(fact, default):
                changes.append(Change("layer changed", name, fact, old.get(fact, default), new.get(fact, default)))
    changes += [Change("edge removed", f"{a} -> {b}", was=[a, b]) for a, b in _sorted(was.edges - now.edges)]
    changes += [Change("edge added", f"{a} -> {b}", now=[a, b]) for a, b in _sorted(now.edges - was.edges)]
    changes += [Change("parameter unused", key, now=key) for key in now.unused if key not in was.unused]
    changes += [Change("parameter no longer unused", key, was=key) for key in was.unused if key not in now.unused]
    if was.chain != now.chain:
        changes.append(Change("chain changed", was=list(was.chain), now=list(now.chain)))
    return tuple(changes)


def _settings_changes(was: LockSettings, now: LockSettings) -> Iterator[Change]:
    for name in ("args", "input_size", "gates", "weight"):
        before, after = getattr(was, name), getattr(now, name)
        if before != after:
            plain = [list(value) if isinstance(value, tuple) else value for value in (before, after)]
            yield Change("inspected differently", fact=name, was=plain[0], now=plain[1])


def _renamed(was: LockEntry, now: LockEntry) -> dict[str, str]:
    """New names by old ones, if other names are all that happened to the layers and edges."""
    gone = [name for name in was.layers if name not in now.layers]
    new = [name for name in now.layers if name not in was.layers]
    if not gone or [was.layers[name] for name in gone] != [now.layers[name] for name in new]:
        return {}
    names = dict(zip(gone, new, strict=True))
    return names if _rename(was, names).edges == now.edges else {}


def _rename(entry: LockEntry, names: Mapping[str, str]) -> LockEntry:
    return LockEntry(
        entry.settings,
        {names.get(name, name): found for name, found in entry.layers.items()},
        frozenset((names.get(a, a), names.get(b, b)) for a, b in entry.edges),
        tuple(names.get(name, name) for name in entry.chain),
        entry.unused,
    )


def natural(name: str) -> tuple[tuple[Any, ...], str]:
    """A key to sort names by, with numbers in them by their value: blocks.2 before blocks.10."""
    parts = re.split("([0-9]+)", name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def _sorted(edges: frozenset[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(edges, key=lambda edge: (natural(edge[0]), natural(edge[1])))


# ------------------------------------------------------------------------------------------------------------ writing


def to_text(entries: Mapping[str, LockEntry]) -> str:
    """The lock file's text: the same for the same entries, whatever their order."""
    models = [f"    {_json(name)}: {_entry_text(entries[name])}" for name in sorted(entries)]
    body = "{\n" + ",\n".join(models) + "\n  }" if models else "{}"
    return f'{{\n  "format": {_json(FORMAT)},\n  "version": {VERSION},\n  "models": {body}\n}}\n'


def _entry_text(entry: LockEntry) -> str:
    settings = entry.settings
    parts = {
        "args": _json(list(settings.args)),
        "input_size": _json(settings.input_size),
        "gates": _json(settings.gates),
        "weight": _json(settings.weight),
        "layers": _block("{}", [f"{_json(n)}: {_json(entry.layers[n])}" for n in sorted(entry.layers, key=natural)]),
        "edges": _block("[]", map(_json, _sorted(entry.edges))),
        "chain": _block("[]", map(_json, entry.chain)),
        "unused": _block("[]", map(_json, entry.unused)),
    }
    return "{\n" + ",\n".join(f'      "{name}": {text}' for name, text in parts.items()) + "\n    }"


def _block(brackets: str, lines: Iterable[str]) -> str:
    inside = ",\n".join(f"        {line}" for line in lines)
    return f"{brackets[0]}\n{inside}\n      {brackets[1]}" if inside else brackets


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def write_lock(path: Path, entries: Mapping[str, LockEntry]) -> None:
    """Write the lock, complete or not at all; a symbolic link stays one. Raises OutputError."""
    with written(path, "lock", follow=True) as file:
        file.write(to_text(entries).encode())


# ------------------------------------------------------------------------------------------------------------ reading


def read_lock(path: Path) -> dict[str, LockEntry]:
    """The entries by model reference. Raises UsageError without a file, CorruptFile for one that is no lock."""
    try:
        content = json.loads(path.read_bytes().decode())
    except FileNotFoundError as error:
        hint = f"Write it: netgraft inspect-chains --lock {path} MODEL..."
        raise UsageError("There is no such lock file.", where=str(path), hint=hint) from error
    except OSError as error:
        raise UsageError("The lock file cannot be read.", where=f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        hint = "Conflict markers of a merge, perhaps? Resolve them, or write it anew with --lock and --force."
        raise CorruptFile("The lock file is not valid JSON.", where=f"{path}: {error}", hint=hint) from error
    reader = _Reader(path)
    top = reader.mapping(content, "the file", {"format", "version", "models"})
    if top["format"] != FORMAT:
        reader.fail("the file", f'has no "format": "{FORMAT}"')
    if top["version"] != VERSION:
        raise CorruptFile(
            f"The lock file has version {top['version']!r}, this netgraft reads version {VERSION}.",
            where=str(path),
            hint="Write it anew with --lock and --force, or use the netgraft that wrote it.",
        )
    return {name: reader.entry(name, found) for name, found in reader.mapping(top["models"], "models").items()}


@dataclass(frozen=True)
class _Reader:
    """Turns JSON into entries, and says where it is not what it should be."""

    path: Path

    def entry(self, model: str, value: Any) -> LockEntry:
        found = self.mapping(value, model, ENTRY_KEYS)
        size = found["input_size"]
        if size is not None:
            size = tuple(self.all(size, f"{model}: input_size", lambda n: type(n) is int and n > 0))
        if type(found["gates"]) is not bool or found["weight"] not in ("layers", "params"):
            self.fail(model, "was inspected in a way that this netgraft does not know")
        args = self.names(found["args"], f"{model}: args")
        layers = self.mapping(found["layers"], f"{model}: layers")
        for name, layer in layers.items():
            where = f"{model}: layer {name}"
            self.mapping(layer, where, {"kind", "shape", "tensors"})
            self.all(layer["shape"], f"{where}: shape", lambda n: type(n) is int)
            self.names([layer["kind"]], f"{where}: kind")
            self.names(layer["tensors"], f"{where}: tensors")
        edges = [tuple(self.names(pair, f"{model}: edges")) for pair in self.all(found["edges"], f"{model}: edges")]
        chain = self.names(found["chain"], f"{model}: chain")
        known = {*layers, *(end for edge in edges for end in edge if end.startswith("("))}
        for name in (*chain, *(end for edge in edges for end in edge)):
            if name not in known:
                self.fail(model, f"has no layer {name!r}, which its chain or edges name")
        if any(len(edge) != 2 for edge in edges):
            self.fail(f"{model}: edges", "are not pairs")
        pairs = frozenset((edge[0], edge[1]) for edge in edges)
        unused = self.names(found["unused"], f"{model}: unused")
        return LockEntry(LockSettings(args, size, found["gates"], found["weight"]), layers, pairs, chain, unused)

    def mapping(self, value: Any, where: str, keys: Set[str] = frozenset()) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(where, "is not an object")
        for key in sorted(keys - value.keys()):
            self.fail(where, f'has no "{key}"')
        return dict(value)

    def all(self, value: Any, where: str, fits: Callable[[Any], bool] = lambda _: True) -> list[Any]:
        if not isinstance(value, list) or not all(map(fits, value)):
            self.fail(where, "is not the list that it should be")
        return list(value)

    def names(self, value: Any, where: str) -> tuple[str, ...]:
        return tuple(self.all(value, where, lambda item: isinstance(item, str)))

    def fail(self, where: str, what: str) -> NoReturn:
        hint = "Write it anew with --lock and --force."
        raise CorruptFile("This is not a lock file of netgraft.", where=f"{self.path}: {where} {what}", hint=hint)
