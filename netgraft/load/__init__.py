"""Model references to models: ``load_model("resnet18", role="source")``, then ``read_weights(model)``.

torch is imported with the first name that needs it; timm and torchvision only when a reference needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from netgraft.load.references import Reference, Role, parse_arg, parse_input_size, parse_reference

if TYPE_CHECKING:
    from netgraft.load.model import (
        Model,
        Origin,
        PretrainedWeights,
        Weights,
        hash_tensors,
        load_model,
        read_weights,
        require_weights,
    )

__all__ = [
    "Model",
    "Origin",
    "PretrainedWeights",
    "Reference",
    "Role",
    "Weights",
    "hash_tensors",
    "load_model",
    "parse_arg",
    "parse_input_size",
    "parse_reference",
    "read_weights",
    "require_weights",
]


def __getattr__(name: str) -> Any:
    """Names of ``netgraft.load.model``, imported late."""
    if name in __all__:
        return getattr(importlib.import_module("netgraft.load.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
