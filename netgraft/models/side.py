"""What the user says about one of the two models, and the target's own weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from netgraft.models.model import Model, load_model, read_weights


@dataclass(frozen=True)
class Side:
    """What the user says about one of the two models."""

    reference: str
    role: Literal["source", "target"]
    args: Mapping[str, object] = field(default_factory=dict)
    input_size: tuple[int, ...] | None = None
    weights: Path | None = None  # a file instead of the reference's own pretrained weights
    random: bool = False  # random weights, for trying things out
    allow_nonfinite: bool = False

    def load(self) -> Model:
        return load_model(
            self.reference,
            role=self.role,
            args=self.args,
            input_size=self.input_size,
            weights_file=self.weights,
            random_weights=self.random,
        )

    def recorded(self, model: Model) -> dict[str, Any]:
        """What a written checkpoint tells of this side beside the reference, so that ``verify`` can load it again."""
        given = "file" if self.weights or model.reference.weights else "pretrained" if model.weights else "none"
        return {
            "args": [f"{name}={literal(self.args[name])}" for name in sorted(self.args)],
            "input_size": self.input_size,
            "weights": "random" if self.random else given,
        }


def own_weights(model: Model, seed: int, *, allow_nonfinite: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The target's own state_dict, and where it is from: its weights file if it has one, else a draw with ``seed``.

    The caller's random state is untouched.
    """
    if model.weights is not None:
        own = read_weights(model, allow_nonfinite=allow_nonfinite)
        return own.tensors, asdict(own.origin)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        state = model.build().state_dict()
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, {"description": f"the target's own initialisation with seed {seed}"}


def literal(value: object) -> str:
    """The Python literal of an argument, the same in every process; <type> for what has none."""
    match value:
        case list():
            return f"[{', '.join(map(literal, value))}]"
        case tuple():
            return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
        case set() if value:
            return f"{{{', '.join(sorted(map(literal, value)))}}}"
        case dict():
            return f"{{{', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items())}}}"
        case None | bool() | int() | float() | complex() | str() | bytes():
            return repr(value)
    return f"<{type(value).__name__}>"
