"""Lets the tests of passes import the helpers beside this file by name: ``from stages import stage``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
