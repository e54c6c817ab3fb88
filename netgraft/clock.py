"""The clock behind a budget."""

from __future__ import annotations

import time

LATE = 1.1
"""Times the budget, from when on passes come to an end, which takes them another tenth."""


def is_spent(began: float, minutes: float) -> bool:
    """Whether a budget has run out that began at ``began``, in terms of time.monotonic."""
    return time.monotonic() > began + 60 * LATE * minutes
