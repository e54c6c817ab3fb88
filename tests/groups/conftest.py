"""Lets the tests of channel groups import the helpers beside this file by name: ``from permuting import Subject``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
