"""Architectures of torchvision, which is imported late."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.errors import BuildError, NetgraftError, UnknownName, UsageError, WeightsMismatch
from netgraft.models.catalogue import WITHOUT_HUB
from netgraft.models.construct import brief, call_constructor, call_library, check_arguments, explain_keyword
from netgraft.models.hub import downloading
from netgraft.models.references import Reference

_NOT_ARGUMENTS = ("weights", "weights_backbone", "progress")
_BUILT_WITH_WEIGHTS: dict[str, dict[str, object]] = {
    "googlenet": {"aux_logits": False, "transform_input": True},
    "inception_v3": {"transform_input": True},
    "fcn_": {"aux_loss": True},
    "deeplabv3_": {"aux_loss": True},
}
"""Prefix of a name -> arguments whose defaults torchvision changes when pretrained weights are asked for."""


@dataclass(frozen=True)
class TorchvisionModel:
    """An architecture with one of its sets of pretrained weights."""

    label: str  # what the user calls it
    name: str
    weights: Any  # a member of torchvision's WeightsEnum, None if the architecture has none
    args: Mapping[str, object]
    option: str = "--source-arg"

    @property
    def input_size(self) -> tuple[int, ...] | None:
        """From the weights' preprocessing; None where the input is not one image or clip."""
        from torchvision.models import get_model_builder

        family = get_model_builder(self.name).__module__.split(".")[2]
        if family in ("detection", "optical_flow"):
            return None
        if self.name.startswith("vit_"):  # takes one size only, whatever its weights were trained on
            size = self.args.get("image_size", 224)
            return (3, size, size) if isinstance(size, int) else None
        settings = getattr(getattr(self.weights, "transforms", None), "keywords", {})
        usual = 299 if self.name == "inception_v3" else 224
        size = settings.get("crop_size") or settings.get("resize_size") or usual
        size = (size, size) if isinstance(size, int) else tuple(size)
        return (3, 16, *size) if family == "video" else (3, *(size if len(size) == 2 else size * 2))

    def build(self, with_weights: bool = False) -> nn.Module:
        """A fresh module with random weights (nothing is downloaded), or the pretrained one."""
        from torchvision.models import get_model, get_model_builder

        args: dict[str, object] = {**self.args, "weights": self.weights if with_weights else None}
        if not with_weights and "weights_backbone" in inspect.signature(get_model_builder(self.name)).parameters:
            args["weights_backbone"] = None
        return call_library(get_model, self.name, **args)

    def build_random(self) -> nn.Module:
        """A fresh module with random weights; UnknownName or BuildError."""
        try:
            return call_constructor(self.build, {}, label=self.label, file=None)
        except BuildError as error:
            plain = replace(self, args={}).build
            unknown = explain_keyword(error, self.args, plain, option=self.option, where=self.label)
            raise unknown or error from error

    def read_pretrained(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The pretrained state_dict, downloaded or from the cache."""
        hint = (
            f"Download {self.weights.url} elsewhere and add --source-weights FILE, or type {self.label}=FILE.\n"
            "Or add --random-source to go without pretrained weights, or take as the source "
            f"{WITHOUT_HUB}."
        )
        try:
            with (
                downloading(f"The pretrained weights of {self.label}", hint=hint, uses_hub=False),
                torch.device("cpu"),
            ):
                return dict(self.build(with_weights=True).state_dict()), ()
        except NetgraftError:
            raise
        except Exception as error:
            what = f"The pretrained weights of {self.label} could not be loaded with these arguments."
            raise WeightsMismatch(what, where=brief(error)) from error


def find_torchvision_model(
    reference: Reference, args: Mapping[str, object], *, option: str, pretrained: bool
) -> TorchvisionModel:
    """The model of a ``torchvision`` reference, ``name`` or ``name.WEIGHTS``, not yet built.

    With ``pretrained`` it is the architecture that the pretrained weights belong to. Raises UnknownName, UsageError,
    BuildError.
    """
    from torchvision.models import get_model_builder, get_model_weights, list_models

    name, _, tag = reference.name.partition(".")
    if name not in list_models():
        raise UnknownName("torchvision model", name, list_models(), where=reference.text)
    members = list(get_model_weights(name))
    if tag and tag not in [member.name for member in members]:
        raise UnknownName("torchvision weights", tag, [member.name for member in members], where=reference.text)
    weights = getattr(get_model_weights(name), tag or "DEFAULT", None)
    for argument in args:
        if argument in _NOT_ARGUMENTS:
            hint = f"For a set of weights type torchvision:{name}.NAME; {', '.join(m.name for m in members)} exist."
            what = f"{argument} is not an argument of the architecture."
            raise UsageError(what, where=f"{option} {argument}=...", hint=hint)
    builder = get_model_builder(name)
    check_arguments(builder, args, label=name, option=option, file=None)
    if pretrained:
        defaults = {
            k: v for prefix, known in _BUILT_WITH_WEIGHTS.items() if name.startswith(prefix) for k, v in known.items()
        }
        if name.startswith("vit_") and weights is not None:
            defaults["image_size"] = weights.meta["min_size"][0]
        args = {**defaults, **args}
    return TorchvisionModel(reference.text, name, weights, args, option)
