"""Lets the tests of the refit import the helpers beside this file by name: ``from refit_nets import Plain``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
