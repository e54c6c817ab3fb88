"""``python tests/benchmarks/transfer_quality``, from any folder."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from transfer_quality.command import main

    sys.exit(main())
