"""An operator of your own, for the steps of a recipe.

    netgraft plan netgraft:resnet20-glyphs examples/resnet8.py --recipe examples/own_recipe.py \\
        --set operator=examples/own_operator.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.operators.cyclic import Cyclic


@dataclass(frozen=True)
class Alternate:
    """Repeat channels in a circle, every second round with the other sign, so that no two copies start alike."""

    fate: ClassVar[str] = "stacked"
    dim: int = field(metadata={"help": "axis to resize"})
    size: int = field(metadata={"help": "length of that axis in the result"})

    def __call__(self, weight: Tensor) -> Tensor:
        result = Cyclic(self.dim, self.size)(weight)  # raises PlanError where there is no such axis
        length = weight.shape[self.dim]
        for start in range(length, self.size, 2 * length):
            result.narrow(self.dim, start, min(length, self.size - start)).neg_()
        return result

    def in_words(self, before: tuple[int, ...], after: tuple[int, ...]) -> str:  # noqa: ARG002
        return f"axis {self.dim} repeated with other signs to {self.size}"
