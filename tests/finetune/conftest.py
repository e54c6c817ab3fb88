"""Lets the tests here import the helpers in ``tests`` and beside this file by name."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
