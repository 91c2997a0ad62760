"""`python -m saeval.cli`."""

import sys

from saeval.cli import main

if __name__ == "__main__":
    sys.exit(main())
