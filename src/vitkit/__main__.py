"""`python -m vitkit`, as torchrun starts it, is the command line."""

import os
import sys

from vitkit.cli import main

if __name__ == "__main__":
    code = main()
    if "RANK" in os.environ:
        from vitkit.training.world import leave

        leave(code)
    sys.exit(code)
