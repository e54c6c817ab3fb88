"""Architectures of timm: from its registry, from the hub, or from a directory in its format. timm is imported late."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.errors import (
    BuildError,
    ModelFileError,
    NetgraftError,
    UnknownName,
    UsageError,
    WeightsMismatch,
)
from netgraft.models.catalogue import WITHOUT_HUB, netgraft_names
from netgraft.models.construct import brief, call_library, explain_keyword
from netgraft.models.hub import downloading
from netgraft.models.references import WEIGHTS_SUFFIXES, Reference, close_names

_NOT_ARGUMENTS = frozenset(
    {"model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
)


@dataclass(frozen=True)
class TimmModel:
    """An architecture with the configuration of its pretrained weights."""

    label: str  # what the user calls it
    name: str  # of the architecture in timm's registry, without the tag
    cfg: Any  # timm's PretrainedCfg
    args: Mapping[str, object] = field(default_factory=dict)
    option: str = "--source-arg"
    folder: Path | None = None

    @property
    def has_weights(self) -> bool:
        return bool(self.cfg.url or self.cfg.hf_hub_id)

    @property
    def input_size(self) -> tuple[int, ...]:
        channels, *space = self.cfg.input_size
        size = self.args.get("img_size", space)
        space = [size, size] if isinstance(size, int) else list(size)  # type: ignore[call-overload]
        given = self.args.get("in_chans", channels)
        return (given if isinstance(given, int) else channels, *space)

    def build(self) -> nn.Module:
        """A fresh module with random weights; nothing is downloaded."""
        return self._create(pretrained=False)

    def read_pretrained(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The pretrained state_dict, downloaded or from the cache, and remarks for the user."""
        uses_hub = bool(self.cfg.hf_hub_id)
        page = f"https://huggingface.co/{self.cfg.hf_hub_id}" if uses_hub else self.cfg.url
        hint = (
            f"Download the weights elsewhere from {page} and add --source-weights FILE, or type {self.label}=FILE.\n"
            "Or add --random-source to go without pretrained weights, or take as the source "
            f"{WITHOUT_HUB}."
        )
        with downloading(f"The pretrained weights of {self.label}", hint=hint, uses_hub=uses_hub), torch.device("cpu"):
            module = self._create(pretrained=True)
        notes: tuple[str, ...] = ()
        wanted = self.args.get("num_classes", self.cfg.num_classes)
        if wanted != self.cfg.num_classes and wanted:
            classifier = self.cfg.classifier
            head = classifier if isinstance(classifier, str) else ", ".join(classifier or ("the classifier",))
            notes = (f"{head} is randomly initialised: the pretrained one has {self.cfg.num_classes} classes.",)
        return dict(module.state_dict()), notes

    def convert(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The tensors under the keys of this architecture, by timm's own conversion; None if it cannot.

        timm translates old or foreign keys and resamples position embeddings. Here it must find every key: it is told
        that the weights have this architecture's classes and channels, so it leaves out neither classifier nor stem.
        """
        with torch.device("meta"):
            classes = getattr(self.build(), "num_classes", self.cfg.num_classes)
        overlay = {
            "source": "",
            "custom_load": False,
            "num_classes": classes,
            "label_offset": (self.cfg.label_offset or 0) if classes == self.cfg.num_classes else 0,
            "input_size": (self.input_size[0], *self.cfg.input_size[1:]),
        }
        shifted = {key: t.float() + 1 if t.is_floating_point() else t for key, t in tensors.items()}
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                found, other = (self._load({**overlay, "state_dict": each}) for each in (tensors, shifted))
        except Exception:  # timm's conversions assume checkpoints they know; the direct comparison is the message
            return None
        unread = [key for key, t in found.items() if t.is_floating_point() and torch.equal(t, other[key])]
        return None if unread else found  # some models accept absent keys even if asked to be strict

    def _load(self, overlay: Mapping[str, object]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return dict(self._create(pretrained=True, overlay=overlay, pretrained_strict=True).state_dict())

    def _create(self, *, pretrained: bool, overlay: Mapping[str, object] | None = None, **extra: object) -> nn.Module:
        import timm

        try:
            return call_library(
                timm.create_model,
                self.name,
                pretrained=pretrained,
                pretrained_cfg=self.cfg.to_dict(),
                pretrained_cfg_overlay=overlay,
                **self.args,
                **extra,
            )
        except NetgraftError:
            raise
        except Exception as error:
            raise self._translate(error, pretrained) from error

    def _translate(self, error: Exception, pretrained: bool) -> Exception:
        """The error of netgraft for an error of timm; network errors stay as they are."""
        plain = dataclasses.replace(self, args={})
        if unknown := explain_keyword(error, self.args, plain.build, option=self.option, where=self.label):
            return unknown
        if pretrained and "loading state_dict" in str(error):
            lines = [line.strip() for line in str(error).splitlines()[1:5]]
            return WeightsMismatch(
                f"The pretrained weights of {self.label} do not fit the architecture with these arguments.",
                where="\n".join(lines),
                hint=f"Leave out {' '.join(f'{self.option} {k}={v}' for k, v in self.args.items())}."
                if self.args
                else "",
            )
        if pretrained:
            return error
        return BuildError(f"timm could not build {self.label}: {brief(error)}", where=_arguments(self))


def find_timm_model(reference: Reference, args: Mapping[str, object], *, option: str) -> TimmModel:
    """The model of a ``timm``, ``hf-hub`` or ``directory`` reference, not yet built.

    Raises UnknownName, ModelFileError (a config that is not timm's), HubUnreachable (the config of a hub model).
    """
    for name in args:
        if name in _NOT_ARGUMENTS:
            raise UsageError(f"{name} is not an argument of the architecture.", where=f"{option} {name}=...")
    if reference.kind == "timm":
        return _find_registered(reference, args, option)
    if reference.kind == "directory":
        folder = Path(reference.name)
        config = folder / "config.json"
        if not config.is_file():
            files = [f"{folder}/{file.name}" for file in sorted(folder.glob("*.py"))] if folder.is_dir() else []
            hint = (
                f"Did you mean {' or '.join(files[:5])}?" if files else "A model's directory holds timm's config.json."
            )
            what = "The directory has no config.json." if folder.is_dir() else "There is no such directory."
            raise ModelFileError(what, where=str(folder), hint=hint)
        return _from_config(config, reference, args, option, {"source": "local-dir", "file": str(folder)}, folder)
    from huggingface_hub import hf_hub_download

    repository, _, revision = reference.name.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        hint = "A hub model is hf-hub:organisation/name, for example hf-hub:timm/resnet18.a1_in1k."
        raise UsageError("This is not the name of a hub repository.", where=reference.text, hint=hint)
    hint = (
        "Download the repository elsewhere and type the path of its folder, or the architecture's own name with "
        f"=FILE for its weights, or take {WITHOUT_HUB}."
    )
    with downloading(f"The configuration of {reference.text}", hint=hint, uses_hub=True):
        config = Path(hf_hub_download(repository, "config.json", revision=revision or None))
    return _from_config(config, reference, args, option, {"source": "hf-hub", "hf_hub_id": reference.name}, None)


def find_folder_weights(folder: Path) -> Path | None:
    """The weights file of a directory, in timm's order of preference; None without any."""
    preferred = ["model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"]
    found = [folder / name for name in preferred if (folder / name).is_file()]
    found += [file for suffix in WEIGHTS_SUFFIXES for file in sorted(folder.glob(f"*{suffix}"))]
    return found[0] if found else None


def list_tags(name: str) -> list[str]:
    """The names with tag of an architecture's pretrained weights."""
    import timm

    return list(timm.list_pretrained(f"{name}.*"))


def _find_registered(reference: Reference, args: Mapping[str, object], option: str) -> TimmModel:
    import timm
    from timm.models import get_pretrained_cfg

    name, _, tag = reference.name.partition(".")
    if not timm.is_model(name):
        hint = ""
        if Path(f"{reference.name}.py").is_file():
            hint = f"For the file type ./{reference.name}.py."
        own = [f"netgraft:{net}" for net in netgraft_names()]
        known = [*timm.list_models(), *own]
        if not hint and (near := close_names(f"netgraft:{reference.name}", own, 0.9)):
            near = [*near, *close_names(reference.name, timm.list_models(), 0.8)]
            hint = f"Did you mean {' or '.join(near[:5])}?"
        elif not hint and not close_names(reference.name, known):
            hint = "Names are timm's; a file is ./my_arch.py:Net, a hub model hf-hub:organisation/name."
        raise UnknownName("model", reference.text, known, hint=hint)
    try:
        cfg = get_pretrained_cfg(reference.name)
    except RuntimeError as error:
        raise _unknown_tag(reference, name, tag) from error
    if cfg is None:
        if tag:
            raise _unknown_tag(reference, name, tag)
        from timm.models import PretrainedCfg

        cfg = PretrainedCfg()
    return TimmModel(reference.text, name, cfg, args, option)


def _unknown_tag(reference: Reference, name: str, tag: str) -> UnknownName:
    tags = list_tags(name)
    near = [f"{name}.{close}" for close in close_names(tag, [t.partition(".")[2] for t in tags])]
    hint = f"{name} has the tags {', '.join(t.partition('.')[2] for t in tags)}." if tags else f"{name} has no tags."
    if near:
        hint = f"Did you mean {near[0]}? {hint}"
    return UnknownName("pretrained tag", tag, tags, where=reference.text, hint=hint)


def _from_config(
    file: Path,
    reference: Reference,
    args: Mapping[str, object],
    option: str,
    origin: Mapping[str, object],
    folder: Path | None,
) -> TimmModel:
    """A model from timm's ``config.json``: today's form, or the older one without ``pretrained_cfg``."""
    import timm
    from timm.models import PretrainedCfg

    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"config.json cannot be read: {brief(error)}", where=str(file)) from error
    name = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(name, str):
        hint = "Only timm's models can be built from a config; others need a .py file that builds them."
        raise ModelFileError(
            "config.json is not in timm's format: it names no architecture.", where=str(file), hint=hint
        )
    if not timm.is_model(name):
        raise UnknownName("timm architecture", name, timm.list_models(), where=str(file))
    fields = {**(config.get("pretrained_cfg") or config), **origin}
    if isinstance(config.get("num_classes"), int):
        fields["num_classes"] = config["num_classes"]
    known = {f.name for f in dataclasses.fields(PretrainedCfg)} - {"state_dict"}
    if "file" not in origin:
        known.discard("file")
    given: dict[str, Any] = {
        key: tuple(value) if key.endswith("_size") and isinstance(value, list) else value
        for key, value in fields.items()
        if key in known
    }
    cfg = PretrainedCfg(**given)
    saved = config.get("model_args")
    return TimmModel(reference.text, name, cfg, {**(saved if isinstance(saved, dict) else {}), **args}, option, folder)


def _arguments(model: TimmModel) -> str:
    return ", ".join(f"{model.option} {name}={value!r}" for name, value in model.args.items())
