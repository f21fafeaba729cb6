"""`python -m r2q` is the same as the console script `r2q`."""

import sys

from r2q.client import main

if __name__ == "__main__":
    sys.exit(main())
