"""Model references to models: ``load_model("resnet18", role="source")``, then ``read_weights(model)``.

timm and torchvision are imported only when a reference needs them.
"""

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
from netgraft.load.references import Reference, Role, parse_arg, parse_input_size, parse_reference

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
