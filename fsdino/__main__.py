"""`python -m fsdino`, the same as the command `fsdino`."""

import sys

from fsdino.cli import main

if __name__ == "__main__":
    sys.exit(main())
