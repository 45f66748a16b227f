"""``python -m potstill``: the command line, also where its script isn't on the path."""

import sys

from potstill.cli import main

if __name__ == "__main__":
    sys.exit(main())
