"""Every deliberate error of netgraft: what went wrong, where, and what to type next.

Code that finds the fault raises one of these with what it knows; the command line prints it and exits with
``exit_code``. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NetgraftError(Exception):
    """Base of all deliberate errors.

    ``what`` is one sentence saying what is wrong, ``where`` names the file, layer, key or option (with both shapes
    where shapes disagree), ``hint`` says what to type next.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.where, self.hint) if part)


class UsageError(NetgraftError):
    """A command-line value that cannot be understood."""


class UnknownName(UsageError):
    """A model, plug-in, option or layer name that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str = "", hint: str = "") -> None:
        known = list(known)
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        if not hint and close:
            hint = f"Did you mean {' or '.join(close)}?"
        elif not hint and 0 < len(known) <= 40:
            hint = f"Known: {', '.join(sorted(known))}."
        super().__init__(f"Unknown {kind} {name!r}.", where=where, hint=hint)
        self.name = name


class ModelFileError(NetgraftError):
    """A user's model file that is missing, does not run, or does not define exactly one model."""


class BuildError(NetgraftError):
    """A model whose constructor failed or needs arguments."""


class ForwardError(NetgraftError):
    """A forward pass that failed while the architecture was being traced."""


class TraceError(NetgraftError):
    """An architecture that none of the tracing rungs could turn into a layer graph."""


class HubUnreachable(NetgraftError):
    """Pretrained weights that could not be downloaded."""


class CorruptFile(NetgraftError):
    """A weights file that is truncated, refused by ``weights_only`` or not what its name says."""


class WeightsMismatch(NetgraftError):
    """Weights whose keys or shapes do not fit the architecture."""


class NonFiniteWeights(NetgraftError):
    """Weights that contain NaN or infinity."""


class NothingToTransfer(NetgraftError):
    """A source and a target without a single compatible pair of layers."""


class OutputError(NetgraftError):
    """An output file that cannot or must not be written."""


class PlanError(NetgraftError):
    """A plan that does not fit the models it is applied to, or breaks the law that every key has one fate."""


class CheckFailed(NetgraftError):
    """A check the user asked for did not pass (coverage, drift, verify): exit code 1, not 2."""

    exit_code = 1
