"""``python -m pgrecall``."""

import sys

from pgrecall.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
