"""`python -m pictish` is the same program as `pictish`."""

import sys

from pictish.cli import main

if __name__ == "__main__":
    sys.exit(main())
