"""The command line: parse, one call, one report. torch is imported only by the commands that need it."""

from netgraft.cli import transfer, checkpoints, inspect, score, finetune, listings  # isort: skip  # in the order of the help
from netgraft.cli.app import app

__all__ = ["app", "checkpoints", "finetune", "inspect", "listings", "score", "transfer"]
