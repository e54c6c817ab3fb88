"""Which modules a command imports."""

import subprocess
import sys

HEAVY = ("torch", "torchvision", "timm", "numpy", "networkx", "safetensors", "rich", "huggingface_hub")
CODE = """
import sys
sys.argv = ["netgraft", *sys.argv[1:]]
from netgraft.__main__ import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def imported(*args, code=0):
    """The modules in memory when ``netgraft ARGS`` ends."""
    result = subprocess.run([sys.executable, "-c", CODE, *args], capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return set(result.stderr.splitlines()[-1].split())
