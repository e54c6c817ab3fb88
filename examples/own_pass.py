"""A pass of your own: it changes the target's weights once the moves are made, and may run both networks.

netgraft transfer netgraft:resnet20-glyphs examples/resnet8.py --pass examples/own_pass.py -o i.safetensors
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from netgraft.architecture.graph import LayerGraph
from netgraft.passes.protocol import Stage
from netgraft.plan import Pairing


@dataclass(frozen=True)
class CentreHead:
    """Take the mean from the classifier's biases: softmax, and so what the network says, stays the same."""

    fate: ClassVar[str] = ""  # the numbers come from where they came from
    to: float = field(default=0.0, metadata={"help": "the mean that the biases get"})

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:  # noqa: ARG002
        return tuple(key for head in target.heads() if "bias" in head.tensors for key in head.tensors["bias"].keys)

    def __call__(self, stage: Stage) -> dict[str, Any]:
        state, means = stage.target.module.state_dict(), {}
        for head in stage.target.graph.heads():
            if "bias" in head.tensors:
                bias = state[head.tensors["bias"].key]  # shares its memory with the module
                means[head.name] = round(float(bias.mean()), 4)
                bias += self.to - bias.mean()
        return {"means": means}

    @staticmethod
    def lines(report: Mapping[str, Any]) -> Iterator[str]:
        yield from (f"centred {name}, whose biases had the mean {mean}" for name, mean in report["means"].items())
