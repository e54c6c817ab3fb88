"""Lets the tests of tracing import the helpers beside this file by name: ``from cases import case``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
