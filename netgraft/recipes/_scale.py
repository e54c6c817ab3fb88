"""At which scale recipes leave weights that no function depends on (the pass ``rescale``)."""

from __future__ import annotations

from netgraft.plan import WantedPass

STREAM = 2.0
"""Scale of kernels that add to a residual stream under LayerNorm, as a multiple of that of kernels before a norm."""


def scaled(gain: float | None, spare: str = "nothing") -> WantedPass:
    """The pass ``rescale``; without a gain kernels before batch norms stay as they are."""
    return ("rescale", {"gain": gain, "stream": STREAM * (gain or 1.0), "spare": spare})
