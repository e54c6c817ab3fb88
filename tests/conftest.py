"""Every test draws the same random numbers, in any order."""

import math
import os
import random
import sys

import pytest

from netgraft import clock

clock.LATE = math.inf  # a busy machine must not decide what a test sees
os.environ["NETGRAFT_PROGRESS"] = "off"  # of commands that take long on a busy machine, what they say is compared


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before a test's fixtures, those of its module too: what ran before must not decide what is drawn now."""
    random.seed(0)
    numpy, torch = (sys.modules.get(name) for name in ("numpy", "torch"))  # not imported for tests that do without
    if numpy is not None:
        numpy.random.seed(0)
    if torch is not None:
        torch.manual_seed(0)
