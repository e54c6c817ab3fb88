"""Lets every test import the helpers beside this file by name: ``from drawn import Drawing``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
