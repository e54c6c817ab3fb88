"""L2-SP under the rule that does not let the regulariser hurt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from netgraft.finetune.methods.l2_sp import L2SP


@dataclass(frozen=True)
class DTNH(L2SP):
    """L2-SP without what its pull does against the task: short for --method l2-sp --combine dtnh.

    With g = grad J and r = lambda grad Omega: d = g + r where <g, r> >= 0, else g + r - <g, r> / |g|^2 g (Wan, Xiong,
    Li, Zhu, Huan, "Towards Making Deep Transfer Learning Never Hurt", ICDM 2019, Algorithm 1). Omega and its options
    are those of l2-sp; --combine dtnh takes any other method's. Costs no more than plain fine-tuning. The paper lets
    lambda fall: --lambda-decay. In conflict weights that Omega does not reach (norms, biases) are stepped by more than
    their own g; not so with --dtnh-scope shared, nor with per-tensor, which compares g and r tensor by tensor.

    Departs from the paper: as l2-sp does, and in line 11 of Algorithm 1 being taken, not the text.
    """

    combine: ClassVar[str] = "dtnh"
