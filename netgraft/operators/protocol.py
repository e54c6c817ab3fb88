"""What an operator is: a frozen dataclass, its fields the options of a ``Step``, that makes one tensor of another.

Every operator is deterministic, keeps dtype and device, never writes to its argument, and returns the same values where
there is nothing to resize. A tensor that a step does not fit raises PlanError. ``fate`` says what becomes of a tensor:
"exact" (its values, laid out anew), "interpolated", "stacked" (channels are chosen, mixed or scaled) or "set" (by rule,
whatever the values were). It is written as a literal in the class: plans read it without importing the file, and
without running it. The smallest operator is ``examples/own_operator.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:  # a report asks for these without torch
    from torch import Tensor

    from netgraft.architecture.graph import Shape


class Operator(Protocol):
    """See the module's text."""

    fate: ClassVar[str]

    def __call__(self, weight: Tensor) -> Tensor:
        """The tensor made of another one."""


@runtime_checkable
class ReadsBeside(Protocol):
    """Called with a second argument: for "own" the target's initial tensor, for "source" all of the source's by key."""

    reads: ClassVar[Literal["own", "source"]]

    def __call__(self, weight: Tensor, beside: Any) -> Tensor: ...


@runtime_checkable
class InWords(Protocol):
    """Says in a ledger what it does, in a few words; of other operators name and sizes are told."""

    def in_words(self, before: Shape, after: Shape) -> str:
        """``before`` and ``after``: shapes of the source's and the target's tensor, with all other steps."""


@runtime_checkable
class LaysOutAnew(Protocol):
    """Changes the axes: a ledger goes on with the shape that it makes. Without ``in_words`` it is not mentioned."""

    def laid_out(self, shape: Shape) -> Shape: ...
